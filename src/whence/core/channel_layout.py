"""The channel dimension of layers: first (after the samples), as in convolutions, or last, as in linear layers and tokens."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, instancenorm, pooling

from whence.core.inputs import Inputs
from whence.errors import SelectorError
from whence.lrp.torch_compat.module_tracker import INPUT_OF, named_layers

CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
CHANNELS_FIRST = (
    conv._ConvNd, batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.GroupNorm, pooling._MaxPoolNd, pooling._AvgPoolNd,
    pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample,
    nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
CHANNEL_COUNTS = ("out_features", "out_channels", "num_features", "num_channels", "embedding_dim", "embed_dim")


@dataclass(frozen=True)
class ChannelLayout:
    """The layout of a layer's activations, as far as the types of the layer and of those before it give it.

    >>> ChannelLayout.of(model, "features.3").dimension(a, x)
    1
    """

    layer: str
    kind: str | None = None  # "first" or "last"
    count: int | None = None  # number of channels

    @classmethod
    def of(cls, model: Any, layer: str, module: nn.Module) -> "ChannelLayout":
        """Return the layout of a layer, or of a layer's input if its name begins with "input of "."""
        of_input = layer.startswith(INPUT_OF)
        parts = [] if of_input and next(module.children(), None) is not None else list(module.modules())
        known = next(((kind, part) for part in reversed(parts) if (kind := _kind(part))), None)
        if known is None:
            return cls(layer, _kind_of_previous_sibling(model, layer))
        kind, part = known
        return cls(layer, kind, None if of_input else _channel_count(part))

    def dimension(self, a: Tensor, x: Tensor) -> int:
        """Return the dimension of the channels in the activations `a` for an input `x`: 1 or the last.

        The number of channels decides where the type of the layer gives one, since a block may permute the output of its last
        module; then the type of the layer; then the type of the layer before it. Of other layers, image-like activations
        (4 or more dimensions) are taken to have their channels first, all others last.
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
    """Return the dimension of the channels in a layer's activations for some inputs."""
    x = inputs.parts[min((*inputs.explained, *inputs.ids))]
    return ChannelLayout.of(model, layer, named_layers(model, [layer])[layer]).dimension(a, x)


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, CHANNELS_FIRST) or (isinstance(module, nn.LayerNorm) and type(module).__name__.endswith("2d")):
        return "first"
    return "last" if isinstance(module, CHANNELS_LAST) else None


def _channel_count(module: nn.Module) -> int | None:
    found = next((getattr(module, name) for name in CHANNEL_COUNTS if isinstance(getattr(module, name, None), int)), None)
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
