"""What the metrics are given: a batch, what the model says of it however altered, and how a method explains it."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from whence.core.explanation import Explanation
from whence.core.inputs import Inputs
from whence.core.targets import Logit, Target
from whence.core.trees import Tree
from whence.errors import InputError, RuleError, TargetError
from whence.lrp.engine.prepared_model import PreparedModel
from whence.methods.forward_backward import Task, target_values
from whence.methods.model_queries import ModelQueries
from whence.methods.registry import Method

T = TypeVar("T")
Score = Literal["logit", "logit_difference", "probability"]
SCORES = ("logit", "logit_difference", "probability")
ExternalMethod = Callable[[Any, Tree, Any], Tree]  # (model, inputs, target) -> relevance like the inputs


@dataclass
class EvaluationBatch:
    """Samples, what is explained of them, and what has been found out about them so far, for all methods."""

    task: Task  # its one target with all indices filled in
    output: Tensor  # [N]
    numbers: Sequence[int]  # of the samples among all; they set what is random, so that no batch-mate does
    labels: Tensor | None = None  # [N]
    masks: Tensor | None = None  # [N, …]
    seed: int = 0
    _once: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, prepared: PreparedModel, inputs: Inputs, target: Target, numbers: Sequence[int] | None = None, **more: Any
    ) -> "EvaluationBatch":
        """The model is asked once what is explained; samples are numbered from 0 on if nothing else is said."""
        task = Task(prepared, inputs, [target], progress=False)
        ((output, resolved),) = target_values(task)
        numbers = range(inputs.batch_size) if numbers is None else numbers
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
        """What does not depend on the method is made once."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def random(self, purpose: str) -> list[torch.Generator]:
        """A source of random numbers for each sample."""
        kind = sum(map(ord, purpose))
        return [
            torch.Generator().manual_seed((self.seed * 1_000_003 + kind * 10_007 + number) % 2**63) for number in self.numbers
        ]

    def asked(self, score: Score) -> ModelQueries:
        """What the model says to altered inputs, as a score of the class that is explained."""
        return self.once(("asked", score), lambda: ModelQueries(replace(self.task, targets=[self._scored(score)])))

    def _scored(self, score: Score) -> Target:
        if score not in SCORES:
            raise RuleError(f"score={score!r}; choose from {', '.join(SCORES)}")
        if score == "logit":
            return self.target
        if not isinstance(self.target, Tensor):
            raise TargetError(f"score={score!r} needs a class as target; {self.target!r} is none")
        return ProbabilityTarget(self.target) if score == "probability" else Logit(self.target, rather_than=self._runner_up())

    @property
    def logits(self) -> Tensor:
        """Of all classes, `[N, classes]`, where the target is one of them."""
        return self.once("logits", self._logits)

    def _logits(self) -> Tensor:
        shown: list[Tensor] = []
        target_values(replace(self.task, targets=[LogitRecorder(self.target, shown=shown)]))
        return shown[0]

    def _runner_up(self) -> Tensor:
        """The likeliest of the other classes."""
        if self.logits.shape[1] < 2:
            raise TargetError("a logit difference needs two classes; use score='logit'")
        return self.logits.scatter(1, self.target[:, None], -torch.inf).argmax(1)


@dataclass(frozen=True)
class ProbabilityTarget(Logit):
    """The softmax probability of a class rather than its logit; of a single logit its sigmoid."""

    def select(self, logits: Tensor, inputs: Inputs) -> tuple[Tensor, Logit]:
        rows = self._rows(logits, inputs)
        classes = rows.sigmoid() if rows.shape[1] == 1 else rows.softmax(1)
        values, _ = Logit(self.index).select(classes, inputs)
        return values, self


@dataclass(frozen=True)
class LogitRecorder(Logit):
    """A logit that shows which others there are."""

    shown: list[Tensor] = field(default_factory=list)

    def select(self, logits: Tensor, inputs: Inputs) -> tuple[Tensor, Logit]:
        self.shown.append(self._rows(logits, inputs).detach())
        return super().select(logits, inputs)


@dataclass
class ExplainedBatch:
    """A batch under one method."""

    batch: EvaluationBatch
    way: "MethodAdapter"
    relevance: dict[int, Tensor]  # part -> like it, or one score an id
    explanation: Explanation | None  # of a method of whence
    curves: dict[Hashable, Any] = field(default_factory=dict)  # by what was taken away how

    def again(self, parts: dict[int, Tensor], rounds: int = 1) -> dict[int, Tensor]:
        """Relevance at other points `[rounds · N, …]`, of the same targets."""
        task = self.batch.task.moved(rounds, parts)
        return self.way.relevance(task.inputs, task.targets[0])

    def flat(self, relevance: dict[int, Tensor] | None = None) -> Tensor:
        """All relevance of a sample in a row, `[N, numbers]`, in float64 and at hand."""
        found = self.relevance if relevance is None else relevance
        return torch.cat([found[i].flatten(1).double().cpu() for i in sorted(found)], 1)


@dataclass
class MethodAdapter:
    """How a method explains: one of whence, or any function of model, inputs and target."""

    name: str
    method: Method | ExternalMethod
    prepared: PreparedModel

    @property
    def external(self) -> bool:
        return not hasattr(self.method, "explanations")

    def case(self, batch: EvaluationBatch) -> ExplainedBatch:
        """The batch explained."""
        return ExplainedBatch(batch, self, *self._explained(batch.inputs, batch.target))

    def relevance(self, inputs: Inputs, target: Target) -> dict[int, Tensor]:
        return self._explained(inputs, target)[0]

    def _explained(self, inputs: Inputs, target: Target) -> tuple[dict[int, Tensor], Explanation | None]:
        if self.external:
            return _check_relevance(self.method(self.prepared.model, inputs.nest, target), inputs, self.name), None  # type: ignore
        explanation = next(self._explanations(inputs, target))
        return _check_relevance(explanation.relevance, inputs, self.name), explanation

    def _explanations(self, inputs: Inputs, target: Target) -> Iterator[Explanation]:
        return self.method.explanations(Task(self.prepared.up_to_date(), inputs, [target], progress=False))  # type: ignore


def _check_relevance(relevance: Tree, inputs: Inputs, name: str) -> dict[int, Tensor]:
    found = {i: score.detach() for i, score in inputs.apart(relevance).items() if isinstance(score, Tensor)}
    if not found:
        raise InputError(f"{name!r} gave {type(relevance).__name__}, no relevance like the inputs")
    for i, score in found.items():
        x = inputs.parts[i]
        fits = score.dim() == x.dim() and all(a in (1, b) for a, b in zip(score.shape, x.shape, strict=True))
        if not fits or len(score) != len(x):
            raise InputError(f"{name!r} gave relevance of {tuple(score.shape)} for inputs of {tuple(x.shape)}")
        if not torch.isfinite(score).all():
            raise InputError(f"{name!r} gave relevance that is NaN or infinite")
    return found
