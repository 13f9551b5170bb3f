"""Description of the clusters of an audit: where their relevance is, and how good the predictions of their samples are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.auditing.audit_rows import MIN_SAMPLES, AuditedRows
from whence.auditing.candidates import cross_fitted_excess, excess_mask, largest_of_other_classes, pooled, shares, upsampled
from whence.auditing.channel_clusters import exclusive_share, split_by_channel
from whence.auditing.cluster_tests import MarkedSamples
from whence.auditing.clusters import Cluster
from whence.auditing.spectral_clustering import SpectralClusters

SAMPLES_SHOWN = 8


@dataclass(frozen=True)
class SampleGroup:
    """The samples of one class and the clusters of their explanations.

    Args:
        number: The class.
        rows: Positions of its samples among the audited rows.
        spectrum: The clusters of their explanations.
    """

    number: int
    rows: Tensor
    spectrum: SpectralClusters


@dataclass(frozen=True)
class ClusterMaker:
    """Maker of the clusters of an audit, with all that is said about them.

    Args:
        audited: The audited rows.
        relevance: Relevance of the inputs or of the channels of a layer, `[n, …]`.
        layer: Layer of the channel relevance; empty for the relevance of the inputs.
        seed: Random seed of the samples shown.
    """

    audited: AuditedRows
    relevance: Tensor
    layer: str
    seed: int

    def of_groups(self, groups: Sequence[SampleGroup]) -> list[Cluster]:
        """Return the clusters of each class, and for channels the parts of classes that rely on single channels."""
        found = []
        for g in groups:
            for k in range(g.spectrum.count):
                rows = g.rows[g.spectrum.labels == k]
                found.append(self._cluster(g.number, k, rows, *self._excess(g.number, rows), g.spectrum.stability))
            if self.layer:
                for i, (channel, rows) in enumerate(self.channel_parts(g.number, g.rows)):
                    mask = torch.arange(self._parts.shape[1]) == channel
                    own = float(self._parts[rows, channel].mean())
                    found.append(self._cluster(g.number, g.spectrum.count + i, rows, own, mask, g.spectrum.stability))
        return found

    def channel_parts(self, group: int, rows: Tensor) -> list[tuple[int, Tensor]]:
        """Return the channels that only a part of a class relies on, each with the rows of these samples."""
        others = torch.stack([mean for c, mean in self._class_means.items() if c != group])
        return [(channel, rows[high]) for channel, high in split_by_channel(self._parts[rows], others, MIN_SAMPLES)]

    def of_parts(self, parts: Iterable[tuple[str, int, Tensor]], known: Sequence[Cluster]) -> list[Cluster]:
        """Return clusters of samples that were grouped by a channel: `(view, class, rows)`."""
        found: list[Cluster] = []
        for view, group, rows in parts:
            cluster = self._cluster(group, _next_number(group, (*known, *found)), rows, *self._excess(group, rows), math.nan)
            if not any(_overlap(cluster.rows, other.rows) > 0.8 for other in (*known, *found) if other.group == group):
                found.append(replace(cluster, view=view))
        return found

    def of_marks(self, marks: Iterable[MarkedSamples], known: Sequence[Cluster]) -> list[Cluster]:
        """Return clusters of samples with a mark at changing places, unless a known suspicious cluster has most of them."""
        found: list[Cluster] = []
        for mark in marks:
            store_rows = self.audited.rows[mark.rows]
            same = [c for c in known if c.group == mark.group]
            if any(c.suspicious and torch.isin(store_rows, c.rows).double().mean() > 0.5 for c in same):
                continue
            nowhere = torch.zeros(self._parts.shape[1:], dtype=torch.bool)
            number, excess = _next_number(mark.group, (*known, *found)), self._excess(mark.group, mark.rows)[0]
            cluster = self._cluster(mark.group, number, mark.rows, excess, nowhere, math.nan)
            found.append(replace(cluster, evidence=mark.evidence))
        return found

    @cached_property
    def _parts(self) -> Tensor:
        return shares(self.relevance)

    @cached_property
    def _cells(self) -> Tensor:
        return self._parts if self.layer else pooled(self._parts)

    @cached_property
    def _class_means(self) -> dict[int, Tensor]:
        return {c: self._cells[self.audited.classes == c].mean(0) for c in self.audited.compared_classes}

    def _excess(self, group: int, rows: Tensor) -> tuple[float, Tensor]:
        """Return the share of relevance beyond that of other classes, and the positions that hold it."""
        if self.layer:
            others = torch.stack([mean for c, mean in self._class_means.items() if c != group])
            return exclusive_share(self._parts[rows].mean(0), others)
        others, own = largest_of_other_classes(self._class_means, group), self._cells[rows]
        if len(rows) < 2:
            return 0.0, torch.zeros(self._parts.shape[1:], dtype=torch.bool)
        mask = upsampled(excess_mask(own.mean(0), others), self._parts.shape[1:])
        return cross_fitted_excess(own, others, self.seed), mask

    def _cluster(self, group: int, number: int, rows: Tensor, excess: float, mask: Tensor, stability: float) -> Cluster:
        own, audited = self._parts[rows], self.audited
        mean = own.mean(0)
        inside = own[:, mask].sum(1)
        order = (own - mean).flatten(1).norm(dim=1).argsort()
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed + number))[:SAMPLES_SHOWN]
        return Cluster(
            group, number, audited.rows[rows], audited.indices[rows], self._enlarged(mean), excess,
            self._enlarged(mask.float()) > 0,
            **_statistics({name: column[rows] for name, column in audited.columns.items()}),
            consistency=float((inside >= float(mean[mask].sum()) / 2).double().mean()), stability=stability,
            nearest=audited.rows[rows[order[:SAMPLES_SHOWN]]], random=audited.rows[rows[drawn]], layer=self.layer,
            share=len(rows) / int((audited.classes == group).sum()),
            on_masks={name: float(share[rows].mean()) for name, share in audited.on_masks.items()},
        )  # fmt: skip

    def _enlarged(self, cells: Tensor) -> Tensor:
        """Return a map of the inputs' relevance at the resolution of the stored maps, with the same sum."""
        shape = cells.shape if self.layer else self.audited.map_shape
        if shape == tuple(cells.shape):
            return cells
        found = F.interpolate(cells[None, None], shape, mode="nearest")[0, 0]
        return found * (cells.sum() / found.sum().clamp(min=1e-30))


def _next_number(group: int, known: Iterable[Cluster]) -> int:
    return 1 + max((c.number for c in known if c.group == group), default=-1)


def _overlap(one: Tensor, other: Tensor) -> float:
    """Return the intersection of two sets of rows over their union."""
    both = int(torch.isin(one, other).sum())
    return both / (len(one) + len(other) - both)


def _statistics(columns: dict[str, Tensor]) -> dict[str, Any]:
    label, prediction, confidence = (columns.get(name) for name in ("label", "prediction", "confidence"))
    labelled = None if label is None or bool((label < 0).all()) else label >= 0
    known = None if label is None or labelled is None else label[labelled]
    return {
        "accuracy": None if known is None or prediction is None else float((known == prediction[labelled]).double().mean()),
        "confidence": None if confidence is None else float(confidence.mean()),
        "purity": None if known is None else float(known.unique(return_counts=True)[1].max() / len(known)),
    }
