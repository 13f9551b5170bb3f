"""Activations at named layers: a forward pass that ends where the last of them is reached."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from whence.errors import ModelError
from whence.inputs import Inputs
from whence.lrp.lookups import Lookups
from whence.lrp.mode import ConstantParameters
from whence.lrp.scope import Scope, named_layers
from whence.lrp.surroundings import entered
from whence.methods.gradients import ReluBack


class Reached(BaseException):
    """All that is wanted has been read; what the model would go on to compute is not."""


@dataclass
class Reading:
    """What one forward pass showed."""

    x: Tensor  # [K, …], what the model was given
    layers: dict[str, Tensor] = field(default_factory=dict)
    output: Any = None

    def of(self, samples: slice) -> "Reading":
        """That of some of the samples."""
        output = self.output[samples] if isinstance(self.output, Tensor) else self.output
        return Reading(self.x[samples], {name: a[samples] for name, a in self.layers.items()}, output)


class Reader:
    """Reads a model at layers and, if `output`, its output; weights are constants, nothing is attached to the model.

    >>> Reader(model, ["features.3"])(x).layers["features.3"].shape
    """

    def __init__(self, model: Callable[..., Any], layers: Sequence[str], output: bool = False):
        self._model, self._output = model, output
        self._layers = tuple(named_layers(model, tuple(layers)))

    def __call__(self, x: Tensor, redirected: bool = False) -> Reading:
        """What is read of `x`; `redirected` lets gradients through ReLUs that would stop all of a sample's."""
        reading = Reading(x)
        scope = Scope(self._model)
        scope.tap({name: self._tap(reading, name) for name in self._layers})
        mode = ReluBack(scope, Lookups({}), _redirected) if redirected else ConstantParameters(scope, Lookups({}))
        with suppress(Reached), entered(scope, mode):
            output = Inputs((x,), single=True).call(self._model, (x,))
            reading.output = getattr(output, "logits", output)
        missing = [name for name in self._layers if name not in reading.layers]
        if missing:
            raise ModelError(f"layer '{missing[0]}' was not called in the forward pass; there is nothing to read")
        return reading

    def _tap(self, reading: Reading, name: str) -> Callable[[Tensor], None]:
        def tap(out: Tensor) -> None:
            if len(out) != len(reading.x):
                raise ModelError(
                    f"layer '{name}' gives {tuple(out.shape)} for {len(reading.x)} samples; they cannot be told apart"
                )
            # a later layer may overwrite it in place
            reading.layers.setdefault(name, out if not self._output and len(self._layers) == 1 else out.clone())
            if not self._output and len(reading.layers) == len(self._layers):
                raise Reached

        return tap


def layer_shapes(model: Callable[..., Any], x: Tensor) -> dict[str, tuple[int, ...]]:
    """The layers of a model by name, and the shape of what each gives for `x` `[N, …]`, in the order they are called.

    >>> whence.layer_shapes(model, x)
    {'features.0': (1, 64, 224, 224), 'features.1': (1, 64, 224, 224), …}
    """
    found: dict[str, tuple[int, ...]] = {}
    scope = Scope(model)

    def note(module: Any, args: tuple, kwargs: dict, output: object) -> None:
        for name in scope.names(module):
            if name and isinstance(output, Tensor):
                found.setdefault(name, tuple(output.shape))

    scope.leaving = note
    with torch.no_grad(), scope:
        Inputs((x,), single=True).call(model, (x.clone(),))
    return found


def _redirected(g: Tensor, active: Tensor) -> Tensor:
    """Where a ReLU lets nothing of a sample's gradient back, what would raise its input goes through: a unit that is off at the
    start can be switched on (lucid's redirected ReLU)."""
    passed = g * active
    stuck = (passed == 0).flatten(1).all(1).view(-1, *[1] * (g.dim() - 1))
    return passed + g.clamp(min=0) * stuck
