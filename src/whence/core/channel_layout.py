"""The channel dimension of layers: first (after the samples), as in convolutions, or last, as in linear layers and tokens."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, instancenorm, pooling
from torch.utils.weak import WeakTensorKeyDictionary

from whence.core.inputs import Inputs, called_modules, has_colours_last
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
MAX_CHANNELS = 16  # that a series of unknown layout may have
LEAST_RATIO = 3  # of steps to channels, where only the shape tells
INPUT_COUNTS = ("in_features", "in_channels", "input_size", "embed_dim")


class LayerChannels(NamedTuple):
    """The layout of some activations."""

    kind: str | None = None  # "first" or "last"
    count: int | None = None  # number of channels

    def moved(self, shape: torch.Size) -> "LayerChannels":
        """Return the layout of activations that were rearranged to another shape: the number of channels decides."""
        places = [d for d in range(1, len(shape)) if shape[d] == self.count]
        kinds = {1: "first", len(shape) - 1: "last"}
        return LayerChannels(kinds.get(places[0]) if len(places) == 1 else None, self.count)


class FirstLayer(NamedTuple):
    """The first layer of a known type that ran: its layout, and the sample that it took."""

    kind: str | None = None  # "first" or "last"
    count: int | None = None  # number of channels that it takes
    shape: tuple[int, ...] = ()  # of the sample
    dense: bool = False  # whether it is linear, and may run over time as well as over channels


class ExecutedLayouts(NamedTuple):
    """The layouts of a model's layers as they ran."""

    modules: tuple[int, ...] = ()  # the model's modules then, by identity
    layers: Mapping[str, LayerChannels] = MappingProxyType({})
    taken: FirstLayer = FirstLayer()


_executed: WeakKeyDictionary[nn.Module, ExecutedLayouts] = WeakKeyDictionary()


@dataclass(frozen=True)
class ChannelLayout:
    """The layout of a layer's activations, as far as its type and those of the layers that ran before it give it.

    >>> ChannelLayout.of_layers(model, {"features.3": model.features[3]}, inputs)["features.3"].dimension(a, x)
    1
    """

    layer: str
    kind: str | None = None
    count: int | None = None

    @classmethod
    def of_layers(cls, model: Any, layers: Mapping[str, nn.Module], inputs: Inputs) -> "dict[str, ChannelLayout]":
        """Return the layouts of layers, or of a layer's input where its name begins with "input of "."""
        executed: Mapping[str, LayerChannels] = {}
        if any(_kind(module) is None and not name.startswith(INPUT_OF) for name, module in layers.items()):
            executed = executed_layouts(model, inputs).layers
        return {name: cls(name, *_layout(model, name, module, executed)) for name, module in layers.items()}

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
    return ChannelLayout.of_layers(model, named_layers(model, [layer]), inputs)[layer].dimension(a, inputs.first)


def sum_over_positions(a: Tensor, dimension: int) -> Tensor:
    """Return activations or relevance with this channel dimension summed over all positions, `[N, C]`."""
    return a.movedim(dimension, -1).flatten(1, -2).sum(1) if a.dim() > 2 else a


def input_channel_dim(model: Any, inputs: Inputs, x: Tensor) -> int:
    """Return the dimension of the channels of an input `[N, …]`.

    The number of channels that the first layer of a known type takes decides, then its layout. Pictures for other models have
    their channels last only if the last dimension alone has the size of colours.
    """
    if x.dim() < 3:
        return x.dim() - 1
    known = first_layer_channel_dim(model, inputs, x)
    if known is not None:
        return known
    taken = first_layer(model, inputs)
    if taken.kind is not None and x.dim() == 3:
        return 1 if taken.kind == "first" else 2
    return x.dim() - 1 if has_colours_last(x.shape) else 1


def first_layer_channel_dim(model: Any, inputs: Inputs, x: Tensor) -> int | None:
    """Return the dimension of an input `[N, …]` with as many entries as the first layer takes; None if none or several have.

    A dense layer that reads a series transposed runs over time (DLinear, iTransformer): the channels are then the others. Of
    another dense layer the shape decides first: there are fewer channels than steps.
    """
    taken = first_layer(model, inputs)
    places = [d for d in (1, x.dim() - 1) if x.shape[d] == taken.count]
    if len(places) != 1:
        return None
    if x.dim() == 3 and taken.kind == "last" and taken.shape == (x.shape[2], x.shape[1]):
        return 3 - places[0]
    return None if x.dim() == 3 and taken.dense and series_channel_dim(x.shape[1:]) is not None else places[0]


def first_layer(model: Any, inputs: Inputs) -> FirstLayer:
    """Return the first layer of a known type of a model, or of the module that a function calls."""
    modules = [model] if isinstance(model, nn.Module) else called_modules(model)
    return executed_layouts(modules[0], inputs).taken if modules else FirstLayer()


def series_channel_dim(shape: Sequence[int]) -> int | None:
    """Return the dimension of the channels of a sample of two dimensions by its shape, 0 or 1; None if it may be an image."""
    few, many = sorted(shape)
    if few > MAX_CHANNELS or many < LEAST_RATIO * few:
        return None
    return 0 if shape[0] == few else 1


def executed_layouts(model: Any, inputs: Inputs) -> ExecutedLayouts:
    """Return the layouts of a model's layers as they ran for the first sample of the inputs, which is computed once a model."""
    if not isinstance(model, nn.Module):
        return ExecutedLayouts()
    modules = tuple(map(id, model.modules()))
    known = _executed.get(model, ExecutedLayouts())
    if known.modules != modules and not are_checks_deferred():  # not while a graph is traced
        _executed[model] = known = LayoutTracker(model).run(inputs)._replace(modules=modules)
    return known if known.modules == modules else ExecutedLayouts()


class LayoutTracker:
    """Tracker of the layouts of all layers in one forward pass.

    A layer of unknown type has the layout of the tensor that it was given, or of the last output of its shape.
    """

    def __init__(self, model: nn.Module):
        self._model, self._modules = model, ModuleTracker(ModuleOutline(model))
        self._modules.leaving = self._leave
        self._layers: dict[str, LayerChannels] = {}
        self._taken = FirstLayer()
        self._by_tensor: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._by_shape: dict[torch.Size, LayerChannels] = {}  # of the last output of each shape

    def run(self, inputs: Inputs) -> ExecutedLayouts:
        """Return the layouts for the first sample; none if the model does not run on it alone."""
        one = inputs if inputs.whole or inputs.shared else inputs.of_samples(torch.tensor([0]))
        with suppress(WhenceError), enter_all(torch.no_grad(), self._modules):
            one.run(self._model)
            return ExecutedLayouts((), self._layers, self._taken)
        return ExecutedLayouts()

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        out, given = first_tensor(output), next((t for t in args if isinstance(t, Tensor)), None)
        if out is None:
            return
        kind = _kind(module)
        if kind is not None and self._taken.kind is None:
            self._taken = FirstLayer(
                kind, _input_count(module), () if given is None else tuple(given.shape[1:]), isinstance(module, nn.Linear)
            )
        count = out.shape[1 if kind == "first" else -1] if out.dim() > 2 else None  # of a pool, which has none of its own
        layout = self._inherited(out, given) if kind is None else LayerChannels(kind, _channel_count(module) or count)
        self._by_tensor[out] = layout
        if layout.kind is None:
            return
        self._by_shape[out.shape] = layout
        for name in self._modules.names(module):
            self._layers.setdefault(name, layout)

    def _inherited(self, out: Tensor, given: Tensor | None) -> LayerChannels:
        before = None if given is None else self._by_tensor.get(given)
        if out in self._by_tensor:
            return self._by_tensor[out]
        if before is not None and given is not None:
            return before if given.shape == out.shape else before.moved(out.shape)
        return self._by_shape.get(out.shape, LayerChannels())


def _layout(model: Any, layer: str, module: nn.Module, executed: Mapping[str, LayerChannels]) -> LayerChannels:
    """Return the layout of a layer by its own type, else as it ran, else by the types of its parts and of those before it."""
    of_input = layer.startswith(INPUT_OF)
    if (kind := _kind(module)) is not None:
        return LayerChannels(kind, None if of_input else _channel_count(module))
    return executed.get("" if of_input else layer) or _static_layout(model, layer, module, of_input)


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
    found = next((getattr(module, name) for name in INPUT_COUNTS if isinstance(getattr(module, name, None), int)), None)
    shape = getattr(module, "normalized_shape", ())
    return found if found is not None else shape[-1] if shape else None


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
