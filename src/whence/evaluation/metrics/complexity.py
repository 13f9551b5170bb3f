"""Metrics of complexity (sparseness, entropy) and of completeness."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from whence.evaluation.evaluation_batch import ExplainedBatch


@dataclass(frozen=True)
class Sparseness:
    """Gini coefficient of |R|: 0 if relevance is distributed evenly, near 1 if it is concentrated (Chalasani et al. 2020).

    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.Sparseness()])
    """

    name: ClassVar[str] = "sparseness"
    better: ClassVar[str] = "neither"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        return gini(case.flat().abs())


def gini(sizes: Tensor) -> Tensor:
    """Return the Gini coefficient of each row `[n, F]`: Σ_i (2 i − F − 1) a_i / (F Σ a), with a rising; NaN if all are 0."""
    rising, n = sizes.sort(1).values, sizes.shape[1]
    weights = 2 * torch.arange(1, n + 1, dtype=rising.dtype) - n - 1
    return (rising * weights).sum(1) / (n * rising.sum(1))


@dataclass(frozen=True)
class Complexity:
    """Entropy −Σ p ln p of p = |R| / Σ|R| (Bhatt et al. 2020).

    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.Complexity()])
    """

    name: ClassVar[str] = "complexity"
    better: ClassVar[str] = "neither"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        p = case.flat().abs()
        return torch.special.entr(p / p.sum(1, keepdim=True)).sum(1)


@dataclass(frozen=True)
class Completeness:
    """Completeness gap |ΣR − (f(x) − f(x₀))| / |f(x) − f(x₀)| (Sundararajan et al. 2017), to be compared with a tolerance.

    x₀ is the baseline of the method, if it has one; otherwise x₀ = 0 for all explained inputs, and f(x₀) = 0 for token ids.

    >>> whence.evaluate(model, x, ["integrated_gradients"], [whence.metrics.Completeness()])
    """

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
    """Unexplained share of the output, |f(x) − ΣR − absorbed| / |f(x)|.

    "Absorbed" is the share attributed to no input (mostly biases), as far as the method reports it.

    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.ConservationGap()])
    """

    name: ClassVar[str] = "conservation_gap"
    better: ClassVar[str] = "lower"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        if case.explanation is not None and case.explanation.conservation.adds_up:
            return case.explanation.conservation.error.double().cpu()
        output = case.batch.output.double().cpu()
        return (output - case.flat().sum(1)).abs() / output.abs()


@dataclass(frozen=True)
class RelevanceRatio:
    """Share of the output that is attributed to the input, ΣR / f(x); biases, ε and shifts absorb the rest.

    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.RelevanceRatio()])
    """

    name: ClassVar[str] = "relevance_ratio"
    better: ClassVar[str] = "neither"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        return case.flat().sum(1) / case.batch.output.double().cpu()
