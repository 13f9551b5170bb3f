"""Hooks that record values and gradients at named layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from whence.core.conditions import Condition
from whence.core.forward_record import ForwardRecord
from whence.core.inputs import Inputs
from whence.errors import ModelError
from whence.lrp.torch_compat.module_tracker import named_layers

ValueAndGradient = tuple[Tensor, Tensor]  # a value and the gradient at that value


@dataclass
class LayerTaps:
    """Hooks that record values and gradients at named layers."""

    names: tuple[str, ...]
    reading: ForwardRecord | None = None  # knows the channel dimension of the layers
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)
    edges: dict[str, list[GradientEdge]] = field(default_factory=dict)  # where a backward pass can end or start

    @classmethod
    def of(cls, model: object, inputs: Inputs, layers: Sequence[str] = (), through: Sequence[Condition] = ()) -> "LayerTaps":
        """Return taps at the layers, and at those of the conditions."""
        conditional = dict.fromkeys(layer for condition in through for layer in condition.layers)
        reading = ForwardRecord.of_layers(inputs, named_layers(model, tuple(conditional)), model) if conditional else None
        return cls(tuple(dict.fromkeys((*layers, *conditional))), reading)

    def callbacks(self, pin: Callable[[Tensor], None]) -> dict[str, Callable[[Tensor], None]]:
        return {name: lambda out, name=name: self._tap(name, out, pin) for name in self.names}

    def _tap(self, name: str, out: Tensor, pin: Callable[[Tensor], None]) -> None:
        if not out.requires_grad:
            raise ModelError(f"layer '{name}' does not depend on the input; no relevance reaches it")
        pin(out)
        values, gradients = self.values.setdefault(name, []), self.gradients.setdefault(name, [])
        position = len(values)
        values.append(out.detach().clone())
        gradients.append(torch.zeros_like(values[-1]))
        self.edges.setdefault(name, []).append(get_gradient_edge(out))
        out.register_hook(lambda g: gradients.__setitem__(position, g.detach()))

    def read(self, only: Sequence[str] | None = None) -> dict[str, list[ValueAndGradient]]:
        """Return value and gradient of each call of each layer, or of the layers `only`, and reset the gradients."""
        missing = [name for name in self.names if name not in self.values]
        if missing:
            raise ModelError(f"layer '{missing[0]}' was not called in the forward pass, so it has no relevance")
        names = [name for name in self.values if only is None or name in only]
        gradients = self.take_gradients()
        return {name: list(zip(self.values[name], gradients[name], strict=True)) for name in names}

    def take_gradients(self) -> dict[str, list[Tensor]]:
        """Return the gradients of the last backward pass, and reset them."""
        found = {name: list(gradients) for name, gradients in self.gradients.items()}
        self.put_gradients({name: [torch.zeros_like(v) for v in self.values[name]] for name in found})
        return found

    def put_gradients(self, found: dict[str, list[Tensor]]) -> None:
        """Store the gradients of a backward pass."""
        for name, gradients in found.items():
            self.gradients[name][:] = gradients

    def channels_at(self, name: str) -> int:
        """Return the channel dimension of a layer."""
        assert self.reading is not None
        return replace(self.reading, layers={name: self.values[name][0]}).channels_at(name)

    def before(self, name: str) -> frozenset[str]:
        """Return this layer and all layers that finished before it."""
        order = list(self.values)
        return frozenset(order[: order.index(name) + 1])
