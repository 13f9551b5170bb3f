"""Hints for error messages: why a model failed on an input, or why an object is not a model, and what to do."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.devices import device_of, first_weight

AS_TENSOR = "a PyTorch model takes tensors: pass torch.from_numpy(x).float()"
CHANNELS, PRODUCT = "channels, but got", "shapes cannot be multiplied"  # from torch's messages about mismatched shapes
COLOURS = (1, 3, 4)  # channels of a picture
OF_ONE_SIZE = "; networks that end in linear layers expect images of one size: use whence.Preprocessing((H, W)), or --size"


def diagnose(model: Callable[..., Any], parts: Sequence[Any], as_arrays: bool, error: BaseException) -> str:
    """Return a hint for the end of the message that the model failed with; empty if the cause is unknown."""
    tensors, weight = [part for part in parts if isinstance(part, Tensor)], first_weight(model)
    if weight is None or not tensors:
        return ""
    if as_arrays:
        return f"; {AS_TENSOR}"
    known = _device_hint(device_of(model), tensors) or _dtype_hint(weight, tensors) or _photos_hint(model, parts)
    return known or (_shape_hint(model, tensors[0], str(error)) if tensors[0].is_floating_point() else "")


def describe_non_model(given: object) -> str:
    """Return the message for an object that is not a model, with the object to pass instead."""
    if isinstance(given, type):
        return f"{given.__name__} is a class, not a model; instantiate it: {given.__name__}(…).eval()"
    if isinstance(given, str | PathLike):
        return (
            f"{str(given)!r} is a name, not a model; pass whence.load_model(…).model (of FILE.py:FUNCTION and a weights file)"
        )
    if callable(getattr(given, "model", None)):
        return f"expected a model, got a {type(given).__name__}; pass its .model"
    ways = [way for way in ("predict_proba", "decision_function", "predict") if hasattr(given, way)]
    how = f"; pass its {ways[0]}, and a method without gradients such as whence.Shapley()" if ways else ""
    return f"a model must be callable, not {type(given).__name__}{how}"


def _device_hint(device: torch.device | None, tensors: Sequence[Tensor]) -> str:
    elsewhere = next((t.device for t in tensors if t.device != device), None)
    return "" if elsewhere is None else f"; the input is on {elsewhere}, the model on {device}: pass x.to('{device}')"


def _dtype_hint(weight: Tensor, tensors: Sequence[Tensor]) -> str:
    other = next((t.dtype for t in tensors if t.is_floating_point() and t.dtype != weight.dtype), None)
    if other is None:
        return ""
    return f"; the input has dtype {_dtype_name(other)}, the model {_dtype_name(weight.dtype)}: pass x.to({weight.dtype})"


def _photos_hint(model: Any, parts: Sequence[Any]) -> str:
    photos = len(parts) > 1 and all(isinstance(part, Tensor) and part.dim() == 3 and len(part) in COLOURS for part in parts)
    if not photos or not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return ""
    if len({part.shape for part in parts}) > 1:
        return "; a list is taken as several inputs of one sample: explain photos of unequal size one at a time, as photo[None]"
    return "; a list is taken as several inputs of one sample: pass torch.stack(photos), a batch [N, C, H, W]"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape_hint(model: Any, x: Tensor, said: str) -> str:
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    if convolution is None:
        linear = next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
        alone = linear is not None and x.dim() == 1 and len(x) == linear.in_features
        return "; inputs need a batch dimension: pass x[None]" if alone else ""
    if not any(
        sign in said for sign in (CHANNELS, PRODUCT, "input to conv", "expected 4D input", "list of 3d tensors")
    ):  # not about shapes
        return ""
    batched, channels = len(convolution.kernel_size) + 2, convolution.in_channels
    if x.dim() == batched - 2 and channels == 1:
        return "; inputs need a batch and a channel dimension: pass x[None, None]"
    if x.dim() == batched - 1 and channels in (x.shape[0], x.shape[-1]):
        return f"; inputs need a batch dimension: pass x{'' if x.shape[0] == channels else '.movedim(-1, 0)'}[None]"
    if x.dim() == batched - 1 and channels == 1:
        return "; inputs need a channel dimension: pass x[:, None]"
    if x.dim() == batched and x.shape[1] != channels and CHANNELS in said:
        last = x.shape[-1] == channels
        return (
            "; channels must be dimension 1: pass x.movedim(-1, 1)"
            if last
            else f"; expected {channels} channels, got {x.shape[1]}"
        )
    return OF_ONE_SIZE if x.dim() == batched == 4 and PRODUCT in said else ""
