"""Records of forward passes: activations at named layers, and the output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from whence.core.channel_layout import ChannelLayout
from whence.core.inputs import Inputs


@dataclass
class ForwardRecord:
    """The input, the activations at named layers and the output of one forward pass."""

    x: Tensor  # [K, …], the model's input
    layers: dict[str, Tensor] = field(default_factory=dict)
    output: Any = None
    layouts: dict[str, ChannelLayout] = field(default_factory=dict)

    @classmethod
    def of_layers(cls, inputs: Inputs, layers: Mapping[str, nn.Module], model: Any) -> "ForwardRecord":
        """Return the record of inputs before the forward pass, with the channel layouts of the layers."""
        return cls(inputs.first, layouts=ChannelLayout.of_layers(model, layers, inputs))

    def channels_at(self, layer: str) -> int:
        """Return the dimension of a layer's channels, 1 or the last."""
        return self.layouts.get(layer, ChannelLayout(layer)).dimension(self.layers[layer], self.x)

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
