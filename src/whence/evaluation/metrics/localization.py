"""Localization metrics: whether relevance is inside masks of objects in images, or of words in texts."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from whence.errors import InputError, RuleError
from whence.evaluation.evaluation_batch import ExplainedBatch


@dataclass(frozen=True)
class PointingGame:
    """Pointing game: 1 if the largest relevance is inside the mask, else 0 (Zhang et al. 2018).

    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.PointingGame()], masks=masks)

    Args:
        tolerance: How many entries beyond the mask still count as inside.
    """

    tolerance: int = 0

    name: ClassVar[str] = "pointing_game"
    better: ClassVar[str] = "higher"
    needs_masks: ClassVar[bool] = True

    def __call__(self, case: ExplainedBatch) -> Tensor:
        heat, mask = reduce_to_masks(case)
        wide = mask
        for d in range(1, mask.dim()):
            near = range(-self.tolerance, self.tolerance + 1)
            wide = torch.stack([_shift_mask(wide, d, step) for step in near]).any(0)
        hit = wide.flatten(1).gather(1, heat.flatten(1).argmax(1, keepdim=True))[:, 0]
        return _nan_where_empty(hit.double(), mask)


@dataclass(frozen=True)
class RelevanceMass:
    """Share of positive relevance inside the mask, Σ_M R⁺ / Σ R⁺ (Kohlbrenner et al. 2020; Arras et al. 2022).

    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.RelevanceMass()], masks=masks)
    """

    name: ClassVar[str] = "relevance_mass"
    better: ClassVar[str] = "higher"
    needs_masks: ClassVar[bool] = True

    def __call__(self, case: ExplainedBatch) -> Tensor:
        heat, mask = reduce_to_masks(case)
        positive = heat.clamp(min=0).flatten(1)
        return _nan_where_empty((positive * mask.flatten(1)).sum(1) / positive.sum(1), mask)


@dataclass(frozen=True)
class RelevanceRank:
    """Share of the mask among the n most relevant entries, where n is the size of the mask (Arras et al. 2022).

    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.RelevanceRank()], masks=masks)
    """

    name: ClassVar[str] = "relevance_rank"
    better: ClassVar[str] = "higher"
    needs_masks: ClassVar[bool] = True

    def __call__(self, case: ExplainedBatch) -> Tensor:
        heat, mask = reduce_to_masks(case)
        rank = heat.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1)
        size = mask.flatten(1).sum(1, keepdim=True)
        return _nan_where_empty(((rank < size) & mask.flatten(1)).sum(1) / size[:, 0], mask)


@dataclass(frozen=True)
class TopKIntersection:
    """Share of the k most relevant entries that are inside the mask (Theiner, Müller-Budack and Ewerth 2022).

    >>> whence.evaluate(model, x, ["lrp"], [whence.metrics.TopKIntersection(200)], masks=masks)

    Args:
        k: The number of entries; all, where there are fewer.
    """

    k: int = 100

    name: ClassVar[str] = "top_k_intersection"
    better: ClassVar[str] = "higher"
    needs_masks: ClassVar[bool] = True

    def __post_init__(self):
        if self.k < 1:
            raise RuleError(f"k={self.k}; expected at least 1 entry")

    def __call__(self, case: ExplainedBatch) -> Tensor:
        heat, mask = reduce_to_masks(case)
        top = heat.flatten(1).argsort(dim=1, descending=True, stable=True)[:, : self.k]
        return _nan_where_empty(mask.flatten(1).gather(1, top).double().mean(1), mask)


def reduce_to_masks(case: ExplainedBatch) -> tuple[Tensor, Tensor]:
    """Return relevance summed over the dimensions that masks do not have, and the masks, both `[N, …]`."""
    masks = case.batch.masks
    if masks is None:
        raise InputError("localization needs masks=, one mask per sample: [N, H, W] for images, [N, T] for texts")
    fitting = [r for r in case.relevance.values() if r.shape[-(masks.dim() - 1) :] == masks.shape[1:]]
    if not fitting:
        shapes = ", ".join(str(tuple(r.shape)) for r in case.relevance.values())
        raise InputError(
            f"masks of {tuple(masks.shape)} for relevance of {shapes}; expected [N, H, W] for images, [N, T] for texts"
        )
    heat = fitting[0].double().cpu()
    return heat.flatten(1, -masks.dim()).sum(1) if heat.dim() > masks.dim() else heat, masks.bool().cpu()


def _nan_where_empty(values: Tensor, mask: Tensor) -> Tensor:
    """Replace the values of samples with an empty mask by NaN: they are neither hits nor misses."""
    return torch.where(mask.flatten(1).any(1), values, torch.nan)


def _shift_mask(mask: Tensor, d: int, step: int) -> Tensor:
    rolled = mask.roll(step, d)
    places = torch.arange(mask.shape[d])
    outside = places < step if step > 0 else places >= mask.shape[d] + step
    return rolled & ~outside.view(-1, *[1] * (mask.dim() - d - 1))
