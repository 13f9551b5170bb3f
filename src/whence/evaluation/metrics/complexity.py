"""Metrics of complexity (sparseness, entropy) and of completeness."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from whence.evaluation.case import ExplainedBatch


@dataclass(frozen=True)
class Sparseness:
    """Gini's coefficient of |R|: 0 where all is equally relevant, towards 1 where little is (Chalasani et al. 2020)."""

    name: ClassVar[str] = "sparseness"
    better: ClassVar[str] = "neither"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        rising = case.flat().abs().sort(1).values
        n = rising.shape[1]
        weights = 2 * torch.arange(1, n + 1, dtype=rising.dtype) - n - 1
        return (rising * weights).sum(1) / (n * rising.sum(1))


@dataclass(frozen=True)
class Complexity:
    """The entropy −Σ p ln p of p = |R| / Σ|R| (Bhatt et al. 2020)."""

    name: ClassVar[str] = "complexity"
    better: ClassVar[str] = "neither"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        p = case.flat().abs()
        return torch.special.entr(p / p.sum(1, keepdim=True)).sum(1)


@dataclass(frozen=True)
class Completeness:
    """|ΣR − (f(x) − f(x₀))| / |f(x) − f(x₀)| (Sundararajan et al. 2017): a gap, to be seen against a tolerance. x₀ is the
    method's own baseline, where it has one, else 0 everywhere that something is explained, for ids f(x₀) = 0."""

    name: ClassVar[str] = "completeness"
    better: ClassVar[str] = "lower"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        batch, account = case.batch, None if case.explanation is None else case.explanation.conservation
        if account is not None and account.baseline is not None:
            empty = account.baseline
        elif batch.inputs.explained:
            empty = batch.once(self, lambda: batch.asked("logit")({i: torch.zeros_like(batch.inputs.parts[i]) for i in
                                                                  batch.inputs.explained})[0, 0])  # fmt: skip
        else:
            empty = torch.zeros_like(batch.output)
        expected = (batch.output - empty).double().cpu()
        return (case.flat().sum(1) - expected).abs() / expected.abs()


@dataclass(frozen=True)
class ConservationGap:
    """|f(x) − ΣR − what is known to have been absorbed| / |f(x)|: what nobody can account for."""

    name: ClassVar[str] = "conservation_gap"
    better: ClassVar[str] = "lower"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        if case.explanation is not None and case.explanation.conservation.adds_up:
            return case.explanation.conservation.error.double().cpu()
        output = case.batch.output.double().cpu()
        return (output - case.flat().sum(1)).abs() / output.abs()


@dataclass(frozen=True)
class RelevanceRatio:
    """ΣR / f(x), the share of the output that reached the input: what is missing was absorbed by biases, ε and shifts."""

    name: ClassVar[str] = "relevance_ratio"
    better: ClassVar[str] = "neither"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        return case.flat().sum(1) / case.batch.output.double().cpu()
