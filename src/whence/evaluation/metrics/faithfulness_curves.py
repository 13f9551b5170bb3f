"""Region flipping: the most relevant regions are taken away first, and the least relevant first, in one pass; what is read of
the two curves."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from whence.errors import RuleError
from whence.evaluation.case import Case
from whence.evaluation.imputers import Blur
from whence.evaluation.perturbation import Removal, keyed

TO_THE_MEAN = Removal()


@dataclass(frozen=True)
class Curves:
    """The score over the fraction taken away, `[N, points]` each: from the whole input to nothing of it."""

    fractions: Tensor
    most_first: Tensor  # MIF, also called MoRF
    least_first: Tensor  # LIF, LeRF


@dataclass(frozen=True)
class Flipping:
    """Takes regions away in the order of their mean relevance, in `steps` equal steps; ties in random order. What is not varied
    is computed once: both ends belong to both orders.

    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.SRG(whence.metrics.Flipping(whence.metrics.Removal(regions=8)))])
    """

    removal: Removal = TO_THE_MEAN
    steps: int = 20

    def __post_init__(self):
        if self.steps < 1:
            raise RuleError(f"steps={self.steps}; give at least 1")

    def curves(self, case: Case) -> Curves:
        """Of all samples; computed once a case."""
        key = keyed(self)
        if key not in case.curves:
            case.curves[key] = self._curves(case)
        return case.curves[key]

    def _curves(self, case: Case) -> Curves:
        batch, regions = case.batch, self.removal.regions_of(case.batch)
        ranks, counts = ranked(regions.means(case.relevance), regions.valid, batch.random("ties")), regions.counts
        points = self.steps  # for samples of few regions too: their values must not depend on batch-mates that have more
        removed = (torch.linspace(0, 1, points + 1, dtype=torch.float64)[:, None] * counts).round().long()  # [points + 1, N]

        def chosen(rounds: slice) -> Tensor:
            """All most-first rounds but the ends, all least-first ones, and the end."""
            number = torch.arange(rounds.start, rounds.stop)
            how_many = removed[torch.where(number < 2 * (points - 1), number % max(points - 1, 1) + 1, points)][..., None]
            most = ranks < how_many
            least = ranks >= counts[:, None] - how_many
            return torch.where((number < points - 1)[:, None, None], most, least) & regions.valid

        found = self.removal.scores(batch, 2 * (points - 1) + 1, chosen)
        whole, most, least, none = self.removal.whole(batch)[None], found[: points - 1], found[points - 1 : -1], found[-1:]
        curves = (torch.cat([whole, of_order, none]).T.double().cpu() for of_order in (most, least))
        return Curves((removed / counts).T, *curves)


def ranked(scores: Tensor, valid: Tensor, random: list[torch.Generator]) -> Tensor:
    """The place of each region in the order of falling scores, `[N, regions]`, ties in random order, those that are not there
    behind all others."""
    noise = torch.full(scores.shape, 2.0)
    for row, there, generator in zip(noise, valid, random, strict=True):
        row[there] = torch.rand(int(there.sum()), generator=generator)
    shuffled = noise.argsort(1)
    falling = scores.masked_fill(~valid, -torch.inf).gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    order = shuffled.gather(1, falling)
    return torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))


def area(curve: Tensor, fractions: Tensor) -> Tensor:
    """Under the curve, over fractions from 0 to 1, by trapezoids: `[N]`."""
    return torch.trapezoid(curve, fractions, dim=1)


class ByFlipping(Protocol):
    @property
    def flipping(self) -> Flipping: ...


def under_most_first(metric: ByFlipping, case: Case) -> Tensor:
    """The area under the curve of the most relevant first."""
    curves = metric.flipping.curves(case)
    return area(curves.most_first, curves.fractions)


def under_least_first(metric: ByFlipping, case: Case) -> Tensor:
    """The area under the curve of the least relevant first."""
    curves = metric.flipping.curves(case)
    return area(curves.least_first, curves.fractions)


BY_THE_MEAN = Flipping()
WITH_ZEROS = Flipping(Removal(imputer=0.0))
PROBABILITY_WITH_ZEROS = Flipping(Removal(imputer=0.0, score="probability"))
PROBABILITY_WITH_BLUR = Flipping(Removal(imputer=Blur(5.0), score="probability"))


@dataclass(frozen=True)
class SRG:
    """Symmetric relevance gain, AUC(LIF) − AUC(MIF) (Blücher et al. 2024): the area between both curves, in units of the score.
    What the imputer does to a random order drops out, so that rankings hardly depend on it."""

    flipping: Flipping = BY_THE_MEAN

    name: ClassVar[str] = "srg"
    better: ClassVar[str] = "higher"

    def __call__(self, case: Case) -> Tensor:
        c = self.flipping.curves(case)
        return area(c.least_first - c.most_first, c.fractions)


@dataclass(frozen=True)
class MIF:
    """Area under the curve with the most influential first (Bach et al. 2015): low where they matter."""

    flipping: Flipping = BY_THE_MEAN

    name: ClassVar[str] = "mif"
    better: ClassVar[str] = "lower"

    __call__ = under_most_first


@dataclass(frozen=True)
class LIF:
    """Area under the curve with the least influential first: high where they do not matter."""

    flipping: Flipping = BY_THE_MEAN

    name: ClassVar[str] = "lif"
    better: ClassVar[str] = "higher"

    __call__ = under_least_first


@dataclass(frozen=True)
class AOPC:
    """Area over the perturbation curve, mean over k = 0 … L of f(x) − f(x⁽ᵏ⁾) (Samek et al. 2017, eq. 12)."""

    flipping: Flipping = BY_THE_MEAN

    name: ClassVar[str] = "aopc"
    better: ClassVar[str] = "higher"

    def __call__(self, case: Case) -> Tensor:
        curve = self.flipping.curves(case).most_first
        return (curve[:, :1] - curve).mean(1)


@dataclass(frozen=True)
class ABPC:
    """Area between perturbation curves, AOPC of the most less that of the least relevant first (Samek et al. 2017)."""

    flipping: Flipping = BY_THE_MEAN

    name: ClassVar[str] = "abpc"
    better: ClassVar[str] = "higher"

    def __call__(self, case: Case) -> Tensor:
        c = self.flipping.curves(case)
        return (c.least_first - c.most_first).mean(1)


@dataclass(frozen=True)
class Deletion:
    """Area under the probability while the most relevant become 0 (Petsiuk et al. 2018)."""

    flipping: Flipping = PROBABILITY_WITH_ZEROS

    name: ClassVar[str] = "deletion"
    better: ClassVar[str] = "lower"

    __call__ = under_most_first


@dataclass(frozen=True)
class Insertion:
    """Area under the probability while the most relevant appear out of a blur of 5 pixels (Petsiuk et al. 2018): the curve of
    the least relevant taken away first, read backwards."""

    flipping: Flipping = PROBABILITY_WITH_BLUR

    name: ClassVar[str] = "insertion"
    better: ClassVar[str] = "higher"

    __call__ = under_least_first


@dataclass(frozen=True)
class Selectivity:
    """How fast the output falls while the most relevant become 0: the area under f (Montavon, Samek and Müller 2018,
    section 7)."""

    flipping: Flipping = WITH_ZEROS

    name: ClassVar[str] = "selectivity"
    better: ClassVar[str] = "lower"

    __call__ = under_most_first
