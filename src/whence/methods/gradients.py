"""Gradient methods: sensitivity, gradient × input, guided backpropagation and deconvnet."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from whence.core.explanation import Explanation
from whence.errors import ModelError, RuleError, value_repr
from whence.lrp.engine.conservation import Conservation
from whence.lrp.engine.embeddings import EmbeddingLookups
from whence.lrp.engine.function_calls import overwrites
from whence.lrp.engine.function_mode import ConstantParameters
from whence.lrp.ops.function_facts import function_facts
from whence.lrp.torch_compat.module_tracker import ModuleTracker
from whence.lrp.torch_compat.saved_tensors import ModifiedBackward
from whence.methods.forward_backward import (
    Gradients,
    Task,
    input_leaves,
    make_explanation,
    record_internals,
    sum_relevance,
    target_gradients,
)
from whence.methods.layer_taps import LayerTaps

RelevanceFunction = Callable[[Tensor, Tensor], Tensor]  # (value, gradient at that value) -> relevance


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity analysis: partial derivatives of the output with respect to the input.

    >>> whence.explain(model, x, target=3, method=whence.Sensitivity()).relevance

    Sensitivity shows which changes of the input change the output most, not which parts of the input produced the output. The
    scores do not add up to the output in any form.

    Args:
        form: "square" for R_i = (∂f/∂x_i)², whose sum is the squared norm of the gradient in units of (output / input)²
            (Montavon et al. 2018, eq. 4); "absolute" for |∂f/∂x_i| (Simonyan et al. 2014); "signed" for ∂f/∂x_i itself.
    Raises:
        RuleError: `form` is not one of the three.
    """

    form: Literal["square", "absolute", "signed"] = "square"

    name: ClassVar[str] = "sensitivity"

    def __post_init__(self):
        if self.form not in SENSITIVITY_FORMS:
            raise RuleError(f"form={value_repr(self.form)}; choose 'square', 'absolute' or 'signed'")

    def explanations(self, task: Task) -> Iterator[Explanation]:
        return _gradient_explanations(self, task, lambda value, gradient: SENSITIVITY_FORMS[self.form](gradient))


SENSITIVITY_FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "square": torch.square,
    "absolute": torch.abs,
    "signed": torch.positive,
}


@dataclass(frozen=True)
class GradientTimesInput:
    """Gradient × input, R_i = x_i · ∂f/∂x_i (Shrikumar et al. 2016): Taylor decomposition at the root 0.

    >>> whence.explain(model, x, target=3, method="gradient_times_input").relevance

    The scores add up exactly, ΣR = f(x), where f(tx) = t f(x), as in ReLU networks without biases.
    """

    name: ClassVar[str] = "gradient_times_input"

    def explanations(self, task: Task) -> Iterator[Explanation]:
        return _gradient_explanations(self, task, torch.mul)


@dataclass(frozen=True)
class GuidedBackprop:
    """Guided backpropagation: each ReLU passes back only positive gradients, where it was active (Springenberg et al. 2015).

    >>> whence.explain(model, x, target=3, method=whence.GuidedBackprop()).relevance

    It recovers edges of the input rather than evidence for the output (Nie et al. 2018). Functions other than ReLU keep their
    gradient. `whence.explain` raises a `ModelError` for a network without a ReLU.
    """

    name: ClassVar[str] = "guided_backprop"

    def explanations(self, task: Task) -> Iterator[Explanation]:
        return _gradient_explanations(self, task, _second, lambda g, active: g.clamp(min=0) * active)


@dataclass(frozen=True)
class Deconvnet:
    """Deconvnet: each ReLU passes back only positive gradients, whether or not it was active (Zeiler and Fergus 2014).

    >>> whence.explain(model, x, target=3, method=whence.Deconvnet()).relevance

    Functions other than ReLU keep their gradient. `whence.explain` raises a `ModelError` for a network without a ReLU.
    """

    name: ClassVar[str] = "deconvnet"

    def explanations(self, task: Task) -> Iterator[Explanation]:
        return _gradient_explanations(self, task, _second, lambda g, active: g.clamp(min=0))


def input_gradients(task: Task, taps: LayerTaps | None = None) -> Iterator[Gradients]:
    """Yield the values and gradients at the inputs for each target."""
    scope, lookups = task.scope, task.lookups
    return _gradients(task, scope, ConstantParameters(scope, lookups), taps or task.taps())


class ReluBackwardMode(ConstantParameters):
    """Mode that replaces the gradient of ReLU by `back(g, active)` and leaves all other gradients unchanged."""

    def __init__(self, scope: ModuleTracker, lookups: EmbeddingLookups, back: RelevanceFunction):
        super().__init__(scope, lookups)
        self._back = back
        self.relus = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        x = args[0] if args else (kwargs or {}).get("input")
        if function_facts(function).name != "relu" or not isinstance(x, Tensor) or not x.requires_grad:
            return super().__torch_function__(function, types, args, kwargs)
        self.relus += 1
        before = x.detach()
        out: Any = ModifiedBackward.apply(before.relu, lambda g, active: (self._back(g, active),), lambda out: (out > 0,), x)
        in_place = overwrites(function_facts(function), kwargs or {})
        return x.copy_(out) if in_place or args[1:] == (True,) else out


def _gradients(task: Task, scope: ModuleTracker, mode: ConstantParameters, taps: LayerTaps) -> Iterator[Gradients]:
    scope.tap(taps.callbacks(mode.pin))
    return target_gradients(task, input_leaves(task.inputs), mode, taps, record_internals(task, scope))


def _gradient_explanations(
    method: object, task: Task, relevance: RelevanceFunction, relu_back: RelevanceFunction | None = None
) -> Iterator[Explanation]:
    scope = task.scope
    mode = ConstantParameters(scope, task.lookups) if relu_back is None else ReluBackwardMode(scope, task.lookups, relu_back)
    for found in _gradients(task, scope, mode, task.taps()):
        if isinstance(mode, ReluBackwardMode) and not mode.relus:
            name = type(method).__name__
            raise ModelError(f"{name} needs a model with ReLUs, and this one has none; use Sensitivity, or LRP for any network")
        scores = found.scores(relevance)
        account = Conservation(
            found.output,
            sum_relevance(scores, found.output.shape[0]),
            adds_up=isinstance(method, GradientTimesInput),
            conditional_output=found.conditional_output,
        )
        yield make_explanation(
            method, task, found.output, found.target, scores, account, found.at_layers(relevance), note=found.noted()
        )


def _second(value: Tensor, gradient: Tensor) -> Tensor:
    return gradient
