"""Detection of suspicious clusters of explanations (Clever Hans): relevance at positions where no other class has any."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

PRESENCE_SHARE = 0.1  # a position is exclusive if no other class has this share of its relevance
CORNER_SHARE = 0.25  # the same for a channel; higher, because all classes share channels to some extent
SUSPICION_THRESHOLD = 0.06  # share of the relevance at exclusive positions; clean digits reach 0.04
MASK_COVERAGE = 0.9
MAX_MASK_SHARE = 0.25  # of the image: a larger mask is an object, not a mark in a corner
BORDER_SHARE = 0.1  # width of the border, in shares of the sides


@dataclass(frozen=True)
class Cluster:
    """Samples of one class with similar explanations.

    With channel relevance, a part of a class that has much more relevance in a channel than the rest of the class and than any
    other class is a cluster too.

    Args:
        group: The class.
        number: Number of the cluster within its class.
        rows: Row numbers in the store.
        indices: Sample numbers in the dataset.
        mean: Mean |R|, each sample scaled to a sum of 1: `[H, W]`, or `[C]` for channels.
        own: The suspicion: the share of `mean` at positions where no other class has a tenth as much (a quarter for channels).
        mask: Boolean tensor like `mean`: the positions that hold most of that share.
        consistency: Share of the samples with at least half the mean relevance inside the mask.
        accuracy: Share of correct predictions; None without labels.
        confidence: Mean confidence of the predictions, if stored.
        purity: Share of the most frequent label; None without labels.
        stability: Mean adjusted Rand index with clusterings of subsamples; NaN for few samples.
        nearest: Row numbers of the samples nearest to the mean.
        random: Row numbers of random samples.
        layer: Layer of the channel relevance; empty for the relevance of the input.
        on_masks: Share of the relevance inside each mask given to `whence.audit`.
    """

    group: int
    number: int
    rows: Tensor
    indices: Tensor
    mean: Tensor
    own: float
    mask: Tensor
    consistency: float
    accuracy: float | None
    confidence: float | None
    purity: float | None
    stability: float
    nearest: Tensor
    random: Tensor
    layer: str = ""
    on_masks: Mapping[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.rows)

    @property
    def suspicious(self) -> bool:
        """Whether the suspicion reaches 6 %, in at least half of the samples, at no more than a quarter of the positions."""
        return self.own >= SUSPICION_THRESHOLD and self.consistency >= 0.5 and float(self.mask.float().mean()) <= MAX_MASK_SHARE

    @property
    def places(self) -> dict[str, float]:
        """The share of relevance on the border, in each corner (both for images only) and inside the user's masks."""
        return {**self._corners, **self.on_masks}

    @cached_property
    def _corners(self) -> dict[str, float]:
        if self.mean.dim() != 2:
            return {}
        h, w = self.mean.shape
        b, c = max(1, round(BORDER_SHARE * h)), max(1, round(BORDER_SHARE * w))
        border = torch.ones_like(self.mean, dtype=torch.bool)
        border[b : h - b, c : w - c] = False
        rows, columns = (slice(0, h // 4), slice(h - h // 4, h)), (slice(0, w // 4), slice(w - w // 4, w))
        corners = {
            f"{up} {side} corner": float(self.mean[r, s].sum())
            for up, r in zip(("upper", "lower"), rows, strict=True)
            for side, s in zip(("left", "right"), columns, strict=True)
        }
        return {"border": float(self.mean[border].sum())} | corners

    def reason(self, name: str) -> str:
        """Return in words why the cluster is suspicious, or that it is not."""
        where = (
            "in channels where neither other classes nor the rest of its class have a quarter as much"
            if self.layer
            else "at positions where no other class has any"
        )
        if not self.suspicious:
            return f"{self.own:.0%} of the relevance is {where}: nothing unusual"
        held = float(self.mean[self.mask].sum())
        return (
            f"{self.own:.0%} of the relevance for {name} is {where}, most of it ({held:.0%}) "
            f"{self._where()}; "
            f"{self.consistency:.0%} of the {self.size} samples agree"
        )

    def _where(self) -> str:
        if self.layer:
            numbers = self.mask.nonzero()[:, 0].tolist()
            return f"in channel{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:6]))} of {self.layer}"
        area = f"on {float(self.mask.float().mean()):.1%} of the positions"
        if self.mean.dim() != 2:
            return area
        rows, columns = self.mask.nonzero().T
        corner = max(((name, share) for name, share in self._corners.items() if name != "border"), key=lambda item: item[1])
        near = f", in the {corner[0]}" if corner[1] > 0.5 * float(self.mean[self.mask].sum()) else ""
        box = f"rows {int(rows.min())} to {int(rows.max())}, columns {int(columns.min())} to {int(columns.max())}"
        return f"{area}{near} ({box})"

    def plain(self, name: str) -> dict[str, Any]:
        """Return all values as JSON-compatible types."""
        return {
            "class": name, "cluster": self.number, "layer": self.layer, "size": self.size, "suspicion": self.own,
            "suspicious": self.suspicious, "reason": self.reason(name), "consistency": self.consistency,
            "accuracy": self.accuracy, "confidence": self.confidence, "label_purity": self.purity,
            "stability": None if self.stability != self.stability else self.stability, "places": self.places,
            "mask": self.mask.nonzero().tolist(), "samples": self.indices.tolist(),
        }  # fmt: skip


def shares(relevance: Tensor) -> Tensor:
    """Return |R| scaled to a sum of 1 for each sample, `[n, …]`."""
    sizes = relevance.abs().float()
    return sizes / sizes.flatten(1).sum(1).clamp(min=1e-30).view(-1, *[1] * (sizes.dim() - 1))


def exclusive_share(mean: Tensor, others: Tensor) -> tuple[float, Tensor]:
    """Return the share of relevance at positions that other classes do not use, and a mask of the positions with most of it.

    A position is exclusive if none of `others`, mean maps of other classes `[k, …]`, has a tenth of the relevance there.
    """
    free = others.amax(0) < PRESENCE_SHARE * mean
    held = mean * free
    own = float(held.sum())
    order = held.flatten().argsort(descending=True)
    count = int((held.flatten()[order].cumsum(0) < MASK_COVERAGE * own).sum()) + 1
    mask = torch.zeros(mean.numel(), dtype=torch.bool)
    if own > 0:
        mask[order[:count]] = True
    return own, mask.view(mean.shape)


def split_by_channel(parts: Tensor, others: Tensor, fewest: int) -> list[tuple[int, Tensor]]:
    """Return the channels that only a part of a class relies on, each with a boolean tensor of these samples.

    In these channels the part of the class (`parts`, shares `[n, C]`) has much more relevance than the rest of it and than
    `others`, mean shares of other classes `[k, C]`. A channel that represents the class itself is used by all of its samples.
    """
    found = []
    for channel in range(parts.shape[1]):
        high = parts[:, channel] > _otsu_threshold(parts[:, channel])
        if min(int(high.sum()), int((~high).sum())) < fewest:
            continue
        strong, weak = float(parts[high, channel].mean()), float(parts[~high, channel].mean())
        if strong >= SUSPICION_THRESHOLD and max(weak, float(others[:, channel].max())) < CORNER_SHARE * strong:
            found.append((channel, high))
    return found


def _otsu_threshold(values: Tensor) -> float:
    """Return the threshold that maximises the variance between the two groups it separates (Otsu 1979)."""
    ordered = values.double().sort().values
    below, count = ordered.cumsum(0)[:-1], len(ordered)
    lower = torch.arange(1, count, dtype=torch.float64)
    gap = (ordered.sum() - below) / (count - lower) - below / lower
    return float(ordered[int((lower * (count - lower) * gap.square()).argmax())])
