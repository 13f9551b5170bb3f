"""Metrics that compare the summed relevance of random subsets of regions with the drop of the output without them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from whence.errors import RuleError
from whence.evaluation.evaluation_batch import EvaluationBatch, ExplainedBatch
from whence.evaluation.perturbation import Removal, cache_key
from whence.evaluation.regions import Regions

MAX_REMOVED = 0.8
ZERO_REMOVAL = Removal(imputer=0.0)


@dataclass(frozen=True)
class SensitivityN:
    """Correlation between summed relevance and the drop of the output over random subsets of n regions (Ancona et al. 2018).

    Pearson's correlation, over random subsets S of n regions, of Σ_{i∈S} R_i and f(x) − f(x without S), averaged over sizes n.
    The subsets are the same for all methods. By default removed regions are set to 0. NaN if either quantity is constant.

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.SensitivityN(n_samples=50)])

    Args:
        removal: Which regions are removed, by which values they are replaced, and which score is computed.
        sizes: The sizes n of the subsets, as fractions of the regions, between 0 and 1.
        n_samples: The number of subsets per size, at least 3.
    """

    removal: Removal = ZERO_REMOVAL
    sizes: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.4, MAX_REMOVED)
    n_samples: int = 100

    name: ClassVar[str] = "sensitivity_n"
    better: ClassVar[str] = "higher"

    def __post_init__(self):
        if self.n_samples < 3 or not self.sizes or not all(0 < size < 1 for size in self.sizes):
            raise RuleError(f"{self!r}: expected sizes between 0 and 1, and n_samples of at least 3")

    def __call__(self, case: ExplainedBatch) -> Tensor:
        regions, lost, chosen = case.batch.once(cache_key(self), lambda: self._lost(case.batch))
        sums = relevance_sums(case, regions, chosen)  # [sizes · subsets, N]
        by_size = (t.unflatten(0, (-1, self.n_samples)) for t in (sums, lost))
        return pearson(*by_size, dim=1).nanmean(0)

    def _lost(self, batch: EvaluationBatch) -> tuple[Regions, Tensor, Tensor]:
        """Compute the drop of the output without each subset, `[sizes · subsets, N]`; independent of the method."""
        regions = self.removal.regions_of(batch)
        counts = regions.counts
        of_samples = []
        for random, valid, count in zip(batch.random("subsets"), regions.valid, counts, strict=True):
            sizes = (torch.tensor(self.sizes) * count).round().clamp(1, max(int(count) - 1, 1)).long()
            drawn = torch.full((len(sizes), self.n_samples, len(valid)), 2.0)
            drawn[..., valid] = torch.rand(len(sizes), self.n_samples, int(count), generator=random)
            of_samples.append(drawn.argsort(2).argsort(2) < sizes[:, None, None])
        return regions, *output_losses(self.removal, batch, torch.stack(of_samples, 2).flatten(0, 1))


@dataclass(frozen=True)
class Infidelity:
    """Infidelity E[(Σ_{i∈S} R_i − (f(x) − f(x without S)))²] over random subsets S of regions (Yeh et al. 2019).

    Each region is in S with probability ½. The perturbations are x ⊙ m: relevance corresponds to x ⊙ gradient already.

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.Infidelity(n_samples=50)])

    Args:
        removal: Which regions are removed, by which values they are replaced, and which score is computed.
        n_samples: The number of subsets.
        scaled: Whether to multiply R by the factor that is optimal for the sample, as the authors' code does, for methods whose
            relevance does not sum to the output; the result is then relative to E[Δf²].
    """

    removal: Removal = ZERO_REMOVAL
    n_samples: int = 100
    scaled: bool = True

    name: ClassVar[str] = "infidelity"
    better: ClassVar[str] = "lower"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        regions, lost, chosen = case.batch.once(
            (type(self), cache_key(self.removal), self.n_samples), lambda: self._lost(case.batch)
        )
        sums = relevance_sums(case, regions, chosen)
        if not self.scaled:
            return ((sums - lost) ** 2).mean(0)
        beta = (sums * lost).mean(0) / (sums**2).mean(0)
        return ((beta.nan_to_num(0) * sums - lost) ** 2).mean(0) / (lost**2).mean(0)

    def _lost(self, batch: EvaluationBatch) -> tuple[Regions, Tensor, Tensor]:
        regions = self.removal.regions_of(batch)
        halves = torch.zeros(self.n_samples, *regions.valid.shape, dtype=torch.bool)
        for i, random in enumerate(batch.random("halves")):
            halves[:, i, regions.valid[i]] = torch.rand(self.n_samples, int(regions.counts[i]), generator=random) < 0.5
        return regions, *output_losses(self.removal, batch, halves)


def output_losses(removal: Removal, batch: EvaluationBatch, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the drop of the output without each subset `[rounds, N, regions]`, as `[rounds, N]`, and the subsets."""
    left = removal.scores(batch, len(chosen), lambda rounds: chosen[rounds])
    return (removal.whole(batch) - left).double().cpu(), chosen


def relevance_sums(case: ExplainedBatch, regions: Regions, chosen: Tensor) -> Tensor:
    """Compute Σ_{i∈S} R_i of each subset S, `[rounds, N]`."""
    return torch.einsum("rnf,nf->rn", chosen.double(), regions.sums(case.relevance))


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Compute Pearson's correlation along a dimension; NaN if either input is constant."""
    a, b = (t - t.mean(dim, keepdim=True) for t in (a, b))
    spread = (a.norm(dim=dim) * b.norm(dim=dim)).double()
    return torch.where(spread > 0, (a * b).sum(dim) / spread, torch.nan)
