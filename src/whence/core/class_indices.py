"""Class indices as tensors: one for all samples, or one for each."""

from typing import Any

import torch
from torch import Tensor

from whence.errors import TargetError, value_repr
from whence.lrp.torch_compat.deferred_checks import check_holds


def class_indices(given: Any, count: int, kind: str = "target", device: torch.device | str | None = None) -> Tensor:
    """Return class indices `[count]` from one index for all samples, or one for each."""
    try:
        indices = torch.as_tensor(given, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        named = "; pass the index of the class" if isinstance(given, str) else ""
        raise TargetError(f"invalid {kind} {value_repr(given)}: expected a class index, or one per sample{named}") from error
    indices = indices.clone() if indices.is_inference() else indices
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TargetError(f"a {kind} must be an integer class index, got {indices.dtype}")
    if indices.dim() > 1 or (indices.dim() == 1 and indices.shape[0] != count):
        raise TargetError(
            f"{kind} has shape {tuple(indices.shape)}; expected one class, or one for each of the {count} samples"
        )
    return indices.long().expand(count).contiguous()  # torch.compile refuses an expanded index


def check_classes(indices: Tensor, classes: int, kind: str = "target") -> None:
    """Raise `TargetError` for indices out of range of the model's classes."""
    inside = (indices >= 0) & (indices < classes)
    if not check_holds(inside):
        raise TargetError(f"{kind} {int(indices[~inside][0])} is out of range: the model has classes 0 to {classes - 1}")
