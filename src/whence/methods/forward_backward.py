"""One forward pass and one backward pass for each target, or output values alone: the basis of all methods."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.conditions import Condition
from whence.core.detection import Detection
from whence.core.diagnosis import AS_TENSOR
from whence.core.explanation import Explanation
from whence.core.forward_record import ForwardRecord, InternalTarget
from whence.core.image_patches import PatchLayout
from whence.core.input_layouts import channel_dims
from whence.core.inputs import Inputs
from whence.core.progress import Progress
from whence.core.targets import Target, reads_outputs, repeat_target, select
from whence.errors import InputError, ModelError, RuleError
from whence.lrp.engine.conservation import Conservation, batch_sum, sum_by_sample
from whence.lrp.engine.embeddings import AlterLookup, EmbeddingLookups
from whence.lrp.engine.function_mode import ConstantParameters, GradientMode
from whence.lrp.engine.model_outputs import logits_of
from whence.lrp.engine.prepared_model import PreparedModel
from whence.lrp.torch_compat.deferred_checks import are_checks_deferred, check_holds
from whence.lrp.torch_compat.module_tracker import ModuleTracker, check_paths, named_layers
from whence.lrp.torch_compat.torch_patches import enter_all
from whence.methods.backward_passes import BackwardPasses, BackwardStart, gradients_enabled
from whence.methods.conditional_backward import ConditionalBackward, ConditionalFlow
from whence.methods.layer_taps import LayerTaps, ValueAndGradient

SCORE_NOTE = "the score of the box, not the logit behind it"


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

    def taps(self) -> LayerTaps:
        """Return new taps at the layers that the task requests or conditions on."""
        return LayerTaps.of(self.model, self.inputs, self.layers, self.through)

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
    check_paths(names)
    layers = named_layers(task.model, names)
    reading = ForwardRecord.of_layers(task.inputs, layers, task.model)

    def tap(name: str, out: Tensor) -> None:
        reading.layers[name] = kept = out.clone()  # a later layer may modify it in place
        see(kept)

    scope.tap({name: partial(tap, name) for name in layers})
    return reading


def target_gradients(
    task: Task, sources: list[Tensor], mode: GradientMode, taps: LayerTaps, reading: ForwardRecord
) -> Iterator[Gradients]:
    """Run one forward pass in a mode and yield each target's gradients at `sources`, embeddings and what the mode adds.

    With conditions, yield the gradients of the conditional flow for each target and condition. Several targets of the outputs,
    and several conditions, are propagated together.
    """
    inputs, contexts = task.inputs, (mode.scope, mode.saving, mode)
    if inputs.arrays:
        if isinstance(task.model, nn.Module):
            raise InputError(f"the input is a NumPy array; {AS_TENSOR}")
        raise RuleError(
            "NumPy functions have no gradients; use whence.Shapley(), whence.Occlusion() or whence.FeatureAblation()"
        )
    with enter_all(gradients_enabled(), *contexts):
        copies = {i: source.clone() for i, source in zip(inputs.explained, sources, strict=True)}
        given = inputs.copied() | copies | mode.lookups.given
        outputs = inputs.call(task.model, tuple(given.values()))
        indexed = mode.before_saturation(outputs) if any(map(reads_outputs, task.targets)) else outputs
        if isinstance(logits := logits_of(indexed), Tensor) and logits.requires_grad:
            indexed = logits.view(logits.shape)  # read by the mode, which refuses the output of an unknown function
    vectors = [lookup.vectors for lookup in mode.lookups.found]
    if not sources and not vectors:
        raise InputError(
            "nothing to explain: no integer input was looked up in an embedding table; pass images as floating-point tensors"
        )
    ends = BackwardTargets(dict(zip(inputs.explained, sources, strict=True)), vectors, list(mode.written))
    together = (len(task.targets) > 1 or len(task.through) > 1) and not (mode.observed or are_checks_deferred())
    passes = BackwardPasses(ends.all, taps, mode.meter, together and not task.prepared.outline.has_backward_hooks)

    def selected(target: Target) -> tuple[Tensor, Any]:
        seen = indexed if reads_outputs(target) else outputs
        by_index = reads_outputs(target) and getattr(logits_of(seen), "requires_grad", False)
        with enter_all(gradients_enabled(), *(() if by_index else contexts)):  # no rule applies to indexing
            values, resolved = select(seen, target, inputs, reading)
            if isinstance(target, Detection) and target.part == "class":
                values = mode.before_saturation(values, of_boxes=True)
            values = values if by_index else mode.with_gradient(values)
        _check_output(values, mode.what_blocks)
        return values, resolved

    for first, chunk in _chunks(task, passes, indexed):
        values = [selected(target) for target in chunk]
        starts = [BackwardStart.at_values(value) for value, _ in values]
        keep_graph = bool(task.through) or first + len(chunk) < len(task.targets)
        for found, (value, resolved) in zip(passes.run(starts, keep_graph), values, strict=True):
            if not task.through:
                yield ends.read(found, value, resolved, mode.lookups, taps.read())
                continue
            for found, flow in ConditionalBackward(passes, mode, value.shape[0]).through(task.through):
                _check_known(task.layers, flow)
                yield ends.read(found, value, resolved, mode.lookups, taps.read(task.layers), flow)


def _chunks(task: Task, passes: BackwardPasses, outputs: Any) -> Iterator[tuple[int, Sequence[Target]]]:
    """Yield the targets whose backward passes are computed together, with the index of the first."""
    logits, size = logits_of(outputs), 1
    if isinstance(logits, Tensor) and not task.through and all(map(reads_outputs, task.targets)):
        size = passes.chunk_size(logits)
    for first in range(0, len(task.targets), size):
        yield first, task.targets[first : first + size]


def _check_known(layers: Sequence[str], flow: ConditionalFlow) -> None:
    unknown = [layer for layer in layers if layer not in flow.layers]
    if unknown:
        raise RuleError(
            f"layer '{unknown[0]}' runs after {flow.condition}; the conditional relevance is only defined at layers before it"
        )


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


def _check_output(values: Tensor, blocked: Callable[[], str]) -> None:
    if not values.requires_grad:
        raise ModelError(f"the explained output does not depend on the input{blocked()}")
    _check_finite(values)


def _check_finite(values: Tensor) -> None:
    if not check_holds(torch.isfinite(values)):
        raise ModelError("the model's output is NaN or infinite and cannot be explained; check the input and the weights")
    if not values.is_floating_point():
        raise RuleError(f"the explained output has dtype {values.dtype}; expected a floating-point dtype")


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
    note: str = "",
    **more: Any,
) -> Explanation:
    """Return the explanation in the structure of the inputs; a layer called more than once gives a tuple.

    Raise `ModelError` for relevance that is not finite.
    """
    if not all(check_holds(torch.isfinite(score)) for score in scores.values()):
        raise ModelError(
            f"{type(method).__name__} gives NaN or infinite relevance: a function of the model has no finite gradient there, "
            "as sqrt, norm and pow at 0, or numbers exceed the dtype; use another method, or model.double() and x.double()"
        )
    return Explanation(
        relevance=task.inputs.together(scores),
        output=output,
        target=target,
        conservation=conservation or Conservation(output, sum_relevance(scores, output.shape[0]), adds_up=False),
        layers={name: calls[0] if len(calls) == 1 else tuple(calls) for name, calls in (layers or {}).items()},
        inputs=task.inputs.together({i: task.inputs.parts[i] for i in scores}),
        method=method,
        patches=PatchLayout.found(task.model, task.inputs),
        channel_dims=channel_dims(task.model, task.inputs),
        note=", ".join(filter(None, [note, SCORE_NOTE if _is_score(target, output) else ""])),
        **more,
    )


def _is_score(target: Any, output: Tensor) -> bool:
    return isinstance(target, Detection) and target.explains_score(output)


def reject_layers(method: object, task: Task) -> None:
    """Raise `RuleError` if layers or conditions are requested of a method that computes relevance of inputs only."""
    for what, given in (("layers", task.layers), ("through", task.through)):
        if given:
            raise RuleError(f"{type(method).__name__} computes no relevance of inner layers; omit {what}=, or use whence.LRP()")
