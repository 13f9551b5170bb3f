"""The weights of a model: which numbers they are, and where they lie."""

from typing import Any

import torch
from torch import Tensor, nn


def device_of(model: Any) -> torch.device | None:
    """Where the first of a model's weights lie; None of a function."""
    first = first_weight(model)
    return None if first is None else first.device


def to_device_of(t: Tensor, model: Any) -> Tensor:
    """A tensor on the device that a model's weights are on."""
    return t.to(device=device_of(model))


def first_weight(model: Any) -> Tensor | None:
    """The first parameter or buffer of floating-point numbers, if there is one."""
    if not isinstance(model, nn.Module):
        return None
    return next((t for tensors in (model.parameters(), model.buffers()) for t in tensors if t.is_floating_point()), None)
