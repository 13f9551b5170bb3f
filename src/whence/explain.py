"""explain(): model + input + target + method -> Explanation."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from whence.errors import RuleError, TargetError
from whence.explanation import Explanation
from whence.inputs import Inputs, Nest, check_model
from whence.lrp.scope import named_layers
from whence.methods.cams import GradCAM, LayerCAM
from whence.methods.gradients import Deconvnet, GradientTimesInput, GuidedBackprop, Sensitivity
from whence.methods.lrp import LRP
from whence.methods.passes import Task
from whence.methods.paths import IntegratedGradients
from whence.methods.perturbation import RISE, FeatureAblation, Occlusion
from whence.methods.shapley import Shapley
from whence.methods.smoothing import SmoothGrad
from whence.methods.taylor import SimpleTaylor
from whence.progress import Progress
from whence.targets import Logit, Span, Target


class Method(Protocol):
    """A way to explain: a frozen dataclass with a short name."""

    name: ClassVar[str]

    def explanations(self, task: Task) -> Iterator[Explanation]:
        """One explanation for each target of the task."""
        ...


METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (LRP, GradientTimesInput, Sensitivity, IntegratedGradients, SmoothGrad, GuidedBackprop, Deconvnet, GradCAM,
                   LayerCAM, SimpleTaylor, Occlusion, FeatureAblation, RISE, Shapley)
}  # fmt: skip


def explain(
    model: Callable[..., Any],
    inputs: Nest,
    target: Target = None,
    *,
    method: Method | str | None = None,
    layers: Sequence[str] = (),
    progress: Progress = True,
) -> Explanation:
    """Why this output? Relevance of every input feature for the target output of each sample.

    >>> e = whence.explain(model, x, target=483)
    >>> e.relevance          # like x
    >>> e.conservation       # output = relevance + absorbed, to rounding

    `model` is any callable made of torch functions, in eval mode if it is a module; it is left as it was. `inputs` is a
    tensor `[N, …]`, a tuple of them, or a dict that is passed as keyword arguments; token ids `[N, T]` get a score each.
    `target` is None (the arg max), a class, one class a sample, a `Logit` (of a token at a position, rather than another)
    or `Span` of a text, or a function from outputs to `[N]`. `method` is a method or its short name; LRP with rules that
    fit most networks (`presets.attn_lrp()`) if not given. `layers` names modules whose outputs' relevance is wanted too,
    with * for any one part of a path: "model.layers.*". Methods that take seconds show a bar; `progress` False shows none, and
    a function is told (done, total) instead.

    Raises `whence.errors.WhenceError`; never returns an explanation it knows to be wrong.
    """
    return next(explain_targets(model, inputs, [target], method=method, layers=layers, progress=progress))


def explain_targets(
    model: Callable[..., Any],
    inputs: Nest,
    targets: Sequence[Target],
    *,
    method: Method | str | None = None,
    layers: Sequence[str] = (),
    progress: Progress = True,
) -> Iterator[Explanation]:
    """Explanations of several targets of the same inputs: one forward pass for all, one backward pass each.

    >>> cat, dog = whence.explain_targets(model, x, targets=[281, 207])
    """
    check_model(model)
    if isinstance(targets, int | str | Tensor | Logit | Span) or callable(targets):
        raise TargetError(f"targets must be a list, each entry a target as for explain(), not {targets!r}")
    task = Task(model, Inputs.of(inputs).detached(), list(targets), tuple(named_layers(model, layers)), progress)
    return _outside_of_inference_mode(named(method).explanations(task))


def _outside_of_inference_mode(explanations: Iterator[Explanation]) -> Iterator[Explanation]:
    """What is made in inference mode cannot be differentiated later on."""
    while True:
        with torch.inference_mode(False):
            explanation = next(explanations, None)
        if explanation is None:
            return
        yield explanation


def named(method: Method | str | None) -> Method:
    """The method itself, by its short name, or the default."""
    if method is None:
        return LRP()
    if isinstance(method, str):
        if method not in METHODS:
            raise RuleError(f"no method {method!r}; choose from {', '.join(METHODS)}")
        return METHODS[method]()
    if not hasattr(method, "explanations"):
        raise RuleError(f"{method!r} is no method; pass one such as whence.LRP() or a name: {', '.join(METHODS)}")
    if isinstance(method, type):
        raise RuleError(f"{method.__name__} is a class; write {method.__name__}()")
    return method
