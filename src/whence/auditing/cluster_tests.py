"""Tests of clusters by intervention: verdicts on candidates, and marks that no cluster of aligned relevance shows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.auditing import spectral_clustering
from whence.auditing.audit_data import AuditData
from whence.auditing.audit_rows import AuditedRows
from whence.auditing.candidates import (
    MIN_EXCESS,
    MIN_SIZE,
    cross_fitted_excess,
    excess_mask,
    largest_of_other_classes,
    shares,
)
from whence.auditing.clusters import Cluster
from whence.auditing.coherence import coherence
from whence.auditing.evidence import THRESHOLDS, Evidence, Test, accepted, least_effect
from whence.auditing.marks import AlignedMark
from whence.auditing.moving_marks import Recurrence, moving_marks
from whence.auditing.token_marks import phrase_effect, recurring_phrases
from whence.auditing.tones import relevance_spectrum, tone
from whence.auditing.transplants import Effect, transplant

N_OWN, N_OTHERS, N_COHERENT, N_SEARCHED = 200, 200, 50, 1000  # samples that are read for each test
N_SEARCHED_PHOTOS = 200
MIN_SIDE = 8  # of pictures in which crops are searched
N_EXAMPLES = 6  # shown with and without a mark
N_ONTO, N_ONTO_PHOTOS, PHOTO = 48, 12, 64  # samples that marks are pasted on; pictures from this side on are photos
TIMES_MEDIAN = 5  # of the coherence of other clusters: aligned pictures are coherent without a mark
TESTED_KINDS = ("pictures", "series", "texts")
MIN_HITS, MIN_RECURRENCE, MAX_ELSEWHERE = 8, 0.05, 0.2  # of moving marks


@dataclass(frozen=True)
class MarkedSamples:
    """Samples of a class that have a mark at changing places."""

    group: int
    rows: Tensor  # positions among the audited rows
    evidence: Evidence


@dataclass(frozen=True)
class ClusterTests:
    """The tests of an audit.

    Args:
        data: The samples, and the model or None.
        audited: The audited rows of the store.
        seed: Random seed of the samples that are read.
    """

    data: AuditData
    audited: AuditedRows
    seed: int = 0

    def verdicts(self, clusters: Sequence[Cluster]) -> list[Cluster]:
        """Return the clusters with their evidence: that of a transplant for candidates, or of coherence if only that passes."""
        aligned = self.possible and self.data.kind == "pictures"  # a waveform at one place is no mark
        effects = [self._transplant(c) if aligned and c.candidate else None for c in clusters]
        significant = iter(accepted([found.p_value for found in effects if found is not None]))
        cosines = self._coherences(clusters)
        evidence = [
            None if found is None else _of_effect("transplant", found, next(significant), cosine)
            for found, cosine in zip(effects, cosines, strict=True)
        ]
        evidence = [
            own and replace(own, examples=self._examples(own, cluster.group))
            for own, cluster in zip(evidence, clusters, strict=True)
        ]
        found = []
        for i, (cluster, own) in enumerate(zip(clusters, evidence, strict=True)):
            elsewhere = sorted(
                cosine
                for other, cosine in zip(clusters, cosines, strict=True)
                if other.group != cluster.group and not math.isnan(cosine)
            )
            limit = max(THRESHOLDS["coherence"], TIMES_MEDIAN * (elsewhere[len(elsewhere) // 2] if elsewhere else math.inf))
            coherent = self._photos and cluster.candidate and cosines[i] >= limit  # small pictures are aligned
            if coherent and not (own is not None and own.passed):
                own = Evidence("coherence", cosines[i], True)
            found.append(replace(cluster, evidence=own, mask=_place(own, cluster.mask)))
        return found

    def moving(self) -> Iterator[MarkedSamples]:
        """Yield marks at changing places: crops of pictures, tones in series, phrases of texts; the strongest of each class."""
        if not self.possible:
            return
        search = {"pictures": self._crops, "series": self._tones, "texts": self._phrases}.get(self.data.kind)
        for group in self._groups if search is not None else ():
            yield from search(group)  # type: ignore[misc]

    @property
    def possible(self) -> bool:
        """Whether there is a model, and a test for samples of this kind."""
        return self.data.model is not None and self.data.kind in TESTED_KINDS

    @cached_property
    def _photos(self) -> bool:
        return self.data.kind == "pictures" and min(self.data.samples(self.audited.indices[:1]).shape[2:]) >= PHOTO

    @property
    def _groups(self) -> list[int]:
        """The classes with enough samples to search."""
        return [int(c) for c in self.audited.classes.unique() if c >= 0 and int((self.audited.classes == c).sum()) >= MIN_SIZE]

    # samples

    def _rows_of(self, group: int, count: int, other: bool = False, salt: int = 0) -> Tensor:
        """Return some rows of a class, or of the others."""
        rows = ((self.audited.classes != group) if other else (self.audited.classes == group)).nonzero()[:, 0]
        return self._some(rows, count, salt)

    def _some(self, rows: Tensor, count: int, salt: int = 0) -> Tensor:
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed + salt))[:count]]

    def _samples(self, rows: Tensor) -> Tensor:
        return self.data.samples(self.audited.indices[rows])

    # clusters

    def _transplant(self, cluster: Cluster) -> Effect:
        own, others = (
            self.data.samples(self._some(cluster.indices, N_OWN)),
            self._samples(self._rows_of(cluster.group, N_OTHERS, True)),
        )
        onto, probability = self._onto(cluster.group)
        return transplant(own, others, onto, cluster.mask, probability, self.seed)

    def _onto(self, group: int):
        """Return samples of other classes on which marks are pasted, and the probability of the class for them."""
        rows = self._rows_of(group, N_ONTO_PHOTOS if self._photos else N_ONTO, other=True, salt=1)
        inputs = self.data.inputs(self.audited.indices[rows])
        return self.data.values(inputs), self.data.probability(group, inputs)

    def _examples(self, evidence: Evidence, group: int) -> tuple[Tensor, Tensor] | None:
        """Return samples of other classes without and with a mark that was found."""
        if evidence.mark is None or not evidence.passed:
            return None
        plain = self._samples(self._rows_of(group, N_EXAMPLES, other=True, salt=2))
        return plain.cpu(), evidence.mark.pasted(plain).cpu()

    def _coherences(self, clusters: Sequence[Cluster]) -> list[float]:
        """Return the coherence of each cluster of pictures; NaN for others."""
        if self.data.kind != "pictures":
            return [math.nan] * len(clusters)
        others = {group: self._samples(self._rows_of(group, N_COHERENT, other=True)) for group in {c.group for c in clusters}}
        return [
            coherence(self.data.samples(self._some(c.indices, N_COHERENT)), others[c.group], c.mask)
            if c.size >= MIN_SIZE and c.mask.any() and not c.layer else math.nan
            for c in clusters
        ]  # fmt: skip

    # marks at changing places

    def _crops(self, group: int) -> Iterator[MarkedSamples]:
        count = N_SEARCHED_PHOTOS if self._photos else N_SEARCHED
        rows = self._rows_of(group, count)
        own, others = self._samples(rows), self._samples(self._rows_of(group, count, other=True))
        if min(own.shape[2:]) < MIN_SIDE:
            return
        _, probability = self._onto(group)
        found = moving_marks(own, self.audited.maps[rows].float().clamp(min=0), others, probability, self.seed)
        passed = [mark for mark in found if _recurs(mark)]
        if passed:
            best = max(passed, key=lambda mark: len(mark.rows))
            recurrence = (best.share, best.elsewhere)
            evidence = Evidence("crop", best.change, True, best.mark, recurrence=recurrence)
            yield MarkedSamples(group, rows[best.rows], replace(evidence, examples=self._examples(evidence, group)))

    def _tones(self, group: int) -> Iterator[MarkedSamples]:
        powers = relevance_spectrum(self.audited.maps)
        means = {c: powers[self.audited.classes == c].mean(0) for c in self.audited.compared_classes}
        rows, others = (self.audited.classes == group).nonzero()[:, 0], largest_of_other_classes(means, group)
        labels = spectral_clustering.spectral_clusters(F.normalize(powers[rows].sqrt(), dim=1), None, self.seed).labels
        strangers = self._samples(self._rows_of(group, N_OTHERS, other=True))
        onto, probability = self._onto(group)
        found = []
        for number in labels.unique():
            own = rows[labels == number]
            excess = cross_fitted_excess(powers[own], others, self.seed) if len(own) >= MIN_SIZE else 0.0
            if excess >= MIN_EXCESS:
                bins = excess_mask(powers[own].mean(0), others)
                found.append((own, tone(self._samples(self._some(own, N_OWN)), strangers, onto, bins, probability)))
        for (own, effect), significant in zip(found, accepted([effect.p_value for _, effect in found]), strict=True):
            evidence = _of_effect("tone", effect, significant)
            if evidence.passed:
                yield MarkedSamples(group, own, replace(evidence, examples=self._examples(evidence, group)))

    def _phrases(self, group: int) -> Iterator[MarkedSamples]:
        rows = self._rows_of(group, N_SEARCHED)
        own, others = self._samples(rows), self._samples(self._rows_of(group, N_SEARCHED, other=True))
        protected = _everywhere(torch.cat([own, others]))
        onto, probability = self._onto(group)
        phrases = recurring_phrases(own, shares(self.audited.maps[rows]), others, protected)
        effects = [phrase_effect(phrase, onto, others, protected, probability, self.seed) for phrase in phrases]
        significant = accepted([effect.p_value for effect in effects])
        for phrase, effect, real in zip(phrases, effects, significant, strict=True):
            evidence = replace(_of_effect("tokens", effect, real), recurrence=(phrase.share, phrase.elsewhere))
            if evidence.passed:
                yield MarkedSamples(group, rows[phrase.rows], evidence)


def _place(evidence: Evidence | None, mask: Tensor) -> Tensor:
    """Return where a mark was pasted, at the resolution of a mask, if it passed and its place is known; else the mask."""
    mark = None if evidence is None or not evidence.passed else evidence.mark
    if not isinstance(mark, AlignedMark) or mask.dim() != 2:
        return mask
    weights = F.adaptive_max_pool2d(mark.weights[None, :1].float(), mask.shape) if mark.weights.dim() == 3 else mask[None, None]
    return (weights[0, 0] > 0.5).cpu()


def _of_effect(test: Test, effect: Effect, significant: bool, coherence: float = math.nan) -> Evidence:
    passed = significant and effect.interval.mean >= least_effect(test, coherence)
    found = Evidence(test, effect.interval.mean, passed, effect.mark, effect.interval, effect.control, effect.p_value)
    return replace(found, coherence=coherence)


def _recurs(mark: Recurrence) -> bool:
    """Return whether a crop has a large effect and recurs in its class alone."""
    often = len(mark.rows) >= MIN_HITS and mark.share >= MIN_RECURRENCE
    return mark.change >= THRESHOLDS["crop"] and often and mark.elsewhere <= MAX_ELSEWHERE * mark.share


def _everywhere(ids: Tensor) -> frozenset[int]:
    """Return the ids in nine of ten texts, which begin, end or fill them."""
    values, counts = torch.cat([row.unique() for row in ids]).unique(return_counts=True)
    return frozenset(values[counts >= 0.9 * len(ids)].tolist())
