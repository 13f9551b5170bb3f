"""Helpers to find the weights of a model and the device that they are on."""

from typing import Any

import torch
from torch import Tensor, nn


def device_of(model: Any) -> torch.device | None:
    """Return the device of a model's first floating-point weight; None if it has no weights or is not a module."""
    first = first_weight(model)
    return None if first is None else first.device


def to_device_of(t: Tensor, model: Any) -> Tensor:
    """Return the tensor on the device of the model's weights."""
    return t.to(device=device_of(model))


def first_weight(model: Any) -> Tensor | None:
    """Return the first floating-point parameter or buffer of a model, or None."""
    if not isinstance(model, nn.Module):
        return None
    return next((t for tensors in (model.parameters(), model.buffers()) for t in tensors if t.is_floating_point()), None)
