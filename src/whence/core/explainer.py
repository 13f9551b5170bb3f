"""The class `Explainer`, which explains one model many times, and the generator that all explanations come from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from whence.core.activation_checkpointing import offloaded_layers_checkpointed
from whence.core.argument_checks import check_arguments
from whence.core.columns import Column, as_columns, columns_of_frame
from whence.core.conditions import Condition, LayerPart, ThroughMapping, parse_conditions
from whence.core.detection import Detection
from whence.core.explanation import Explanation
from whence.core.inputs import Inputs, check_model
from whence.core.progress import Progress
from whence.core.region import Region
from whence.core.targets import Logit, Span, Target
from whence.core.texts import TextModel
from whence.core.trees import Tree
from whence.errors import InputError, ModelError, RuleError, SelectorError, TargetError, suggest, value_repr
from whence.graphs.automatic_replay import AutomaticReplay
from whence.graphs.replay import ReplayCache
from whence.lrp.engine.prepared_model import PreparedModel
from whence.lrp.torch_compat.module_tracker import named_layers
from whence.lrp.torch_compat.torch_patches import enter_all
from whence.methods.forward_backward import Task
from whence.methods.registry import SINGLE_GRAPH_METHODS, Method, check_single_graph, resolve_method

Names = Sequence[str] | Mapping[int, str]
RANDOM = "of a model that is random in eval mode (look for F.dropout without training=self.training)"
PICTURE_CHANNELS, SMALLEST_PICTURE = (3, 4), 8  # of pictures without a batch dimension


class Explainer:
    """An explainer of one model by one method, which caches everything that does not depend on the inputs.

    >>> explainer = whence.Explainer(model, method=whence.LRP(rules))
    >>> for x, y in loader:
    ...     e = explainer(x, target=y)

    The cache holds the rule of each module and the weights that rules modify, in up to three times the memory of the weights.
    Each call detects weights that were modified (by an optimiser, by `load_state_dict`, through `weight.data`), parameters or
    modules that were replaced, and a model in training mode.

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode.
        method: A method or its short name; LRP by default.
        class_names: Names of the outputs, for figures.
        feature_names: Names of features or channels, for figures; a dict by input where there are several inputs.
        tokenizer: The tokenizer of the model, for inputs that are texts, and for the names of tokens.
        capture: Whether to capture one graph of plain operators for each combination of input shapes, and to replay it, which
            is several times as fast where a network consists of many small functions. True captures it at the first
            explanation of a shape, which takes seconds, and raises `ModelError` if that is impossible, with the line of the
            model. "compile" compiles the graph by `torch.compile` as well, which takes up to a minute for each shape and needs
            a C++ compiler; the code is 1.2 to 2.4 times as fast as the graph. "auto" captures a graph after 100 explanations
            of the same shapes, and uses it if it is faster and gives the same numbers. Not for forward passes that read files,
            the clock or other state outside of the model, whose class or functions are replaced meanwhile, or that have
            effects which must happen each time. Integers and truth values that the model reads from its inputs are compared in
            each replay, and explained without the graph where they differ. On a CUDA device the graph is replayed as one CUDA
            graph, and the memory of a run stays allocated for each shape. Conditions `through` layers are not replayed.

    Raises:
        ModelError: The model is not callable.
        TrainingModeError: The model is in training mode.
        RuleError: There is no such method; or, with `capture`, the method cannot be captured as one graph.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        method: Method | str | None = None,
        *,
        class_names: Names = (),
        feature_names: Any = None,
        tokenizer: Any = None,
        capture: bool | Literal["auto", "compile"] = False,
    ):
        self._texts = TextModel.of(model, tokenizer, class_names)
        self.model, self.method = self._texts.model, resolve_method(method)
        self._default = self.method if method is None else None
        self._naming = DisplayNames(self._texts.class_names, feature_names)
        check_model(self.model)
        if capture not in (True, False, "auto", "compile"):
            raise RuleError(f"capture={value_repr(capture)}; choose True, False, 'auto' or 'compile'")
        if capture in (True, "compile"):
            check_single_graph(self.method)
        self._capture = capture
        self.forget()

    def __repr__(self) -> str:
        return f"Explainer({type(self.model).__name__}, method={self.method!r})"

    @check_arguments
    def __call__(
        self,
        inputs: Tree,
        target: Target = None,
        *,
        layers: Sequence[str] = (),
        through: ThroughMapping | None = None,
        progress: Progress = True,
    ) -> Explanation:
        """Compute an explanation, as `whence.explain` does.

        >>> explainer(x, target=3)

        Args:
            inputs: Tensor `[N, …]`, or a tuple or dict of tensors.
            target: Target as for `whence.explain`.
            layers: Module paths whose outputs' relevance is returned too.
            through: Condition as for `whence.explain`.
            progress: Whether to show a progress bar, or a function that is called with (done, total) instead.

        Returns:
            An `Explanation`.

        Raises:
            WhenceError: As `whence.explain`.
        """
        check_single_condition(through)
        check_model(self.model)
        inputs, target = self._texts.read(inputs), self._texts.target(target)
        given = Inputs.of(inputs).detached()
        if any(now is not then for now, then in zip((self.model, self.method), self._captured, strict=True)):
            self.forget()
        found = None if through is not None else self._replayed(given, target, tuple(layers), progress)
        found = single_explanation(self._without_graph(given, [target], layers, through, progress)) if found is None else found
        return self._texts.named(found)

    def targets(
        self,
        inputs: Tree,
        targets: Sequence[Target],
        *,
        layers: Sequence[str] = (),
        through: ThroughMapping | Sequence[ThroughMapping] | None = None,
        progress: Progress = True,
    ) -> list[Explanation]:
        """Compute explanations of several targets of the same inputs, as `whence.explain_targets` does.

        >>> cat, dog = explainer.targets(x, [281, 207])

        Args:
            inputs: Tensor `[N, …]`, or a tuple or dict of tensors.
            targets: List of targets, each as for `whence.explain`.
            layers: Module paths whose outputs' relevance is returned too.
            through: Condition as for `whence.explain`, or a list of them.
            progress: Whether to show a progress bar, or a function that is called with (done, total) instead.

        Returns:
            List of `Explanation`, by target, and for each target by condition.

        Raises:
            WhenceError: As `whence.explain`.
        """
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
        """Yield the explanations of several targets one at a time, so that only one is held in memory.

        >>> for e in explainer.iter_targets(x, range(1000)):
        ...     e.relevance

        Args:
            inputs: Tensor `[N, …]`, or a tuple or dict of tensors.
            targets: List of targets, each as for `whence.explain`.
            layers: Module paths whose outputs' relevance is returned too.
            through: Condition as for `whence.explain`, or a list of them.
            progress: Whether to show a progress bar, or a function that is called with (done, total) instead.

        Returns:
            Iterator of `Explanation`, by target, and for each target by condition.

        Raises:
            WhenceError: As `whence.explain`.
        """
        check_model(self.model)
        inputs, targets = self._texts.read(inputs), self._texts.targets(targets)
        return map(self._texts.named, self._without_graph(inputs, targets, layers, through, progress))

    def forget(self) -> None:
        """Clear the caches of everything computed from weights; they are filled again when needed."""
        self._prepared = PreparedModel(self.model, lasting=True)
        self._captured = (self.model, self.method)
        self._captures = ReplayCache(self.model, self._capture == "compile") if self._capture in (True, "compile") else None
        automatic = self._capture == "auto" and isinstance(self.method, SINGLE_GRAPH_METHODS)
        self._automatic = AutomaticReplay(self.model) if automatic else None

    def _without_graph(
        self, inputs: "Tree | Inputs", targets: Sequence[Target], layers: Sequence[str], through: Any, progress: Progress
    ) -> Iterator[Explanation]:
        prepared = self._prepared.up_to_date()
        given = inputs if isinstance(inputs, Inputs) else Inputs.of(inputs).detached()
        method = self._texts.method(None if self.method is self._default else self.method, given)
        return explanations(prepared, method, given, targets, layers, progress, self._naming, through)

    def _replayed(self, inputs: Inputs, target: Target, layers: tuple[str, ...], progress: Progress) -> Explanation | None:
        """Return the explanation by a graph, or None."""

        def explained(inputs: Tree, target: Target) -> Explanation:
            prepared = PreparedModel(self.model)
            given = Inputs.of(inputs).detached()
            return single_explanation(explanations(prepared, self.method, given, [target], layers, False, self._naming))

        def without_graph() -> Explanation:
            return single_explanation(self._without_graph(inputs, [target], layers, None, progress))

        if self._captures is not None:
            return self._captures(explained, inputs, target, layers)
        return None if self._automatic is None else self._automatic(explained, without_graph, inputs, target, layers)


def explanations(
    prepared: PreparedModel,
    method: Method,
    given: Inputs,
    targets: Sequence[Target],
    layers: Sequence[str],
    progress: Progress,
    naming: "DisplayNames",
    through: ThroughMapping | Sequence[ThroughMapping] | None = None,
) -> Iterator[Explanation]:
    """Return an iterator over the explanations of a checked model, by target and then by condition."""
    if isinstance(targets, int | str | Tensor | Logit | Span | Region | Detection) or callable(targets):
        raise TargetError(f"targets must be a list of targets that explain() accepts, got {value_repr(targets)}")
    named = tuple(named_layers(prepared.model, layers)) if layers else ()
    task = Task(prepared, given, list(targets), named, _resolve_conditions(prepared.model, through), progress)
    found = _with_notes(naming.named(method.explanations(task), given), task)
    return _within_modes(found, prepared)


def single_explanation(explanations: Iterator[Explanation]) -> Explanation:
    """Return the explanation of a single target.

    The iterator runs to its end: an interrupt while Python frees a suspended generator would be lost.
    """
    (found,) = explanations
    return found


def check_single_condition(through: Any) -> None:
    """Raise `SelectorError` if `through` is not a single condition."""
    if through is not None and not isinstance(through, Mapping):
        raise SelectorError(
            f"through={value_repr(through)}: expected one dict from layers to parts; explain_targets(…, through=[…]) takes "
            "several"
        )


def _resolve_conditions(model: Any, through: ThroughMapping | Sequence[ThroughMapping] | None) -> tuple[Condition, ...]:
    """Return the conditions with patterns expanded to layer names; where two patterns match one layer, both apply."""
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
    """Names of classes and features for figures."""

    classes: Names = ()
    features: Any = None  # a list for a single input, or a dict by input

    def named(self, explanations: Iterator[Explanation], inputs: Inputs) -> Iterator[Explanation]:
        """Yield the explanations with these names, or else with the column names of a data frame."""
        columns = self._by_input(inputs)
        names = {name: [column.name for column in of_input] for name, of_input in columns.items()}
        known = {name: of_input for name, of_input in columns.items() if any(c.feature or c.categories for c in of_input)}
        for explanation in explanations:
            classes = self._class_names() or explanation.class_names
            yield replace(explanation, class_names=classes, feature_names=names, columns=known)

    def _class_names(self) -> Names:
        if isinstance(self.classes, Mapping):
            return {int(i): str(name) for i, name in self.classes.items()}
        return list(map(str, self.classes))

    def _by_input(self, inputs: Inputs) -> dict[str, list[Column]]:
        names = dict(zip(inputs.labels, inputs.parts, strict=True))
        of_frame = inputs.features if inputs.table is None else columns_of_frame(inputs.table)
        given = of_frame if self.features is None else self.features
        by_input = given if isinstance(given, Mapping) else {next(iter(names)): given} if given is not None else {}
        own = None if inputs.features is None else list(map(str, inputs.features))
        columns = {name: as_columns(features, own) for name, features in by_input.items()}
        for name, features in columns.items():
            if name not in names:
                raise InputError(f"feature_names has a key {name!r} that is not an input{suggest(name, names)}")
            shape = tuple(getattr(names[name], "shape", ()))
            series = len(shape) == 3 and len(features) == shape[2]  # [N, T, C], with the time first
            if len(shape) < 2 or (len(features) != shape[1] and not series):
                raise InputError(
                    f"got {len(features)} feature_names for an input of shape {shape}; expected one per column (dimension 1), "
                    "or per channel of a series [N, T, C] (dimension 2)"
                )
        return columns


def _within_modes(explanations: Iterator[Explanation], prepared: PreparedModel) -> Iterator[Explanation]:
    """Compute explanations outside of inference mode, so that they can be differentiated later on.

    Where weights are offloaded, those of one layer are in memory at a time. The user's code between two explanations runs
    without these modes.
    """
    while True:
        streamed = [offloaded_layers_checkpointed(prepared.model)] if prepared.offloaded else []
        with enter_all(torch.inference_mode(False), *streamed):
            explanation = next(explanations, None)
        if explanation is None:
            return
        yield explanation


def _with_notes(explanations: Iterator[Explanation], task: Task) -> Iterator[Explanation]:
    """Note that a model is random, where computing its explanations drew from torch's default generators, or what samples are.

    Methods draw from generators of their own.
    """
    before, notes, of_samples = _random_states(), [], None
    for explanation in explanations:
        if RANDOM not in notes and not all(map(torch.equal, before, _random_states())):
            notes.append(RANDOM)
        of_samples = _note_on_samples(task, explanation.output.shape[0]) if of_samples is None else of_samples
        yield replace(explanation, note=", ".join(filter(None, [explanation.note, of_samples, *notes])))
        before = _random_states()  # the caller may have drawn numbers meanwhile


def _note_on_samples(task: Task, count: int) -> str:
    """Return a note where dimension 0 of the inputs may not be what the model takes for samples, or an empty string."""
    inputs = task.inputs
    if not isinstance(count, int) or not isinstance(inputs.batch_size, int):  # a symbolic size, while a graph is traced
        return ""
    if count == 1 < inputs.batch_size and not inputs.whole:
        return f"one output for all {inputs.batch_size} rows of the input"
    x = inputs.parts[inputs.explained[0]] if inputs.single and inputs.explained else None
    like_picture = x is not None and x.dim() == 3 and len(x) in PICTURE_CHANNELS and min(x.shape[1:]) >= SMALLEST_PICTURE
    if x is None or not (like_picture or x.dim() == 1) or not 1 < len(x) == count:
        return ""
    try:
        with torch.no_grad():
            inputs.of_samples(torch.tensor([0])).run(task.model)
    except ModelError:
        return (
            f"the model cannot run on one of the {count} samples alone: if the input is a single sample, give it and the "
            "outputs a batch dimension, x[None]"
        )
    return ""


def _random_states() -> list[Tensor]:
    """Return the states of the random generators that a model's forward pass draws from by default."""
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *of_gpus]
