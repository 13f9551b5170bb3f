"""One forward pass and one backward pass for each target, or output values alone: the basis of all methods."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.checkpoint import CheckpointError

from whence.core.conditions import Condition
from whence.core.diagnosis import AS_TENSOR
from whence.core.explanation import Explanation
from whence.core.forward_record import ForwardRecord, InternalTarget
from whence.core.image_patches import PatchLayout
from whence.core.inputs import Inputs
from whence.core.progress import Progress
from whence.core.targets import Target, reads_outputs, repeat_target, select
from whence.errors import InputError, ModelError, RuleError, first_line
from whence.lrp.engine.conservation import Conservation, batch_dot, batch_sum, sum_by_sample
from whence.lrp.engine.embeddings import AlterLookup, EmbeddingLookups
from whence.lrp.engine.function_mode import ConstantParameters
from whence.lrp.engine.prepared_model import PreparedModel
from whence.lrp.torch_compat.deferred_checks import check_holds
from whence.lrp.torch_compat.module_tracker import ModuleTracker, named_layers
from whence.lrp.torch_compat.torch_patches import enter_all


@dataclass(frozen=True)
class Task:
    """A validated request for explanations: model, inputs, targets and layers, ready for any method."""

    prepared: PreparedModel
    inputs: Inputs
    targets: Sequence[Target]
    layers: tuple[str, ...] = ()
    through: tuple[Condition, ...] = ()  # one explanation for each target and condition; empty: unconditional
    progress: Progress = True
    alter: AlterLookup | None = None  # modifies the embeddings looked up for token ids
    rows_are_independent: bool | None = None  # whether the output of a sample depends on it alone; None: not known

    @property
    def model(self) -> Callable[..., Any]:
        return self.prepared.model

    @property
    def scope(self) -> ModuleTracker:
        """A new module tracker for one forward pass."""
        return ModuleTracker(self.prepared.outline)

    @property
    def lookups(self) -> EmbeddingLookups:
        return EmbeddingLookups(self.inputs.ids, self.alter)

    def moved(
        self, times: int, parts: dict[int, Tensor], targets: Sequence[Target] | None = None, alter: AlterLookup | None = None
    ) -> "Task":
        """Return the task for the samples repeated `times` times at other points, without progress or inner layers.

        `targets` are those of one round, with their indices resolved.
        """
        if self.alter is not None and (alter is not None or times > 1):
            raise RuleError("two methods that perturb token embeddings cannot be nested; use one of them")
        asked = [repeat_target(target, times) for target in (self.targets if targets is None else targets)]
        inputs = self.inputs.repeated(times, parts)
        return replace(self, inputs=inputs, targets=asked, layers=(), through=(), progress=False, alter=alter or self.alter)


def explaining_rows_together(task: Task, outputs: Iterable[Tensor]) -> Task:
    """Return the task of one sample if each target has a single value for all rows (edges, the nodes of a graph)."""
    single = all(len(output) == 1 < task.inputs.batch_size for output in outputs)
    return replace(task, inputs=task.inputs.as_one_sample()) if single else task


ValueAndGradient = tuple[Tensor, Tensor]  # a value and the gradient at that value


@dataclass(frozen=True)
class Gradients:
    """The result of one backward pass: the explained output, and values and gradients at inputs, embeddings and layers."""

    output: Tensor  # [N]
    target: Any
    inputs: dict[int, ValueAndGradient]
    lookups: EmbeddingLookups
    looked_up: list[ValueAndGradient]
    layers: dict[str, list[ValueAndGradient]]
    extras: list[Tensor]
    flow: "ConditionalFlow | None" = None  # the relevance that passes the condition, if there is one

    @property
    def conditional_output(self) -> Tensor | None:
        """The part of the output that flows through the condition, `[N]`; None without a condition."""
        return None if self.flow is None else self.flow.amount

    def noted(self, note: str = "") -> str:
        """Return the note with the condition appended, where there is one."""
        return ", ".join(filter(None, [note, "" if self.flow is None else f"through {self.flow.condition}{self.flow.note}"]))

    def scores(self, relevance: Callable[[Tensor, Tensor], Tensor]) -> dict[int, Tensor]:
        """Return the relevance of every explained input: shaped like the input, or one score for each token id."""
        return self.at_inputs(relevance) | self.lookups.scores(self.at_lookups(relevance))

    def at_inputs(self, relevance: Callable[[Tensor, Tensor], Tensor]) -> dict[int, Tensor]:
        """Return the relevance of the explained floating-point inputs, including what is stored in `extras`."""
        found = {i: relevance(*pair) for i, pair in self.inputs.items()}
        beside = zip(found, self.extras, strict=False)
        return found | {i: found[i] + written for i, written in beside}

    def at_lookups(self, relevance: Callable[[Tensor, Tensor], Tensor], beside: Sequence[int] = ()) -> list[Tensor]:
        """Return the relevance of the embeddings, in at least float32 so that sums over an embedding do not lose digits.

        `beside` numbers the embeddings to which the remaining `extras` are added.
        """
        wide = [(v.float(), g.float()) if v.dtype.itemsize < 4 else (v, g) for v, g in self.looked_up]
        found = [relevance(*pair) for pair in wide]
        for number, written in zip(beside, self.extras[len(self.inputs) :], strict=True):
            found[number] = found[number] + written.reshape(found[number].shape)
        return found

    def at_layers(self, relevance: Callable[[Tensor, Tensor], Tensor]) -> dict[str, list[Tensor]]:
        """Return the relevance at every call of the tapped layers."""
        return {name: [relevance(*pair) for pair in calls] for name, calls in self.layers.items()}


@dataclass(frozen=True)
class ConditionalFlow:
    """The relevance that flows through the units of layers that a condition selects."""

    condition: Condition
    amount: Tensor  # [N]
    layers: frozenset[str]  # layers at which conditional relevance is defined: those that run before the units
    note: str = ""


@dataclass
class LayerTaps:
    """Hooks that record values and gradients at named layers."""

    names: tuple[str, ...]
    reading: ForwardRecord | None = None  # knows the channel dimension of the layers
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)
    edges: dict[str, list[GradientEdge]] = field(default_factory=dict)  # where a backward pass can end or start

    @classmethod
    def of(cls, task: Task) -> "LayerTaps":
        """Return taps at all layers that the task requests or conditions on."""
        conditional = {layer: None for condition in task.through for layer in condition.layers}
        layers = named_layers(task.model, tuple(conditional))
        reading = ForwardRecord.of_layers(task.inputs, layers, task.model) if conditional else None
        return cls(tuple(dict.fromkeys((*task.layers, *conditional))), reading)

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

    def read(self, only: Sequence[str] | None = None) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Return value and gradient of each call of each layer, or of the layers `only`, and reset the gradients."""
        missing = [name for name in self.names if name not in self.values]
        if missing:
            raise ModelError(f"layer '{missing[0]}' was not called in the forward pass, so it has no relevance")
        names = [name for name in self.values if only is None or name in only]
        result = {name: list(zip(self.values[name], self.gradients[name], strict=True)) for name in names}
        for name, gradients in self.gradients.items():
            gradients[:] = [torch.zeros_like(v) for v in self.values[name]]
        return result

    def channels_at(self, name: str) -> int:
        """Return the channel dimension of a layer."""
        assert self.reading is not None
        return replace(self.reading, layers={name: self.values[name][0]}).channels_at(name)

    def before(self, name: str) -> frozenset[str]:
        """Return this layer and all layers that finished before it."""
        order = list(self.values)
        return frozenset(order[: order.index(name) + 1])


def input_leaves(inputs: Inputs) -> list[Tensor]:
    """Return the explained inputs as leaves of a new autograd graph, without modifying the user's tensors."""
    return [inputs.parts[i].detach().requires_grad_() for i in inputs.explained]


def target_values(task: Task) -> list[tuple[Tensor, Any]]:
    """Compute the explained output `[N]` of each target without gradients, and the target with its indices resolved."""
    lookups, scope = task.lookups, None
    contexts: list[AbstractContextManager] = []
    if task.alter is not None or any(isinstance(target, InternalTarget) for target in task.targets):
        scope = task.scope
        contexts = [scope, ConstantParameters(scope, lookups)]
    reading = None if scope is None else record_internals(task, scope)
    given = task.inputs.copied() | lookups.given
    with enter_all(torch.no_grad(), *contexts):
        outputs = task.inputs.call(task.model, tuple(given.values()))
        found = [select(outputs, target, task.inputs, reading) for target in task.targets]
    for value, _ in found:
        _check_finite(value)
    return found


def record_internals(task: Task, scope: ModuleTracker, see: Callable[[Tensor], None] = lambda kept: None) -> ForwardRecord:
    """Return the record that internal targets read from in the next forward pass; `see` is called with the copies it holds."""
    names = [layer for target in task.targets if isinstance(target, InternalTarget) for layer in target.layers]
    layers = named_layers(task.model, names)
    reading = ForwardRecord.of_layers(task.inputs, layers, task.model)

    def tap(name: str, out: Tensor) -> None:
        reading.layers[name] = kept = out.clone()  # a later layer may modify it in place
        see(kept)

    scope.tap({name: partial(tap, name) for name in layers})
    return reading


def target_gradients(
    task: Task,
    sources: list[Tensor],
    lookups: EmbeddingLookups,
    contexts: tuple[AbstractContextManager, ...],
    taps: LayerTaps,
    reading: ForwardRecord,
    extras: Sequence[Tensor] = (),
    blocked: Callable[[], str] = lambda: "",
    shown: Callable[[Any], Any] = lambda outputs: outputs,
    from_the_middle: Callable[[], AbstractContextManager] = nullcontext,
    with_gradient: Callable[[Tensor], Tensor] = lambda value: value,
) -> Iterator[Gradients]:
    """Run one forward pass within `contexts` and yield each target's gradients at `sources`, embeddings and `extras`.

    With conditions, yield the gradients of the conditional flow for each target and condition. `blocked` returns the part of
    the error message that names the likely break in the path from input to output; `shown` maps the outputs to those that
    classes are selected from, and `with_gradient` the selected values to those that are explained; `from_the_middle` is
    entered for backward passes that start at an intermediate layer.
    """
    inputs = task.inputs
    if inputs.arrays:
        if isinstance(task.model, nn.Module):
            raise InputError(f"the input is a NumPy array; {AS_TENSOR}")
        raise RuleError(
            "NumPy functions have no gradients; use whence.Shapley(), whence.Occlusion() or whence.FeatureAblation()"
        )
    with enter_all(gradients_enabled(), *contexts):
        copies = {i: source.clone() for i, source in zip(inputs.explained, sources, strict=True)}
        given = inputs.copied() | copies | lookups.given
        outputs = inputs.call(task.model, tuple(given.values()))
    vectors = [lookup.vectors for lookup in lookups.found]
    if not sources and not vectors:
        raise InputError(
            "nothing to explain: no integer input was looked up in an embedding table; pass images as floating-point tensors"
        )
    ends = BackwardTargets(dict(zip(inputs.explained, sources, strict=True)), vectors, list(extras))
    for last, target in _mark_last(task.targets):
        with enter_all(gradients_enabled(), *contexts):
            values, resolved = select(shown(outputs) if reads_outputs(target) else outputs, target, inputs, reading)
            values = with_gradient(values)
        _check_output(values, blocked)
        found = backward(values, ends.all, keep_graph=bool(task.through) or not last)
        if not task.through:
            yield ends.read(found, values, resolved, lookups, taps.read())
            continue
        descending = ConditionalBackward(taps.read(), taps, ends.all, values.shape[0], from_the_middle)
        for condition in task.through:
            found, flow = descending.through(condition)
            _check_known(task.layers, flow)
            yield ends.read(found, values, resolved, lookups, taps.read(task.layers), flow)


@dataclass(frozen=True)
class BackwardTargets:
    """The tensors at which a backward pass ends: the explained inputs by number, the embeddings, and extra tensors."""

    inputs: dict[int, Tensor]
    vectors: list[Tensor]
    extras: list[Tensor]

    @property
    def all(self) -> list[Tensor]:
        return [*self.inputs.values(), *self.vectors, *self.extras]

    def read(
        self,
        gradients: list[Tensor],
        output: Tensor,
        target: Any,
        lookups: EmbeddingLookups,
        layers: dict[str, list[ValueAndGradient]],
        flow: ConditionalFlow | None = None,
    ) -> Gradients:
        """Return the gradients sorted by kind of target."""
        rest = iter(gradients)
        inputs = {i: (source.detach(), next(rest)) for i, source in self.inputs.items()}
        looked_up = [(v.detach(), next(rest)) for v in self.vectors]
        return Gradients(output.detach(), target, inputs, lookups, looked_up, layers, list(rest), flow)


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Enable gradients, even within the caller's `no_grad` or `inference_mode`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class ConditionalBackward:
    """Backward passes under one condition after another, all starting from the same unconditional backward pass.

    The steps from the top that a condition shares with the previous one are not computed again.
    """

    def __init__(
        self,
        whole: dict[str, list[ValueAndGradient]],
        taps: LayerTaps,
        ends: list[Tensor],
        count: int,
        from_the_middle: Callable[[], AbstractContextManager],
    ):
        self._whole, self._taps, self._ends, self._count = whole, taps, ends, count
        self._from_the_middle = from_the_middle
        self._steps: list[tuple[str, Any, Tensor]] = []  # layers from the top, their selected units, and the gradient there

    def through(self, condition: Condition) -> tuple[list[Tensor], ConditionalFlow]:
        """Return the gradients at the ends for the relevance that flows through the selected units of all layers.

        It starts at the layer that ran last: its gradient, restricted to its units, is propagated to the layer before, then
        restricted to the units of that layer, and so on.
        """
        order = [name for name in reversed(self._taps.values) if name in condition.layers]
        wanted = [(name, condition.units[name]) for name in order]
        shared = 0
        for (name, units, _), step in zip(self._steps, wanted, strict=False):
            if (name, units) != step:
                break
            shared += 1
        del self._steps[shared:]
        for name, units in wanted[shared:]:
            self._steps.append((name, units, self._kept(condition, name)))
        name, _, g = self._steps[-1]
        (a, whole) = self._whole[name][0]
        amount = sum_by_sample(batch_dot(a, g), self._count)
        there = float(batch_dot(a, whole).sum())
        note = "" if amount.any() else f", through which no relevance flows (the layer's total relevance is {there:.4g})"
        with self._from_the_middle():
            found = backward(self._edge(name), self._ends, True, g, like=self._ends)
        return found, ConditionalFlow(condition, amount, self._taps.before(name), note)

    def _kept(self, condition: Condition, name: str) -> Tensor:
        """Return the part of the gradient at a layer that the condition lets through."""
        (a, g), edge = self._whole[name][0], self._edge(name)
        if self._steps:
            above, _, g = self._steps[-1]
            with self._from_the_middle():
                (g,) = backward(self._edge(above), [edge], True, g, like=[a])
        return condition.restrict(name, a, g, self._taps.channels_at)

    def _edge(self, name: str) -> GradientEdge:
        edges = self._taps.edges[name]
        if len(edges) > 1:
            raise ModelError(f"layer '{name}' ran {len(edges)} times; choose a layer that runs once")
        return edges[0]


def _check_known(layers: Sequence[str], flow: ConditionalFlow) -> None:
    unknown = [layer for layer in layers if layer not in flow.layers]
    if unknown:
        raise RuleError(
            f"layer '{unknown[0]}' runs after {flow.condition}; the conditional relevance is only defined at layers before it"
        )


def backward(
    values: Tensor | GradientEdge,
    sources: Sequence[Tensor | GradientEdge],
    keep_graph: bool,
    gradient: Tensor | None = None,
    like: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Compute gradients of Σ values, or of ⟨gradient, values⟩, at the sources; zeros (`like`) for sources not in the graph."""
    given = torch.ones_like(values) if gradient is None else gradient  # type: ignore[arg-type]
    try:
        with gradients_enabled():
            found = torch.autograd.grad([values], sources, [given], retain_graph=keep_graph, allow_unused=True)  # type: ignore[arg-type]
    except CheckpointError as error:
        raise ModelError(f"a checkpointed module returned different values when recomputed: {first_line(error)}") from error
    except AssertionError as error:  # raised by an autograd.Function of the model
        raise ModelError(f"the backward pass of the model failed: {first_line(error)}") from error
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ModelError(
            "an in-place operation overwrote a tensor needed for the backward pass; make it out-of-place, or use whence.LRP()"
        ) from error
    return [torch.zeros_like(s) if g is None else g for s, g in zip(like or sources, found, strict=True)]  # type: ignore


def _check_output(values: Tensor, blocked: Callable[[], str]) -> None:
    if not values.requires_grad:
        raise ModelError(f"the explained output does not depend on the input{blocked()}")
    _check_finite(values)


def _check_finite(values: Tensor) -> None:
    if not check_holds(torch.isfinite(values)):
        raise ModelError("the model's output is NaN or infinite and cannot be explained; check the input and the weights")
    if not values.is_floating_point():
        raise RuleError(f"the explained output has dtype {values.dtype}; expected a floating-point dtype")


def _mark_last(targets: Iterable[Target]) -> Iterator[tuple[bool, Target]]:
    remaining = list(targets)
    return ((i == len(remaining) - 1, target) for i, target in enumerate(remaining))


def sum_relevance(scores: dict[int, Tensor], count: int) -> Tensor:
    """Return the sum of relevance over all inputs for each of `count` samples, `[N]`."""
    first, *others = (sum_by_sample(batch_sum(score), count) for score in scores.values())
    return reduce(lambda a, b: a + b.to(a), others, first)


def make_explanation(
    method: object,
    task: Task,
    output: Tensor,
    target: Any,
    scores: dict[int, Tensor],
    conservation: Conservation | None = None,
    layers: dict[str, list[Tensor]] | None = None,
    **more: Any,
) -> Explanation:
    """Return the explanation in the structure of the inputs; a layer called more than once gives a tuple."""
    return Explanation(
        relevance=task.inputs.together(scores),
        output=output,
        target=target,
        conservation=conservation or Conservation(output, sum_relevance(scores, output.shape[0]), adds_up=False),
        layers={name: calls[0] if len(calls) == 1 else tuple(calls) for name, calls in (layers or {}).items()},
        inputs=task.inputs.together({i: task.inputs.parts[i] for i in scores}),
        method=method,
        patches=PatchLayout.found(task.model, task.inputs),
        **more,
    )


def reject_layers(method: object, task: Task) -> None:
    """Raise `RuleError` if layers or conditions are requested of a method that computes relevance of inputs only."""
    for what, given in (("layers", task.layers), ("through", task.through)):
        if given:
            raise RuleError(f"{type(method).__name__} computes no relevance of inner layers; omit {what}=, or use whence.LRP()")
