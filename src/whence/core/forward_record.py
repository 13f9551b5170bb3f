"""Records of forward passes: activations at named layers, and the output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, instancenorm

from whence.errors import SelectorError

CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
CHANNELS_FIRST = (conv._ConvNd, batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.GroupNorm)


@dataclass
class ForwardRecord:
    """The input, the activations at named layers and the output of one forward pass."""

    x: Tensor  # [K, …], the model's input
    layers: dict[str, Tensor] = field(default_factory=dict)
    output: Any = None
    channels_last: frozenset[str] = frozenset()  # layers known by their type
    channels_first: frozenset[str] = frozenset()
    channels: dict[str, int] = field(default_factory=dict)  # number of channels, where the type of the layer gives it

    @classmethod
    def of_layers(cls, x: Tensor, layers: dict[str, nn.Module], model: Any = None) -> "ForwardRecord":
        """Return the record of an input before the forward pass, with the channel layouts of the layers."""
        kinds = {name: _channel_layout(module, of_input=name.startswith("input of ")) for name, module in layers.items()}
        kinds = {name: kind or _layout_of_previous_sibling(name, model) for name, kind in kinds.items()}
        return cls(
            x,
            channels_last=frozenset(name for name, kind in kinds.items() if kind == "last"),
            channels_first=frozenset(name for name, kind in kinds.items() if kind == "first"),
            channels={n: count for n, m in layers.items() if not n.startswith("input of ") and (count := _channel_count(m))},
        )

    def channels_at(self, layer: str) -> int:
        """Return the dimension of a layer's channels, 1 or the last.

        If neither the type of the layer nor that of the layer before it gives the layout, image-like activations (4 or more
        dimensions) are taken to have their channels first, all others last.
        """
        a = self.layers[layer]
        count = self.channels.get(layer)
        if a.dim() > 2 and a.shape[1] != a.shape[-1] and count in (a.shape[1], a.shape[-1]):
            return 1 if a.shape[1] == count else a.dim() - 1  # a block may permute the output of its last module
        if layer in self.channels_first or layer in self.channels_last:
            return 1 if layer in self.channels_first else a.dim() - 1
        if a.dim() == 3 and self.x.dim() == 3:
            raise SelectorError(
                f"layer '{layer}' has output shape {tuple(a.shape)}, whose channel dimension is ambiguous; name the linear, "
                "convolution or normalisation layer before it instead"
            )
        return 1 if a.dim() > 3 else a.dim() - 1

    def parted(self, size: int) -> "list[ForwardRecord]":
        """Split the record into parts of `size` samples; the backward pass of slices would allocate a full tensor per slice."""
        count = len(self.x) // size
        layers = {name: a.split(size) for name, a in self.layers.items()}
        outputs = _split_output(self.output, size, len(self.x))
        return [
            replace(self, x=x, layers={name: parts[k] for name, parts in layers.items()}, output=outputs[k])
            for k, x in zip(range(count), self.x.split(size), strict=True)
        ]


@runtime_checkable
class InternalTarget(Protocol):
    """Protocol of targets inside the network, such as the objectives of prototypes."""

    @property
    def layers(self) -> Sequence[str]:
        """The module paths of the layers whose activations the target needs."""
        ...

    def value(self, reading: ForwardRecord) -> Tensor:
        """Return the value of the target for each sample, `[samples]`."""
        ...


def _channel_count(module: nn.Module) -> int | None:
    """Return the number of output channels of the last submodule of a known type, or None."""
    for part in reversed(list(module.modules())):
        if isinstance(part, CHANNELS_LAST + CHANNELS_FIRST):
            names = ("out_features", "out_channels", "num_features", "num_channels", "embedding_dim", "embed_dim")
            found = next((getattr(part, name) for name in names if hasattr(part, name)), None)
            shape = getattr(part, "normalized_shape", ())
            return found if found is not None else shape[-1] if shape else None
    return None


def _channel_layout(module: nn.Module, of_input: bool = False) -> str | None:
    """Return the channel layout of the last submodule of a known type: "first" (after the samples), "last", or None.

    The layout of the input of a layer with several submodules is unknown.
    """
    parts = list(module.modules())
    if of_input and len(parts) > 1:
        return None
    for part in reversed(parts):
        if isinstance(part, CHANNELS_LAST):
            return "last"
        if isinstance(part, CHANNELS_FIRST):
            return "first"
    return None


def _layout_of_previous_sibling(layer: str, model: Any) -> str | None:
    """Return the channel layout of the nearest preceding sibling of a childless layer, such as an activation or dropout."""
    if not isinstance(model, nn.Module):
        return None
    outer, _, name = layer.removeprefix("input of ").rpartition(".")
    try:
        children = dict(model.get_submodule(outer).named_children())
    except AttributeError:  # inside a compiled module
        return None
    if name not in children or next(children[name].children(), None) is not None:
        return None
    before = list(children)[: list(children).index(name)]
    return next((kind for sibling in reversed(before) if (kind := _channel_layout(children[sibling])) is not None), None)


def _split_output(output: Any, size: int, samples: int) -> Sequence[Any]:
    """Split an output (tensor, mapping, list or tuple) into parts of `size` samples each."""
    count = samples // size
    if isinstance(output, Tensor) and output.dim() and len(output) == samples:
        return output.split(size)
    if isinstance(output, Mapping):
        parts = {key: _split_output(value, size, samples) for key, value in output.items()}
        return [type(output)(**{key: part[k] for key, part in parts.items()}) for k in range(count)]
    if type(output) in (list, tuple):
        several = [_split_output(value, size, samples) for value in output]
        return [type(output)(part[k] for part in several) for k in range(count)]
    return [output] * count
