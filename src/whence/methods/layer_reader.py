"""Activations at named layers: a forward pass that stops once the last of them is reached."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.forward_record import ForwardRecord
from whence.core.inputs import Inputs, check_model
from whence.core.trees import Tree
from whence.errors import ModelError, SelectorError
from whence.lrp.engine.embeddings import EmbeddingLookups
from whence.lrp.engine.function_mode import ConstantParameters
from whence.lrp.engine.model_outputs import first_tensor
from whence.lrp.torch_compat.module_tracker import ModuleOutline, ModuleTracker, check_paths, named_layers
from whence.lrp.torch_compat.torch_patches import enter_all
from whence.methods.gradients import ReluBackwardMode


class LastLayerReached(BaseException):
    """Signal that all requested layers have been read, so that the forward pass can stop."""


class LayerReader:
    """Reader of activations at layers and, if `output`, of the output; weights are constants, and no hooks are registered.

    >>> LayerReader(model, ["features.3"])(x).layers["features.3"].shape
    """

    def __init__(self, model: Callable[..., Any], layers: Sequence[str], output: bool = False):
        check_paths(layers)
        pattern = next((layer for layer in layers if "*" in layer), None)
        if pattern is not None:
            raise SelectorError(f"'{pattern}' matches several layers; name one of them")
        self._model, self._output = model, output
        self._outline = ModuleOutline(model)
        self._layers = named_layers(model, tuple(layers))

    def reading(self, x: Tensor, layers: dict[str, Tensor] | None = None) -> ForwardRecord:
        """Return the record of `x` before the model has run."""
        reading = ForwardRecord.of_layers(Inputs((x,), single=True), self._layers, self._model)
        return reading if layers is None else replace(reading, layers=layers)

    def __call__(self, x: Tensor, redirected: bool = False) -> ForwardRecord:
        """Return the activations for `x`; `redirected` passes gradients through ReLUs that would block all of a sample's."""
        reading = self.reading(x)
        scope = ModuleTracker(self._outline)
        scope.tap({name: self._tap(reading, name) for name in self._layers})
        mode = (
            ReluBackwardMode(scope, EmbeddingLookups({}), _redirected_gradient)
            if redirected
            else ConstantParameters(scope, EmbeddingLookups({}))
        )
        with suppress(LastLayerReached), enter_all(scope, mode):
            given = x.clone()  # a network may overwrite it
            reading.output = Inputs((given,), single=True).call(self._model, (given,))
        missing = [name for name in self._layers if name not in reading.layers]
        if missing:
            raise ModelError(f"layer '{missing[0]}' was not called in the forward pass; its activations cannot be read")
        return reading

    def _tap(self, reading: ForwardRecord, name: str) -> Callable[[Tensor], None]:
        def tap(out: Tensor) -> None:
            if out.dim() < 2 or len(out) != len(reading.x):
                raise ModelError(
                    f"layer '{name}' returns {tuple(out.shape)} for {len(reading.x)} samples; expected one row per sample"
                )
            # a later layer may overwrite it in place
            reading.layers.setdefault(name, out if not self._output and len(self._layers) == 1 else out.clone())
            if not self._output and len(reading.layers) == len(self._layers):
                raise LastLayerReached

        return tap


@check_arguments
def layer_shapes(model: Callable[..., Any], inputs: Tree) -> dict[str, tuple[int, ...]]:
    """Return the layers of a model by name with the shapes of their outputs for the inputs, in the order in which they finish.

    >>> whence.layers.layer_shapes(model, x)
    {'features.0': (1, 64, 224, 224), 'features.1': (1, 64, 224, 224), …}

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is left unchanged.
        inputs: Tensor `[N, …]`, or a tuple or dict of tensors.

    Returns:
        A dict from module path to shape.
    """
    check_model(model)
    found: dict[str, tuple[int, ...]] = {}
    scope = ModuleTracker(ModuleOutline(model))

    def note(module: Any, args: tuple, kwargs: dict, output: object) -> None:
        first = first_tensor(output)
        for name in scope.names(module):
            if name and first is not None:
                found.setdefault(name, tuple(first.shape))

    scope.leaving = note
    with enter_all(torch.no_grad(), scope):
        Inputs.of(inputs).run(model)
    return found


def leaf_layers(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the layers without inner layers, in the order in which they finish."""
    return [name for name in shapes if not any(other.startswith(f"{name}.") for other in shapes)]


def _redirected_gradient(g: Tensor, active: Tensor) -> Tensor:
    """Where a ReLU lets nothing of a sample's gradient back, what would raise its input goes through: a unit that is off at the
    start can be switched on (lucid's redirected ReLU)."""
    passed = g * active
    if g.dim() < 2:
        return passed
    stuck = (passed == 0).flatten(1).all(1).view(-1, *[1] * (g.dim() - 1))
    return passed + g.clamp(min=0) * stuck
