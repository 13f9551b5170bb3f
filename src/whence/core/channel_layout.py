"""The channel dimension of layers: first (after the samples), as in convolutions, or last, as in linear layers and tokens."""

from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, instancenorm, pooling
from torch.utils.weak import WeakTensorKeyDictionary

from whence.core.inputs import Inputs
from whence.errors import SelectorError, WhenceError
from whence.lrp.engine.model_outputs import first_tensor
from whence.lrp.torch_compat.deferred_checks import are_checks_deferred
from whence.lrp.torch_compat.module_tracker import INPUT_OF, ModuleOutline, ModuleTracker, named_layers
from whence.lrp.torch_compat.torch_patches import enter_all

CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
CHANNELS_FIRST = (
    conv._ConvNd, batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.GroupNorm, pooling._MaxPoolNd, pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample,
    nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
CHANNEL_COUNTS = ("out_features", "out_channels", "num_features", "num_channels", "embedding_dim", "embed_dim")
INPUT_COUNTS = ("in_features", "in_channels", "input_size")
COLOURS = (1, 3, 4)  # channels of a picture


class LayerChannels(NamedTuple):
    """The layout of some activations."""

    kind: str | None = None  # "first" or "last"
    count: int | None = None  # number of channels

    def moved(self, shape: torch.Size) -> "LayerChannels":
        """Return the layout of activations that were rearranged to another shape: the number of channels decides."""
        places = [d for d in range(1, len(shape)) if shape[d] == self.count]
        kinds = {1: "first", len(shape) - 1: "last"}
        return LayerChannels(kinds.get(places[0]) if len(places) == 1 else None, self.count)


_layouts: WeakKeyDictionary[nn.Module, tuple[list[int], dict[str, LayerChannels]]] = WeakKeyDictionary()
_first_layers: WeakKeyDictionary[nn.Module, LayerChannels] = WeakKeyDictionary()  # what the first known layer takes


@dataclass(frozen=True)
class ChannelLayout:
    """The layout of a layer's activations, as far as its type and those of the layers that ran before it give it.

    >>> ChannelLayout.of(model, "features.3", inputs).dimension(a, x)
    1
    """

    layer: str
    kind: str | None = None
    count: int | None = None

    @classmethod
    def of(cls, model: Any, layer: str, inputs: Inputs) -> "ChannelLayout":
        """Return the layout of a layer, or of a layer's input if its name begins with "input of "."""
        module = named_layers(model, [layer])[layer]
        of_input = layer.startswith(INPUT_OF)
        if (kind := _kind(module)) is not None:
            return cls(layer, kind, None if of_input else _channel_count(module))
        executed = None if of_input else executed_layouts(model, inputs).get(layer)
        return cls(layer, *(executed or _static_layout(model, layer, module, of_input)))

    def dimension(self, a: Tensor, x: Tensor) -> int:
        """Return the dimension of the channels in the activations `a` for an input `x`: 1 or the last.

        The number of channels decides where it is known, then the layout. Of other layers, image-like activations (4 or more
        dimensions) are taken to have their channels first, all others last.
        """
        last = a.dim() - 1
        if a.dim() <= 2:
            return last
        if self.count in (a.shape[1], a.shape[-1]) and a.shape[1] != a.shape[-1]:
            return 1 if a.shape[1] == self.count else last
        if self.kind is not None:
            return 1 if self.kind == "first" else last
        if a.dim() == 3 and x.dim() == 3:
            raise SelectorError(
                f"layer '{self.layer}' has output shape {tuple(a.shape)}, whose channel dimension is ambiguous; name the "
                "linear, convolution or normalisation layer before it instead"
            )
        return 1 if a.dim() > 3 else last


def channel_dim(model: Any, layer: str, inputs: Inputs, a: Tensor) -> int:
    """Return the dimension of the channels in a layer's activation for some inputs."""
    x = inputs.parts[min((*inputs.explained, *inputs.ids))]
    return ChannelLayout.of(model, layer, inputs).dimension(a, x)


def input_channel_dim(model: Any, inputs: Inputs, x: Tensor) -> int:
    """Return the dimension of the channels of an input `[N, …]`.

    The number of channels that the first layer of a known type takes decides, then its layout. Pictures for other models have
    their channels last only if the last dimension alone has the size of colours.
    """
    if x.dim() < 3:
        return x.dim() - 1
    executed_layouts(model, inputs)
    first = _first_layers.get(model) if isinstance(model, nn.Module) else None
    places = [d for d in (1, x.dim() - 1) if first is not None and x.shape[d] == first.count]
    if len(places) == 1:
        return places[0]
    if first is not None and first.kind is not None and x.dim() == 3:
        return 1 if first.kind == "first" else 2
    return x.dim() - 1 if x.shape[-1] in COLOURS and x.shape[1] not in COLOURS else 1


def executed_layouts(model: Any, inputs: Inputs) -> dict[str, LayerChannels]:
    """Return the layouts of a model's layers as they ran for the first sample of the inputs, which is computed once a model.

    A layer of unknown type has the layout of the tensor that it was given, or of the last output of its shape.
    """
    if not isinstance(model, nn.Module):
        return {}
    parts = [id(module) for module in model.modules()]
    known = _layouts.get(model)
    if known is None or known[0] != parts:
        if are_checks_deferred():  # while a graph is traced
            return {}
        _layouts[model] = known = parts, _run(model, inputs)
    return known[1]


def _run(model: nn.Module, inputs: Inputs) -> dict[str, LayerChannels]:
    one = inputs if inputs.whole or inputs.shared else inputs.of_samples(torch.tensor([0]))
    tracker, found = ModuleTracker(ModuleOutline(model)), {}
    by_tensor: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
    by_shape: dict[torch.Size, LayerChannels] = {}  # of the last output of each shape

    def leave(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        out, given = first_tensor(output), next((t for t in args if isinstance(t, Tensor)), None)
        if out is None:
            return
        kind = _kind(module)
        if kind is not None:
            layout = LayerChannels(kind, _channel_count(module))
            _first_layers.setdefault(model, LayerChannels(kind, _input_count(module)))
            if layout.count is None and given is not None:  # a pool, dropout of channels
                layout = LayerChannels(kind, out.shape[1] if out.dim() > 2 else None)
        else:
            before = None if given is None else by_tensor.get(given)
            if out in by_tensor:
                layout = by_tensor[out]
            elif before is not None and given is not None:
                layout = before if given.shape == out.shape else before.moved(out.shape)
            else:
                layout = by_shape.get(out.shape, LayerChannels())
        by_tensor[out] = layout
        if layout.kind is not None:
            by_shape[out.shape] = layout
        for name in tracker.names(module):
            found.setdefault(name, layout)

    tracker.leaving = leave
    _first_layers.pop(model, None)
    try:
        with enter_all(torch.no_grad(), tracker):
            one.call(model, tuple(one.copied().values()))
    except WhenceError:  # the model does not run on one sample alone
        return {}
    return {name: layout for name, layout in found.items() if layout.kind is not None}


def _static_layout(model: Any, layer: str, module: nn.Module, of_input: bool) -> LayerChannels:
    """Return the layout by the types of the parts of a layer, or of the layer that is defined before it."""
    parts = [] if of_input and next(module.children(), None) is not None else list(module.modules())
    part = next((part for part in reversed(parts) if _kind(part)), None)
    if part is None:
        return LayerChannels(_kind_of_previous_sibling(model, layer))
    return LayerChannels(_kind(part), None if of_input else _channel_count(part))


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, CHANNELS_FIRST) or (isinstance(module, nn.LayerNorm) and type(module).__name__.endswith("2d")):
        return "first"
    return "last" if isinstance(module, CHANNELS_LAST) else None


def _channel_count(module: nn.Module) -> int | None:
    found = next((getattr(module, name) for name in CHANNEL_COUNTS if isinstance(getattr(module, name, None), int)), None)
    shape = getattr(module, "normalized_shape", ())
    return found if found is not None else shape[-1] if shape else None


def _input_count(module: nn.Module) -> int | None:
    return next((getattr(module, name) for name in INPUT_COUNTS if isinstance(getattr(module, name, None), int)), None)


def _kind_of_previous_sibling(model: Any, layer: str) -> str | None:
    """Return the kind of the nearest preceding sibling of a childless layer, such as an activation or dropout."""
    if not isinstance(model, nn.Module):
        return None
    outer, _, name = layer.removeprefix(INPUT_OF).rpartition(".")
    try:
        children = dict(model.get_submodule(outer).named_children())
    except AttributeError:  # inside a compiled module
        return None
    if name not in children or next(children[name].children(), None) is not None:
        return None
    before = list(children)[: list(children).index(name)]
    siblings = (part for sibling in reversed(before) for part in reversed(list(children[sibling].modules())))
    return next((kind for part in siblings if (kind := _kind(part))), None)
