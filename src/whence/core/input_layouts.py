"""The dimension of the channels of series and pictures, and samples with their channels first."""

from typing import Any

from torch import Tensor

from whence.core.channel_layout import first_layer_channel_dim, series_channel_dim
from whence.core.explanation_data import ExplanationData
from whence.core.inputs import Inputs, has_colours_last
from whence.core.trees import named_leaves
from whence.errors import InputError


def channel_dims(model: Any, inputs: Inputs) -> dict[str, int]:
    """Return the dimension of the channels of inputs `[N, …]` whose layout the model's first layer tells, by input."""
    found = {}
    for i in inputs.explained:
        x = inputs.parts[i]
        if x.dim() == 3 or (x.dim() == 4 and has_colours_last(x.shape)):
            dim = first_layer_channel_dim(model, inputs, x)
            if dim is None and x.dim() == 4:
                dim = 3  # the last dimension alone has the size of colours
            if dim is not None:
                found[inputs.labels[i]] = dim
    return found


def channels_first(t: Tensor, known: int | None, named: int = 0, steps: int = 0) -> Tensor | None:
    """Return a sample `[channels, steps]` or `[steps, channels]` with its channels first; None if it may be an image.

    >>> channels_first(torch.zeros(40, 2), None).shape
    torch.Size([2, 40])

    Args:
        t: The sample.
        known: Dimension of the channels in the batch, 1 or 2, where the model tells it.
        named: Number of channels that have names, which decides first.
        steps: Number of steps that have labels, likewise.
    """
    if t.dim() != 2:
        return None
    if t.shape[0] != t.shape[1] and (named in t.shape or steps in t.shape):
        return t if named == t.shape[0] or (steps == t.shape[1] and named != t.shape[1]) else t.T
    if known is not None:
        return t if known == 1 else t.T
    by_shape = series_channel_dim(t.shape)
    return None if by_shape is None else t if by_shape == 0 else t.T


def as_picture(e: ExplanationData, name: str, t: Tensor) -> Tensor:
    """Return a sample `[H, W, C]` of pictures whose model takes channels last as `[C, H, W]`, and others as they are."""
    return t.movedim(-1, 0) if t.dim() == 3 and e.channel_dims.get(name) == 3 else t


def as_series(e: ExplanationData, name: str, t: Tensor) -> Tensor | None:
    """Return a sample of an input as `[channels, steps]`; None if it is no series."""
    steps = 0 if e.time_axis is None else len(e.time_axis.labels)
    if t.dim() == 1:
        beside_series = any(other.dim() == 3 for other in named_leaves(e.relevance).values())
        is_series = e.time_axis is not None and steps in (0, len(t)) and not (beside_series or e.feature_names.get(name))
        return t[None] if is_series else None
    found = channels_first(t, e.channel_dims.get(name), len(e.feature_names.get(name, ())), steps)
    if found is not None and steps not in (0, found.shape[1]):
        raise InputError(
            f"the time axis has {steps} steps, but the series has {found.shape[1]}; pass with_time() its own index"
        )
    return found
