"""What is likely wrong with an input that a model could not run on, and what to do."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from whence.weights import first_weight

AS_TENSOR = "a PyTorch model takes tensors: pass torch.from_numpy(x).float()"
OF_ONE_SIZE = "; a network with linear layers at its end takes pictures of one size: whence.Preprocessing((H, W)), or --size"


def advice(model: Callable[..., Any], parts: Sequence[Any], as_arrays: bool) -> str:
    """A clause for the end of an error; empty where nothing is known."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    weight = first_weight(model)
    if not isinstance(model, nn.Module) or weight is None or not tensors:
        return ""
    if as_arrays:
        return f"; {AS_TENSOR}"
    return _of_device(weight, tensors) or _of_type(weight, tensors) or _of_shape(model, tensors[0])


def _of_device(weight: Tensor, tensors: Sequence[Tensor]) -> str:
    elsewhere = next((t.device for t in tensors if t.device != weight.device), None)
    if elsewhere is None:
        return ""
    return f"; the input lies on {elsewhere}, the model on {weight.device}: pass x.to('{weight.device}')"


def _of_type(weight: Tensor, tensors: Sequence[Tensor]) -> str:
    other = next((t.dtype for t in tensors if t.is_floating_point() and t.dtype != weight.dtype), None)
    if other is None:
        return ""
    return f"; the input is in {_short(other)}, the model in {_short(weight.dtype)}: pass x.to({weight.dtype})"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _of_shape(model: nn.Module, x: Tensor) -> str:
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    linear = next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
    if convolution is None:
        alone = linear is not None and x.dim() == 1 and len(x) == linear.in_features
        return "; inputs come in batches: pass x[None]" if alone else ""
    batched, channels = len(convolution.kernel_size) + 2, convolution.in_channels
    if x.dim() == batched - 2 and channels == 1:
        return "; inputs come in batches of channels: pass x[None, None]"
    if x.dim() == batched - 1:
        last = x.shape[0] != channels and x.shape[-1] == channels
        return f"; inputs come in batches: pass x{'.movedim(-1, 0)' if last else ''}[None]"
    if x.dim() != batched or x.shape[1] == channels:
        fixed = linear is not None and x.dim() == batched == 4
        return OF_ONE_SIZE if fixed else ""
    if x.shape[-1] == channels:
        return "; channels come first: pass x.movedim(-1, 1)"
    return f"; the first convolution takes {channels} channels, the input has {x.shape[1]}"
