"""Which clusters of explanations look like a Clever Hans: relevance where no other class has any."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

PRESENCE_SHARE = 0.1  # of the relevance at a place, at which it is nobody else's
CORNER_SHARE = 0.25  # of the relevance of a channel: those are shared by all classes, more or less
SUSPICION_THRESHOLD = 0.06  # of the relevance on ground of one's own; clean digits reach 0.04
MASK_COVERAGE = 0.9
MAX_MASK_SHARE = 0.25  # of the picture: what is larger is an object, not a mark in a corner
BORDER_SHARE = 0.1  # of the sides


@dataclass(frozen=True)
class Cluster:
    """Samples of one class that are explained alike.

    `mean` is their mean |R|, in shares; `own` the share of it that lies where no other class has a tenth as much, the
    suspicion; `mask` where that is. Of channels, a part of a class that makes much more of one than the rest of the class
    and any other class is a cluster of its own.
    """

    group: int  # class
    number: int
    rows: Tensor  # of the store
    indices: Tensor  # of the data
    mean: Tensor
    own: float
    mask: Tensor
    consistency: float  # the share of the samples with at least half as much there
    accuracy: float | None  # None: no labels
    confidence: float | None
    purity: float | None  # the share of the commonest label
    stability: float
    nearest: Tensor  # rows of the store that are most like the mean
    random: Tensor
    layer: str = ""  # of channel relevance; of the input if empty
    on_masks: Mapping[str, float] = field(default_factory=dict)  # the share of relevance on masks of the user's

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def suspicious(self) -> bool:
        return self.own >= SUSPICION_THRESHOLD and self.consistency >= 0.5 and float(self.mask.float().mean()) <= MAX_MASK_SHARE

    @property
    def places(self) -> dict[str, float]:
        """The share of relevance on the border, in each corner and on the user's masks; of pictures alone."""
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
        """Why it is suspicious, or why not, in words."""
        where = "neither others nor the rest of its class have a quarter" if self.layer else "no other class has any"
        if not self.suspicious:
            return f"{self.own:.0%} of the relevance lies where {where}: nothing unusual"
        held = float(self.mean[self.mask].sum())
        return (
            f"{self.own:.0%} of the relevance for {name} lies where {where}, most of it ({held:.0%}) "
            f"{self._where()}; "
            f"{self.consistency:.0%} of the {self.size} samples agree"
        )

    def _where(self) -> str:
        if self.layer:
            numbers = self.mask.nonzero()[:, 0].tolist()
            return f"in channel{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:6]))} of {self.layer}"
        area = f"on {float(self.mask.float().mean()):.1%} of the places"
        if self.mean.dim() != 2:
            return area
        rows, columns = self.mask.nonzero().T
        corner = max(((name, share) for name, share in self._corners.items() if name != "border"), key=lambda item: item[1])
        near = f", in the {corner[0]}" if corner[1] > 0.5 * float(self.mean[self.mask].sum()) else ""
        box = f"rows {int(rows.min())} to {int(rows.max())}, columns {int(columns.min())} to {int(columns.max())}"
        return f"{area}{near} ({box})"

    def plain(self, name: str) -> dict[str, Any]:
        """As JSON wants it."""
        return {
            "class": name, "cluster": self.number, "layer": self.layer, "size": self.size, "suspicion": self.own,
            "suspicious": self.suspicious, "reason": self.reason(name), "consistency": self.consistency,
            "accuracy": self.accuracy, "confidence": self.confidence, "label_purity": self.purity,
            "stability": None if self.stability != self.stability else self.stability, "places": self.places,
            "mask": self.mask.nonzero().tolist(), "samples": self.indices.tolist(),
        }  # fmt: skip


def shares(relevance: Tensor) -> Tensor:
    """|R| of each sample in shares of their sum, `[n, …]`."""
    sizes = relevance.abs().float()
    return sizes / sizes.flatten(1).sum(1).clamp(min=1e-30).view(-1, *[1] * (sizes.dim() - 1))


def exclusive_share(mean: Tensor, others: Tensor) -> tuple[float, Tensor]:
    """The share of relevance at places where none of the `others`, mean maps of other classes `[k, …]`, has a tenth as much;
    and those of these places that hold most of it."""
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
    """The channels of which some of a class, `[n, C]` shares, make much more than the rest of it and than `others`, mean
    shares of other classes `[k, C]`; and which samples these are. What stands for the class itself is used by all of it."""
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
    """Between two heaps, such that the variance between them is largest (Otsu 1979)."""
    ordered = values.double().sort().values
    below, count = ordered.cumsum(0)[:-1], len(ordered)
    lower = torch.arange(1, count, dtype=torch.float64)
    gap = (ordered.sum() - below) / (count - lower) - below / lower
    return float(ordered[int((lower * (count - lower) * gap.square()).argmax())])
