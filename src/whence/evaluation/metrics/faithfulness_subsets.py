"""Random subsets of regions taken away: does their summed relevance say what the output loses?"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from whence.errors import RuleError
from whence.evaluation.case import EvaluationBatch, ExplainedBatch
from whence.evaluation.perturbation import Removal, cache_key
from whence.evaluation.regions import Regions

MAX_REMOVED = 0.8
ZERO_REMOVAL = Removal(imputer=0.0)


@dataclass(frozen=True)
class SensitivityN:
    """Pearson's correlation, over random subsets S of n regions, of Σ_{i∈S} R_i and f(x) − f(x without S); the mean over sizes
    n (Ancona et al. 2018). `sizes` are fractions of the regions; `n_samples` of each are drawn, the same for all methods. What
    is taken away becomes 0. NaN where nothing varies.
    """

    removal: Removal = ZERO_REMOVAL
    sizes: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.4, MAX_REMOVED)
    n_samples: int = 100

    name: ClassVar[str] = "sensitivity_n"
    better: ClassVar[str] = "higher"

    def __post_init__(self):
        if self.n_samples < 3 or not self.sizes or not all(0 < size < 1 for size in self.sizes):
            raise RuleError(f"{self!r}: give sizes between 0 and 1, and at least 3 subsets")

    def __call__(self, case: ExplainedBatch) -> Tensor:
        regions, lost, chosen = case.batch.once(cache_key(self), lambda: self._lost(case.batch))
        sums = relevance_sums(case, regions, chosen)  # [sizes · subsets, N]
        by_size = (t.unflatten(0, (-1, self.n_samples)) for t in (sums, lost))
        return pearson(*by_size, dim=1).nanmean(0)

    def _lost(self, batch: EvaluationBatch) -> tuple[Regions, Tensor, Tensor]:
        """Return the loss of output without each subset, `[sizes · subsets, N]`; it does not depend on the method."""
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
    """E[(Σ_{i∈S} R_i − (f(x) − f(x without S)))²] over random subsets S, each region in it with probability ½ (Yeh et al. 2019,
    with perturbations x ⊙ m: relevance is x ⊙ gradient already). `scaled` multiplies R by the one number that is best for
    the sample (the authors' code), for methods that do not add up to anything; the result is then in shares of E[Δf²]."""

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
    """Return the loss of output without each of the subsets `[rounds, N, regions]`, `[rounds, N]`; and the subsets."""
    left = removal.scores(batch, len(chosen), lambda rounds: chosen[rounds])
    return (removal.whole(batch) - left).double().cpu(), chosen


def relevance_sums(case: ExplainedBatch, regions: Regions, chosen: Tensor) -> Tensor:
    """Σ_{i∈S} R_i of each subset, `[rounds, N]`."""
    return torch.einsum("rnf,nf->rn", chosen.double(), regions.sums(case.relevance))


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's, NaN where either is constant."""
    a, b = (t - t.mean(dim, keepdim=True) for t in (a, b))
    spread = (a.norm(dim=dim) * b.norm(dim=dim)).double()
    return torch.where(spread > 0, (a * b).sum(dim) / spread, torch.nan)
