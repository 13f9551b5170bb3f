"""Does relevance lie where it should? Masks mark the object in pictures, or the words of a text."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from whence.errors import InputError
from whence.evaluation.case import ExplainedBatch


@dataclass(frozen=True)
class PointingGame:
    """Whether the largest relevance lies in the mask (Zhang et al. 2018), or within `tolerance` entries of it: 1 or 0."""

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
    """Σ_M R⁺ / Σ R⁺, the share of positive relevance in the mask (Kohlbrenner et al. 2020; Arras et al. 2022)."""

    name: ClassVar[str] = "relevance_mass"
    better: ClassVar[str] = "higher"
    needs_masks: ClassVar[bool] = True

    def __call__(self, case: ExplainedBatch) -> Tensor:
        heat, mask = reduce_to_masks(case)
        positive = heat.clamp(min=0).flatten(1)
        return _nan_where_empty((positive * mask.flatten(1)).sum(1) / positive.sum(1), mask)


@dataclass(frozen=True)
class RelevanceRank:
    """The share of the mask among as many most relevant entries as it has (Arras et al. 2022)."""

    name: ClassVar[str] = "relevance_rank"
    better: ClassVar[str] = "higher"
    needs_masks: ClassVar[bool] = True

    def __call__(self, case: ExplainedBatch) -> Tensor:
        heat, mask = reduce_to_masks(case)
        rank = heat.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(1)
        size = mask.flatten(1).sum(1, keepdim=True)
        return _nan_where_empty(((rank < size) & mask.flatten(1)).sum(1) / size[:, 0], mask)


def reduce_to_masks(case: ExplainedBatch) -> tuple[Tensor, Tensor]:
    """Relevance summed over what the masks do not tell apart, and the masks, `[N, …]` both."""
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
    """NaN where a mask is empty: that is no hit, and no miss."""
    return torch.where(mask.flatten(1).any(1), values, torch.nan)


def _shift_mask(mask: Tensor, d: int, step: int) -> Tensor:
    rolled = mask.roll(step, d)
    places = torch.arange(mask.shape[d])
    outside = places < step if step > 0 else places >= mask.shape[d] + step
    return rolled & ~outside.view(-1, *[1] * (mask.dim() - d - 1))
