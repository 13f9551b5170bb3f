"""Clusters of explanations: what they have in common, and the evidence that it decides the prediction."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from whence.auditing.candidates import MAX_AREA, MIN_EXCESS, MIN_SIZE
from whence.auditing.evidence import Evidence, as_plain

BORDER_SHARE = 0.1  # width of the border, in shares of the sides


@dataclass(frozen=True, repr=False)
class Cluster:
    """Samples of one class with similar explanations, or with the same mark.

    Args:
        group: The class.
        number: Number of the cluster within its class.
        rows: Row numbers in the store.
        indices: Sample numbers in the dataset.
        mean: Mean |R|, each sample scaled to a sum of 1: `[H, W]`, `[T]`, or `[C]` for channels.
        excess: Share of the relevance beyond that of every other class, at positions chosen by other samples of the cluster.
        mask: Boolean tensor like `mean`: the positions with most of the excess.
        consistency: Share of the samples with at least half the mean relevance inside the mask.
        accuracy: Share of correct predictions; None without labels.
        confidence: Mean confidence of the predictions, if stored.
        purity: Share of the most frequent label; None without labels.
        stability: Mean adjusted Rand index with clusterings of subsamples; NaN for few samples.
        nearest: Row numbers of the samples nearest to the mean.
        random: Row numbers of random samples.
        share: Share of the samples of the class that are in the cluster.
        layer: Layer of the channel relevance; empty for the relevance of the input.
        view: The channel by which the samples were grouped; empty if by the relevance of the input, or for a layer.
        on_masks: Share of the relevance inside each mask given to `whence.audit`.
        evidence: The test of the cluster; None if it was not tested.
    """

    group: int
    number: int
    rows: Tensor
    indices: Tensor
    mean: Tensor
    excess: float
    mask: Tensor
    consistency: float
    accuracy: float | None
    confidence: float | None
    purity: float | None
    stability: float
    nearest: Tensor
    random: Tensor
    share: float
    layer: str = ""
    view: str = ""
    on_masks: Mapping[str, float] = field(default_factory=dict)
    evidence: Evidence | None = None

    def __repr__(self) -> str:
        return f"Cluster {self.number} of class {self.group}: {self.reason(str(self.group))}"

    @property
    def size(self) -> int:
        """The number of samples."""
        return len(self.rows)

    @property
    def candidate(self) -> bool:
        """Whether 5 % of the relevance or more exceeds that of every other class, at no more than half of the positions."""
        area = float(self.mask.float().mean())
        return self.size >= MIN_SIZE and self.excess >= MIN_EXCESS and 0 < area <= MAX_AREA

    @property
    def suspicious(self) -> bool:
        """Whether a test found that what the samples have in common decides the prediction."""
        return self.evidence is not None and self.evidence.passed

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
        """Return in one sentence why the cluster is suspicious, unproven, or not unusual."""
        excess = f"{max(self.excess, 0):.0%}"
        size = f"{self.size} samples, {self.share:.0%} of class {name}{f', grouped by {self.view}' if self.view else ''}"
        if self.evidence is not None:
            verdict = "" if self.suspicious else "nothing unusual: "
            return f"{verdict}{self.evidence.words(name)}; {size}{self._where() if self.suspicious else ''}"
        if not self.candidate:
            return f"nothing unusual: {excess} of the relevance exceeds that of all other classes; {size}"
        test = "pass model= and data= to test it" if not self.layer else "audit the input with model= and data= to test it"
        return f"unproven: {excess} of the relevance exceeds that of all other classes{self._where()}; {size}; {test}"

    def verdict(self, name: str) -> str:
        """Return the outcome for readers who do not know the method, in one sentence."""
        if self.evidence is None or not self.suspicious:
            return "Not tested" if self.evidence is None else "No mark found"
        if self.evidence.test == "coherence":
            return f"These samples of {name} have the same watermark{self._where()}"
        kind = {"crop": "a detail at changing places", "tone": "a tone", "tokens": "a phrase"}.get(self.evidence.test, "a mark")
        points = f"{100 * self.evidence.effect:.0f} percentage points"
        return (
            f"The model relies on {kind} for {name}{self._where()}: pasted on other samples, it raises the probability of "
            f"{name} by {points}"
        )

    def _where(self) -> str:
        if not self.mask.any():
            return ""
        if self.layer:
            numbers = self.mask.nonzero()[:, 0].tolist()
            return f", in channel{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:6]))} of {self.layer}"
        area = f", on {float(self.mask.float().mean()):.1%} of the positions"
        if self.mean.dim() != 2:
            return area
        rows, columns = self.mask.nonzero().T
        corner = max(((name, share) for name, share in self._corners.items() if name != "border"), key=lambda item: item[1])
        near = f" in the {corner[0]}" if corner[1] > 0.5 * float(self.mean[self.mask].sum()) else ""
        height, width = self.mask.shape  # of the stored maps, which may be smaller than the pictures
        box = ", ".join(
            f"{name} {int(found.min())}:{int(found.max()) + 1} of {side}"  # as slices of the stored map
            for name, found, side in (("rows", rows, height), ("columns", columns, width))
        )
        return f"{area}{near} ({box})"

    def plain(self, name: str) -> dict[str, Any]:
        """Return all values as JSON-compatible types."""
        return {
            "class": name, "cluster": self.number, "layer": self.layer, "view": self.view, "size": self.size,
            "share": self.share,
            "excess": self.excess, "candidate": self.candidate, "suspicious": self.suspicious, "reason": self.reason(name),
            "verdict": self.verdict(name),
            "consistency": self.consistency, "accuracy": self.accuracy, "confidence": self.confidence,
            "label_purity": self.purity, "stability": None if self.stability != self.stability else self.stability,
            "places": self.places, "evidence": as_plain(self.evidence), "mask": self.mask.nonzero().tolist(),
            "map_shape": list(self.mask.shape),
            "samples": self.indices.tolist(),
        }  # fmt: skip
