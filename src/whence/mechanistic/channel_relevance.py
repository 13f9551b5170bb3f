"""The relevance of the channels of a layer, and the receptive field of a position in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.core.channel_layout import channel_dim, sum_over_positions
from whence.core.conditions import check_indices
from whence.core.explain import explain
from whence.core.explanation import Explanation
from whence.core.inputs import Inputs
from whence.core.targets import Target
from whence.core.trees import Tree
from whence.errors import InputError, ModelError, RuleError, SelectorError
from whence.lrp.engine.model_outputs import logits_of
from whence.lrp.torch_compat.module_tracker import named_layers
from whence.methods.layer_reader import LayerReader, layer_shapes
from whence.methods.registry import Method


@check_arguments
def channel_relevance(
    model: Callable[..., Any], inputs: Tree, layer: str, target: Target = None, *, method: Method | str | None = None
) -> Tensor:
    """Return the relevance of every channel of a layer, `[N, C]`: the sum over its positions, from one backward pass.

    >>> R = whence.channel_relevance(model, x, "features.28", target=483)
    >>> R.topk(5)                                  # the five channels that carried most of the output

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is left unchanged.
        inputs: Tensor `[N, …]`, or a tuple or dict of tensors.
        layer: Module path of the layer.
        target: What is explained, as for `explain`; the predicted class by default.
        method: A method or its short name; LRP with its default rules if not given.

    Returns:
        Tensor `[N, C]`.

    Raises:
        SelectorError: If the model has no such layer, or a pattern matches several.
        ModelError: If the layer runs more than once.
    """
    layer = resolve_layer(model, layer)
    e = explain(model, inputs, target, method=method, layers=[layer], progress=False)
    return sum_by_channel(model, e, layer)


def resolve_layer(model: Callable[..., Any], layer: str) -> str:
    """Return the full name of the one layer that a name or pattern matches."""
    names = list(named_layers(model, [layer]))
    if len(names) > 1:
        raise SelectorError(f"'{layer}' matches {len(names)} layers, of which '{names[0]}' is the first; name one")
    return names[0]


def top_channels(relevance: Tensor, count: int, output: float) -> list[int]:
    """Return the `count` channels with the most relevance `[C]` of the same sign as the output."""
    if isinstance(count, bool) or count < 1:
        raise RuleError(f"channels={count}; expected a number of at least 1, or the channel indices")
    towards = relevance if output >= 0 else -relevance
    return towards.topk(min(count, len(relevance))).indices.tolist()


def unravel(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the index of an entry, given its row-major number."""
    return tuple(int(p) for p in torch.unravel_index(torch.tensor(number), tuple(shape)))


def sum_by_channel(model: Callable[..., Any], e: Explanation, layer: str) -> Tensor:
    """Return the relevance of each channel, `[N, C]`, in an explanation that has the layer."""
    return sum_over_positions(relevance_channels_last(model, e, layer), -1)


def relevance_channels_last(model: Callable[..., Any], e: Explanation, layer: str) -> Tensor:
    """Return the relevance at a layer with its channels last, `[N, …, C]`."""
    relevance = e.layers[layer]
    if isinstance(relevance, tuple):
        raise ModelError(f"layer '{layer}' ran {len(relevance)} times; name one that runs once")
    return relevance.movedim(channel_dim(model, layer, Inputs.of(e.inputs), relevance), -1)


@dataclass(frozen=True)
class CropWindow:
    """A rectangle of an image, in pixels."""

    rows: slice
    columns: slice

    def of(self, picture: Tensor) -> Tensor:
        """Return the rectangle of an image `[…, H, W]`."""
        return picture[..., self.rows, self.columns]


def receptive_field(model: Callable[..., Any], x: Tensor, layer: str, channel: int, position: tuple[int, ...]) -> CropWindow:
    """Return the rectangle of the image `[1, C, H, W]` where the gradient of one position of a channel is not zero.

    >>> whence.mechanistic.channel_relevance.receptive_field(model, x, "features.10", 3, (5, 7)).of(x)

    It is the whole image if the gradient is zero everywhere.
    """
    if x.dim() != 4 or len(x) != 1:
        raise InputError(f"a receptive field needs one image [1, C, H, W], got {tuple(x.shape)}")
    reader = LayerReader(model, [resolve_layer(model, layer)])
    with torch.inference_mode(False), torch.enable_grad():
        given = x.detach().clone().requires_grad_()
        reading = reader(given)
        (layer,) = reading.layers
        a = reading.layers[layer].movedim(reading.channels_at(layer), -1)
        (channel,) = check_indices([channel], a.shape[-1], "channel")
        a = a[0, ..., channel]
        if len(position) != a.dim() or not all(0 <= p < n for p, n in zip(position, a.shape, strict=True)):
            raise SelectorError(f"position {position} is out of range for the output {tuple(a.shape)} of layer '{layer}'")
        (g,) = torch.autograd.grad(a[position], given)
    seen = (g[0] != 0).any(0)
    if not seen.any():  # an inactive unit
        return CropWindow(slice(0, x.shape[2]), slice(0, x.shape[3]))
    rows, columns = (seen.any(dim).nonzero().flatten() for dim in (1, 0))
    return CropWindow(slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))


def last_conv_layer(model: Callable[..., Any], inputs: Tensor) -> str:
    """Return the last convolution of the model whose channels are not the classes: the default layer."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    with torch.no_grad():
        outputs = Inputs.of(inputs).call(model, (inputs.clone(),))
    outputs = logits_of(outputs)
    classes = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.dim() > 1 else None
    for name, shape in reversed(layer_shapes(model, inputs).items()):
        if isinstance(modules.get(name), nn.Conv2d) and shape[1] != classes and shape[2] * shape[3] > 1:
            return name
    raise SelectorError("the model has no convolution with a feature map; name a layer (whence.layers.layer_shapes lists them)")
