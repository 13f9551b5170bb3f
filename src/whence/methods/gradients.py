"""Methods made of plain gradients: sensitivity analysis and gradient × input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from whence.explanation import Explanation
from whence.lrp.conservation import Conservation
from whence.lrp.lookups import Lookups
from whence.lrp.mode import ConstantParameters
from whence.lrp.scope import Scope
from whence.methods.passes import Taps, Task, explanation, gradients, leaves, summed


@dataclass(frozen=True)
class Sensitivity:
    """Squared partial derivatives, R_i = (∂f/∂x_i)²: what changes the output most, not what made it
    (Simonyan et al. 2014; Montavon et al. 2018, eq. 4).

    >>> whence.explain(model, x, target=3, method=whence.Sensitivity()).relevance

    ΣR is the squared norm of the gradient, in (output / input)²; it does not add up to the output.
    """

    name: ClassVar[str] = "sensitivity"

    def explanations(self, task: Task) -> Iterator[Explanation]:
        return _plain(self, task, lambda value, gradient: gradient.square())


@dataclass(frozen=True)
class GradientTimesInput:
    """R_i = x_i · ∂f/∂x_i (Shrikumar et al. 2016): Taylor decomposition at the root 0.

    >>> whence.explain(model, x, target=3, method="gradient_times_input").relevance

    Exact, ΣR = f(x), where f(tx) = t f(x): ReLU networks without biases.
    """

    name: ClassVar[str] = "gradient_times_input"

    def explanations(self, task: Task) -> Iterator[Explanation]:
        return _plain(self, task, lambda value, gradient: value * gradient)


def _plain(method, task: Task, relevance) -> Iterator[Explanation]:
    taps, lookups = Taps(task.layers), Lookups(task.inputs.ids)
    scope = Scope(task.model)
    mode = ConstantParameters(scope, lookups)
    scope.tap(taps.callbacks(mode.pin))
    for found in gradients(task, leaves(task.inputs), lookups, (scope, mode), taps):
        scores = found.scores(relevance)
        conservation = Conservation(found.output, summed(scores))
        yield explanation(method, task, found, scores, found.at_layers(relevance), conservation)
