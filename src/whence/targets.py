"""Which output is explained."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from whence.errors import TargetError

Target = None | int | Sequence[int] | Tensor | Callable[[Any], Tensor]


def select(outputs: Any, target: Target, batch_size: int) -> tuple[Tensor, Any]:
    """The explained value of each sample `[N]`, and the target it stands for: class indices `[N]` or the callable.

    `target` is None for the arg max, a class, one class for each sample, or a function from outputs to `[N]`.

    >>> select(torch.tensor([[1.0, 3.0]]), None, 1)
    (tensor([3.]), tensor([1]))
    """
    if callable(target):
        return _check_values(target(outputs), batch_size), target
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, Tensor):
        raise TargetError(
            f"the model returns {type(outputs).__name__}; pass target=lambda outputs: … that gives one value a sample"
        )
    if logits.dim() != 2 or len(logits) != batch_size:
        raise TargetError(
            f"the model's output has shape {tuple(logits.shape)}, not [N, classes] with N = {batch_size}; pass "
            "target=lambda outputs: … that gives one value a sample"
        )
    indices = _indices(target, logits)
    return logits[torch.arange(batch_size, device=logits.device), indices], indices


def _indices(target: Any, logits: Tensor) -> Tensor:
    count, classes = logits.shape
    if target is None:
        return logits.detach().argmax(1)
    try:
        indices = torch.as_tensor(target, device=logits.device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TargetError(f"target {target!r} is no class index, nor one for each sample") from error
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TargetError(f"a target must be a class index, not {indices.dtype}")
    if indices.dim() > 1 or (indices.dim() == 1 and len(indices) != count):
        raise TargetError(f"target has shape {tuple(indices.shape)}; give one class, or one for each of the {count} samples")
    if ((indices < 0) | (indices >= classes)).any():
        raise TargetError(f"target {indices.tolist()} is out of range: the model has classes 0 to {classes - 1}")
    return indices.long().expand(count)


def _check_values(values: Any, batch_size: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (batch_size,):
        given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise TargetError(
            f"the target function gave {given}, not one value for each of the {batch_size} samples: [{batch_size}]"
        )
    return values
