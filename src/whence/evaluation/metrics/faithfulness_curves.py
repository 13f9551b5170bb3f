"""Region flipping: scores while regions are removed, the most or the least relevant first, and metrics of these curves."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from whence.errors import RuleError
from whence.evaluation.evaluation_batch import ExplainedBatch
from whence.evaluation.imputers import Blur
from whence.evaluation.perturbation import Removal, cache_key

MEAN_REMOVAL = Removal()


@dataclass(frozen=True)
class FlippingCurves:
    """Scores over the fraction of regions removed, `[N, points]` each, from the whole input to the fully removed one."""

    fractions: Tensor
    most_first: Tensor  # most influential first (MIF), also called MoRF
    least_first: Tensor  # least influential first (LIF), also called LeRF


@dataclass(frozen=True)
class RegionFlipping:
    """Removal of regions in the order of their mean relevance, in equal steps; ties are broken at random.

    >>> flipping = whence.metrics.RegionFlipping(whence.metrics.Removal(regions=8))
    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.SRG(flipping)])

    The curves with the most and the least relevant regions first share their end points, which are computed once.

    Args:
        removal: Which regions are removed, by which values they are replaced, and which score is computed.
        n_steps: The number of steps, at least 1.
    """

    removal: Removal = MEAN_REMOVAL
    n_steps: int = 20

    def __post_init__(self):
        if self.n_steps < 1:
            raise RuleError(f"n_steps={self.n_steps}; expected at least 1")

    def curves(self, case: ExplainedBatch) -> FlippingCurves:
        """Compute the curves of all samples, once per explained batch."""
        key = cache_key(self)
        if key not in case.curves:
            case.curves[key] = self._curves(case)
        return case.curves[key]

    def _curves(self, case: ExplainedBatch) -> FlippingCurves:
        batch, regions = case.batch, self.removal.regions_of(case.batch)
        ranks, counts = rank_regions(regions.means(case.relevance), regions.valid, batch.random("ties")), regions.counts
        points = self.n_steps  # also for samples with few regions: their values must not depend on other samples of the batch
        removed = (torch.linspace(0, 1, points + 1, dtype=torch.float64)[:, None] * counts).round().long()  # [points + 1, N]

        def chosen(rounds: slice) -> Tensor:
            """Return the regions removed in the inner steps of both orders, and in the last step, which both share."""
            number = torch.arange(rounds.start, rounds.stop)
            how_many = removed[torch.where(number < 2 * (points - 1), number % max(points - 1, 1) + 1, points)][..., None]
            most = ranks < how_many
            least = ranks >= counts[:, None] - how_many
            return torch.where((number < points - 1)[:, None, None], most, least) & regions.valid

        found = self.removal.scores(batch, 2 * (points - 1) + 1, chosen)
        whole, most, least, none = self.removal.whole(batch)[None], found[: points - 1], found[points - 1 : -1], found[-1:]
        curves = (torch.cat([whole, of_order, none]).T.double().cpu() for of_order in (most, least))
        return FlippingCurves((removed / counts).T, *curves)


def rank_regions(scores: Tensor, valid: Tensor, random: list[torch.Generator]) -> Tensor:
    """Return the rank of each region by decreasing score, `[N, regions]`.

    Ties are broken at random; regions that a sample does not have are ranked last.
    """
    noise = torch.full(scores.shape, 2.0)
    for row, there, generator in zip(noise, valid, random, strict=True):
        row[there] = torch.rand(int(there.sum()), generator=generator)
    shuffled = noise.argsort(1)
    falling = scores.masked_fill(~valid, -torch.inf).gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    order = shuffled.gather(1, falling)
    return torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))


def area_under_curve(curve: Tensor, fractions: Tensor) -> Tensor:
    """Compute the area under each curve over fractions from 0 to 1 by the trapezoidal rule, `[N]`."""
    return torch.trapezoid(curve, fractions, dim=1)


class FlippingMetric(Protocol):
    """Interface of metrics that are computed from flipping curves."""

    @property
    def flipping(self) -> RegionFlipping: ...


def auc_most_first(metric: FlippingMetric, case: ExplainedBatch) -> Tensor:
    """Compute the area under the curve with the most relevant regions removed first, `[N]`."""
    curves = metric.flipping.curves(case)
    return area_under_curve(curves.most_first, curves.fractions)


def auc_least_first(metric: FlippingMetric, case: ExplainedBatch) -> Tensor:
    """Compute the area under the curve with the least relevant regions removed first, `[N]`."""
    curves = metric.flipping.curves(case)
    return area_under_curve(curves.least_first, curves.fractions)


MEAN_FLIPPING = RegionFlipping()
ZERO_FLIPPING = RegionFlipping(Removal(imputer=0.0))
PROBABILITY_ZERO_FLIPPING = RegionFlipping(Removal(imputer=0.0, score="probability"))
PROBABILITY_MEAN_FLIPPING = RegionFlipping(Removal(score="probability"))
PROBABILITY_BLUR_FLIPPING = RegionFlipping(Removal(imputer=Blur(5.0), score="probability"))


@dataclass(frozen=True)
class SRG:
    """Symmetric relevance gain, AUC(LIF) − AUC(MIF) (Blücher et al. 2024): the area between both curves, in units of the score.

    The effect of the imputer on a random order cancels, so that rankings of methods hardly depend on the imputer.

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.SRG()])

    Args:
        flipping: The removal of regions.
    """

    flipping: RegionFlipping = MEAN_FLIPPING

    name: ClassVar[str] = "srg"
    better: ClassVar[str] = "higher"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        c = self.flipping.curves(case)
        return area_under_curve(c.least_first - c.most_first, c.fractions)


@dataclass(frozen=True)
class MIF:
    """Area under the curve with the most influential regions removed first (Bach et al. 2015); low for faithful explanations.

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.MIF()])

    Args:
        flipping: The removal of regions.
    """

    flipping: RegionFlipping = MEAN_FLIPPING

    name: ClassVar[str] = "mif"
    better: ClassVar[str] = "lower"

    __call__ = auc_most_first


@dataclass(frozen=True)
class LIF:
    """Area under the curve with the least influential regions removed first; high for faithful explanations.

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.LIF()])

    Args:
        flipping: The removal of regions.
    """

    flipping: RegionFlipping = MEAN_FLIPPING

    name: ClassVar[str] = "lif"
    better: ClassVar[str] = "higher"

    __call__ = auc_least_first


@dataclass(frozen=True)
class AOPC:
    """Area over the perturbation curve: the mean over k = 0 … L of f(x) − f(x⁽ᵏ⁾) (Samek et al. 2017, eq. 12).

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.AOPC()])

    Args:
        flipping: The removal of regions, the most relevant first.
    """

    flipping: RegionFlipping = MEAN_FLIPPING

    name: ClassVar[str] = "aopc"
    better: ClassVar[str] = "higher"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        curve = self.flipping.curves(case).most_first
        return (curve[:, :1] - curve).mean(1)


@dataclass(frozen=True)
class ABPC:
    """Area between perturbation curves: AOPC of the most minus that of the least relevant first (Samek et al. 2017).

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.ABPC()])

    Args:
        flipping: The removal of regions.
    """

    flipping: RegionFlipping = MEAN_FLIPPING

    name: ClassVar[str] = "abpc"
    better: ClassVar[str] = "higher"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        c = self.flipping.curves(case)
        return (c.least_first - c.most_first).mean(1)


@dataclass(frozen=True)
class Deletion:
    """Area under the probability curve as the most relevant regions are set to 0 (Petsiuk et al. 2018).

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.Deletion()])

    Args:
        flipping: The removal of regions.
    """

    flipping: RegionFlipping = PROBABILITY_ZERO_FLIPPING

    name: ClassVar[str] = "deletion"
    better: ClassVar[str] = "lower"

    __call__ = auc_most_first


@dataclass(frozen=True)
class Insertion:
    """Area under the probability curve as the most relevant regions are inserted into a blurred image (Petsiuk et al. 2018).

    The blur has a standard deviation of 5 pixels. The curve is that of removing the least relevant first, read backwards.

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.Insertion()])

    Args:
        flipping: The removal of regions.
    """

    flipping: RegionFlipping = PROBABILITY_BLUR_FLIPPING

    name: ClassVar[str] = "insertion"
    better: ClassVar[str] = "higher"

    __call__ = auc_least_first


@dataclass(frozen=True)
class Selectivity:
    """Area under the curve of f as the most relevant regions are set to 0 (Montavon, Samek and Müller 2018, section 7).

    Low values mean that the output falls fast.

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.Selectivity()])

    Args:
        flipping: The removal of regions.
    """

    flipping: RegionFlipping = ZERO_FLIPPING

    name: ClassVar[str] = "selectivity"
    better: ClassVar[str] = "lower"

    __call__ = auc_most_first


@dataclass(frozen=True)
class IROF:
    """Iterative removal of features: the area over the curve of f(x⁽ᵏ⁾) / f(x), f the probability (Rieger and Hansen 2020).

    Regions are replaced by the mean of their channel, the most relevant first. The paper removes superpixels: pass
    `regions=lambda x: whence.superpixels(x, 100)` to `evaluate`.

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.IROF()])

    Args:
        flipping: The removal of regions.
    """

    flipping: RegionFlipping = PROBABILITY_MEAN_FLIPPING

    name: ClassVar[str] = "irof"
    better: ClassVar[str] = "higher"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        curves = self.flipping.curves(case)
        return 1 - area_under_curve(curves.most_first / curves.most_first[:, :1], curves.fractions)


@dataclass(frozen=True)
class Monotonicity:
    """Share of the steps at which f does not fall as regions are inserted, the least relevant first (Arya et al. 2019).

    Arya et al. ask whether f rises at every step; the share says how nearly. Regions are inserted into the mean of their
    channel.

    >>> whence.evaluate(model, x, ["lrp", "random"], [whence.metrics.Monotonicity()])

    Args:
        flipping: The removal of regions.
    """

    flipping: RegionFlipping = MEAN_FLIPPING

    name: ClassVar[str] = "monotonicity"
    better: ClassVar[str] = "higher"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        removed = self.flipping.curves(case).most_first  # read backwards, the most relevant is inserted last
        return (removed[:, :-1] >= removed[:, 1:]).double().mean(1)
