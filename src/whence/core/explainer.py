"""A model made ready to be explained many times."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from whence.core.conditions import Condition, LayerPart, ThroughMapping, parse_conditions
from whence.core.explanation import Explanation
from whence.core.inputs import Inputs, check_model
from whence.core.progress import Progress
from whence.core.targets import Logit, Span, Target
from whence.core.trees import Tree
from whence.errors import InputError, SelectorError, TargetError, suggest
from whence.graphs.replay import ReplayCache
from whence.lrp.engine.prepared_model import PreparedModel
from whence.lrp.torch_compat.module_tracker import named_layers
from whence.methods.forward_backward import Task
from whence.methods.registry import Method, check_single_graph, resolve_method

Names = Sequence[str] | Mapping[int, str]


class Explainer:
    """`explain` for one model and method, prepared: what no input changes is made once.

    >>> explainer = whence.Explainer(model, method=whence.LRP(rules))
    >>> for x, y in loader:
    ...     e = explainer(x, target=y)

    It keeps which rule holds where, and the weights that rules modify, in up to three times the memory of the weights. At each
    call it notices a weight that was overwritten (by an optimiser, by `load_state_dict`), a parameter or module that was
    exchanged, a model put in training mode. What is written to `weight.data` goes unseen, as it does by autograd: call
    `forget()` after it.

    With `capture`, explanations of inputs of the same shapes are replayed from one graph of plain operators, which the first
    of them writes (in seconds): several times as fast where a network is made of many small functions. On a CUDA device all of
    it is launched at once, and the memory of a run is kept for each shape. Decisions that the network's code takes by values of
    inputs are refused by name, and conditions `through` layers are not replayed.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        method: Method | str | None = None,
        *,
        class_names: Names = (),
        feature_names: Any = None,
        capture: bool = False,
    ):
        self.model, self.method = model, resolve_method(method)
        self._naming = DisplayNames(class_names, feature_names)
        check_model(model)
        if capture:
            check_single_graph(self.method)
        self._prepared, self._captures = PreparedModel(model, lasting=True), ReplayCache(model) if capture else None

    def __repr__(self) -> str:
        return f"Explainer({type(self.model).__name__}, method={self.method!r})"

    def __call__(
        self,
        inputs: Tree,
        target: Target = None,
        *,
        layers: Sequence[str] = (),
        through: ThroughMapping | None = None,
        progress: Progress = True,
    ) -> Explanation:
        """As `whence.explain`, without the model."""
        check_single_condition(through)
        if self._captures is not None and through is None:
            check_model(self.model)
            replayed = self._captures(
                partial(self._once, layers=tuple(layers)), Inputs.of(inputs).detached(), target, tuple(layers)
            )
            if replayed is not None:
                return replayed
        return next(self.iter_targets(inputs, [target], layers=layers, through=through, progress=progress))

    def targets(
        self,
        inputs: Tree,
        targets: Sequence[Target],
        *,
        layers: Sequence[str] = (),
        through: ThroughMapping | Sequence[ThroughMapping] | None = None,
        progress: Progress = True,
    ) -> list[Explanation]:
        """As `whence.explain_targets`, without the model."""
        return list(self.iter_targets(inputs, targets, layers=layers, through=through, progress=progress))

    def iter_targets(
        self,
        inputs: Tree,
        targets: Sequence[Target],
        *,
        layers: Sequence[str] = (),
        through: ThroughMapping | Sequence[ThroughMapping] | None = None,
        progress: Progress = True,
    ) -> Iterator[Explanation]:
        """Yield the explanations of `targets` one at a time, so that only one is held in memory."""
        check_model(self.model)
        prepared = self._prepared.up_to_date()
        return explanations(prepared, self.method, inputs, targets, layers, progress, self._naming, through)

    def forget(self) -> None:
        """Let go of all that was made of weights; it is made anew when needed."""
        self._prepared = PreparedModel(self.model, lasting=True)
        self._captures = None if self._captures is None else ReplayCache(self.model)

    def _once(self, inputs: Tree, target: Target, layers: Sequence[str]) -> Explanation:
        return next(explanations(PreparedModel(self.model), self.method, inputs, [target], layers, False, self._naming))


def explanations(
    prepared: PreparedModel,
    method: Method,
    inputs: Tree,
    targets: Sequence[Target],
    layers: Sequence[str],
    progress: Progress,
    naming: "DisplayNames",
    through: ThroughMapping | Sequence[ThroughMapping] | None = None,
) -> Iterator[Explanation]:
    """One explanation for each target, and for each condition where there are some, of a checked model."""
    if isinstance(targets, int | str | Tensor | Logit | Span) or callable(targets):
        raise TargetError(f"targets must be a list, each entry a target as for explain(), not {targets!r}")
    named = tuple(named_layers(prepared.model, layers)) if layers else ()
    given = Inputs.of(inputs).detached()
    task = Task(prepared, given, list(targets), named, _resolve_conditions(prepared.model, through), progress)
    return _without_inference_mode(naming.named(method.explanations(task), given))


def check_single_condition(through: Any) -> None:
    """Raise where several are given for one explanation."""
    if through is not None and not isinstance(through, Mapping):
        raise SelectorError(
            f"through={through!r}; give one mapping of layers, or several conditions to explain_targets(…, through=[…])"
        )


def _resolve_conditions(model: Any, through: ThroughMapping | Sequence[ThroughMapping] | None) -> tuple[Condition, ...]:
    """With every layer under its own name; what two patterns say of one layer holds both."""
    found = []
    for condition in parse_conditions(through):
        units: dict[str, tuple[LayerPart, ...]] = {}
        for pattern, chosen in condition.units.items():
            for name in named_layers(model, [pattern]):
                units[name] = units.get(name, ()) + chosen
        found.append(Condition(units))
    return tuple(found)


@dataclass(frozen=True)
class DisplayNames:
    """What classes and features are called in pictures."""

    classes: Names = ()
    features: Any = None  # of the one input, or by input

    def named(self, explanations: Iterator[Explanation], inputs: Inputs) -> Iterator[Explanation]:
        """The same under these names, or those that the inputs brought along."""
        features = self._by_input(inputs)
        for explanation in explanations:
            yield replace(explanation, class_names=self._class_names() or explanation.class_names, feature_names=features)

    def _class_names(self) -> Names:
        if isinstance(self.classes, Mapping):
            return {int(i): str(name) for i, name in self.classes.items()}
        return list(map(str, self.classes))

    def _by_input(self, inputs: Inputs) -> dict[str, list[str]]:
        names = dict(zip(inputs.labels, inputs.parts, strict=True))
        given = inputs.features if self.features is None else self.features
        by_input = given if isinstance(given, Mapping) else {next(iter(names)): given} if given is not None else {}
        for name, features in by_input.items():
            if name not in names:
                raise InputError(f"feature_names of {name!r}, which is none of the inputs{suggest(name, names)}")
            shape = tuple(getattr(names[name], "shape", ()))
            if len(shape) < 2 or len(features) != shape[1]:
                raise InputError(f"{len(features)} feature_names for an input of shape {shape}; give one a column")
        return {name: list(map(str, features)) for name, features in by_input.items()}


def _without_inference_mode(explanations: Iterator[Explanation]) -> Iterator[Explanation]:
    """What is made in inference mode cannot be differentiated later on."""
    while True:
        with torch.inference_mode(False):
            explanation = next(explanations, None)
        if explanation is None:
            return
        yield explanation
