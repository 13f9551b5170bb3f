"""The inputs of metrics: a batch, the model's scores on modified inputs, and the batch explained by a method."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from whence.core.explanation import Explanation
from whence.core.inputs import Inputs
from whence.core.targets import Logit, Target
from whence.core.trees import Tree
from whence.errors import InputError, RuleError, TargetError, value_repr
from whence.lrp.engine.prepared_model import PreparedModel
from whence.methods.forward_backward import Task, target_values
from whence.methods.model_queries import ModelQueries
from whence.methods.per_sample_settings import method_of_samples
from whence.methods.registry import Method

T = TypeVar("T")
Score = Literal["logit", "logit_difference", "probability"]
SCORES = ("logit", "logit_difference", "probability")
ExternalMethod = Callable[[Any, Tree, Any], Tree]  # (model, inputs, target) -> relevance shaped like the inputs


@dataclass
class EvaluationBatch:
    """Samples with their target, labels and masks, and a cache of the results that all methods share."""

    task: Task  # has a single target, with all indices resolved
    output: Tensor  # [N]
    numbers: Sequence[int]  # dataset indices of the samples; they seed random draws, which do not depend on the batch
    labels: Tensor | None = None  # [N]
    masks: Tensor | None = None  # [N, …]
    seed: int = 0
    count: int | None = None  # of all samples of the data, where it is known
    _once: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, prepared: PreparedModel, inputs: Inputs, target: Target, numbers: Sequence[int] | None = None, **more: Any
    ) -> "EvaluationBatch":
        """Build a batch by running the model once to resolve the target; `numbers` defaults to 0, 1, …."""
        if inputs.table is not None and inputs.table.categories:
            raise InputError(
                f"the columns {', '.join(map(str, inputs.table.categories))} are categories, which no number can replace; "
                "evaluate the model behind its encoder, on numbers"
            )
        task = Task(prepared, inputs, [target], progress=False)
        ((output, resolved),) = target_values(task)
        if numbers is None:
            numbers, more["count"] = range(inputs.batch_size), inputs.batch_size
        return cls(replace(task, targets=[resolved]), output, numbers, **more)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def inputs(self) -> Inputs:
        return self.task.inputs

    @property
    def target(self) -> Any:
        return self.task.targets[0]

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the cached value of `key`, calling `make` on first use; for values that do not depend on the method."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def random(self, purpose: str) -> list[torch.Generator]:
        """Return one random generator per sample, seeded by `seed`, `purpose` and the index of the sample."""
        kind = sum(map(ord, purpose))
        return [
            torch.Generator().manual_seed((self.seed * 1_000_003 + kind * 10_007 + number) % 2**63) for number in self.numbers
        ]

    def asked(self, score: Score) -> ModelQueries:
        """Return the `ModelQueries` that score modified inputs for the explained target."""
        return self.once(("asked", score), lambda: ModelQueries(replace(self.task, targets=[self._scored(score)])))

    def _scored(self, score: Score) -> Target:
        if score not in SCORES:
            raise RuleError(f"score={value_repr(score)}; choose from {', '.join(SCORES)}")
        if score == "logit":
            return self.target
        if not isinstance(self.target, Tensor):
            raise TargetError(
                f"score={value_repr(score)} requires a class as target, got {value_repr(self.target)}; use score='logit'"
            )
        return ProbabilityTarget(self.target) if score == "probability" else Logit(self.target, rather_than=self._runner_up())

    @property
    def logits(self) -> Tensor:
        """The logits of all classes, `[N, classes]`; requires a class as target."""
        return self.once("logits", self._logits)

    def _logits(self) -> Tensor:
        if not isinstance(self.target, Tensor):
            raise TargetError(f"the logits of all classes need a class as target, got {value_repr(self.target)}")
        shown: list[Tensor] = []
        target_values(replace(self.task, targets=[LogitRecorder(self.target, shown=shown)]))
        return shown[0]

    def _runner_up(self) -> Tensor:
        """Return the class with the largest logit other than the target, `[N]`."""
        if self.logits.shape[1] < 2:
            raise TargetError("score='logit_difference' requires at least two classes; use score='logit'")
        return self.logits.scatter(1, self.target[:, None], -torch.inf).argmax(1)


@dataclass(frozen=True)
class ProbabilityTarget(Logit):
    """The softmax probability of a class instead of its logit; for a single logit, its sigmoid."""

    def select(self, logits: Tensor, inputs: Inputs) -> tuple[Tensor, Logit]:
        rows = self._rows(logits, inputs)
        classes = rows.sigmoid() if rows.shape[1] == 1 else rows.softmax(1)
        values, _ = Logit(self.index).select(classes, inputs)
        return values, self


@dataclass(frozen=True)
class LogitRecorder(Logit):
    """A logit target that appends the logits of all classes to `shown`."""

    shown: list[Tensor] = field(default_factory=list)

    def select(self, logits: Tensor, inputs: Inputs) -> tuple[Tensor, Logit]:
        self.shown.append(self._rows(logits, inputs).detach())
        return super().select(logits, inputs)


@dataclass
class ExplainedBatch:
    """A batch explained by one method."""

    batch: EvaluationBatch
    way: "MethodAdapter"
    relevance: dict[int, Tensor]  # input part -> relevance like the part; one score per token id
    explanation: Explanation | None  # None for external functions
    curves: dict[Hashable, Any] = field(default_factory=dict)  # flipping curves by their `RegionFlipping`

    def again(self, parts: dict[int, Tensor], rounds: int = 1) -> dict[int, Tensor]:
        """Compute the relevance of the same targets for other inputs, `[rounds · N, …]`."""
        task, count = self.batch.task.moved(rounds, parts), len(self.batch)
        return self.way.of_samples([*range(count)] * rounds, count).relevance(task.inputs, task.targets[0])

    def flat(self, relevance: dict[int, Tensor] | None = None) -> Tensor:
        """Return the relevance of each sample as a row, `[N, entries]`, in float64 on the CPU."""
        found = self.relevance if relevance is None else relevance
        return torch.cat([found[i].flatten(1).double().cpu() for i in sorted(found)], 1)


@dataclass
class MethodAdapter:
    """A uniform interface to explanation methods: those of whence, and functions of model, inputs and target."""

    name: str
    method: Method | ExternalMethod
    prepared: PreparedModel

    @property
    def external(self) -> bool:
        return not hasattr(self.method, "explanations")

    def case(self, batch: EvaluationBatch) -> ExplainedBatch:
        """Explain the batch."""
        way = self.of_samples(batch.numbers, batch.count)
        return ExplainedBatch(batch, way, *way._explained(batch.inputs, batch.target))

    def of_samples(self, numbers: Sequence[int], count: int | None) -> "MethodAdapter":
        """Return the adapter of the method with the settings of these samples."""
        return replace(self, method=method_of_samples(self.method, numbers, count))

    def relevance(self, inputs: Inputs, target: Target) -> dict[int, Tensor]:
        return self._explained(inputs, target)[0]

    def _explained(self, inputs: Inputs, target: Target) -> tuple[dict[int, Tensor], Explanation | None]:
        if self.external:
            copy = inputs.together(inputs.copied())  # a function may modify its inputs in place
            model = self.prepared.model
            before = _model_state(model)
            relevance = _check_relevance(self.method(model, copy, target), inputs, self.name)  # type: ignore[operator]
            if _model_state(model) != before:
                raise RuleError(  # at once: nothing that follows would be right
                    f"method {self.name!r} changed the model (its weights, hooks, gradients required or training mode), which "
                    "all other scores depend on; let the method restore it, or work on copy.deepcopy(model)"
                )
            return relevance, None
        explanation = next(self._explanations(inputs, target))
        return _check_relevance(explanation.relevance, inputs, self.name), explanation

    def _explanations(self, inputs: Inputs, target: Target) -> Iterator[Explanation]:
        return self.method.explanations(Task(self.prepared.up_to_date(), inputs, [target], progress=False))  # type: ignore


def _model_state(model: Any) -> list[Any]:
    """Return a summary of what a function could leave changed on a model.

    Buffers are left out, since a forward pass may write to them, but for the statistics that training mode changes.
    """
    if not isinstance(model, nn.Module):
        return []
    statistics = ((name, t) for name, t in model.named_buffers() if name.endswith(("running_mean", "running_var")))
    weights = [(name, t.requires_grad, _checksum(t)) for name, t in chain(model.named_parameters(), statistics)]
    layers = [
        (
            name,
            layer.training,
            vars(layer).get("forward"),
            [len(value) for key, value in vars(layer).items() if key.endswith("hooks")],
        )
        for name, layer in model.named_modules()
    ]
    return [*weights, *layers]


def _checksum(t: Tensor) -> str:
    """Return a sum that differs if values change or change places; of NaN values their text, which is equal to itself."""
    if t.is_meta or t.layout != torch.strided or t.is_nested:
        return str(t.device)
    flat = t.detach().reshape(-1)
    flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
    places = torch.linspace(1, 2, flat.numel(), dtype=torch.float32, device=flat.device)
    return repr((float(flat.sum(dtype=torch.float64)), float((flat.float() * places).sum(dtype=torch.float64))))


def _check_relevance(relevance: Tree, inputs: Inputs, name: str) -> dict[int, Tensor]:
    """Return relevance by input part; raise `InputError` if its structure, shapes or values are invalid."""
    found = {i: score.detach() for i, score in inputs.apart(relevance).items() if isinstance(score, Tensor)}
    if not found:
        raise InputError(
            f"method {name!r} returned {type(relevance).__name__}; expected relevance tensors structured like the inputs"
        )
    for i, score in found.items():
        x = inputs.parts[i]
        fits = score.dim() == x.dim() and all(a in (1, b) for a, b in zip(score.shape, x.shape, strict=True))
        if not fits or len(score) != len(x) or score[0].numel() == 1 < x[0].numel():
            raise InputError(
                f"method {name!r} returned relevance of shape {tuple(score.shape)} for inputs of shape {tuple(x.shape)}"
            )
        if score.is_complex():
            raise InputError(f"method {name!r} returned complex relevance; expected real numbers")
        if not torch.isfinite(score).all():
            raise InputError(f"method {name!r} returned NaN or infinite relevance")
    return found
