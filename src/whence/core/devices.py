"""Helpers to find the weights of a model and the device that they are on."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def device_of(model: Any) -> torch.device | None:
    """Return the device of a model's first floating-point weight; None if it has no weights or is not a module.

    For weights that are offloaded, this is the device on which they are used.
    """
    first = first_weight(model)
    if first is None or not first.is_meta:
        return None if first is None else first.device
    return torch.device(next((hook.execution_device for _, hook in _offloading_hooks(model)), "meta"))


def is_offloaded(model: Any) -> bool:
    """Return whether the model has a module whose weights accelerate loads when it runs and drops afterwards."""
    return isinstance(model, nn.Module) and any(True for _ in _offloading_hooks(model))


def drop_offloaded_weights(model: nn.Module) -> None:
    """Drop weights of an offloaded model that are in memory, as a module does that has run to its end."""
    for module, hook in _offloading_hooks(model):
        if not all(weight.is_meta for weight in module.parameters(recurse=False)):
            hook.post_forward(module, None)


def _offloading_hooks(model: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """Yield the modules whose weights are offloaded, with accelerate's hooks that load them."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            if getattr(one, "offload", False):
                yield module, one


def to_device_of(t: Tensor, model: Any) -> Tensor:
    """Return the tensor on the device of the model's weights."""
    return t.to(device=device_of(model))


def first_weight(model: Any) -> Tensor | None:
    """Return the first floating-point parameter or buffer of a model, or None."""
    if not isinstance(model, nn.Module):
        return None
    return next((t for tensors in (model.parameters(), model.buffers()) for t in tensors if t.is_floating_point()), None)
