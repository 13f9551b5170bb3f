"""`audit`: spectral relevance analysis of stored explanations, with clusters ranked by suspicion."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.auditing import spectral_clustering
from whence.auditing.audit_data import AuditData
from whence.auditing.candidates import cross_fitted_excess, excess_mask, largest_of_other_classes, pooled, shares, upsampled
from whence.auditing.channel_clusters import exclusive_share, split_by_channel
from whence.auditing.cluster_tests import ClusterTests, MarkedSamples
from whence.auditing.clusters import Cluster
from whence.auditing.spectral_clustering import SpectralClusters
from whence.core.argument_checks import check_arguments
from whence.core.files import PICTURE_SUFFIXES, text_writer
from whence.core.inputs import has_colours_last
from whence.core.progress import Progress, progress
from whence.core.result import Result
from whence.data.batches import ReadFunction
from whence.errors import InputError, RuleError, StoreError, count_noun, value_repr
from whence.stores.store import Store, open_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_SAMPLES = 12  # samples of a class, below which it is not clustered
SAMPLES_SHOWN = 8
MAX_ROWS_DRAWN = 6
MAX_NAMED = 5  # candidates in the text of an audit
SUFFIXES = (*PICTURE_SUFFIXES, ".html", ".csv", ".json")
GROUP_COLUMNS = ("prediction", "label", "target")


@dataclass(frozen=True)
class SampleGroup:
    """The samples of one class and the clusters of their explanations."""

    number: int
    rows: Tensor
    spectrum: SpectralClusters


@dataclass(frozen=True, repr=False, eq=False)
class Audit(Result):
    """The clusters of explanations that an audit detected, the most suspicious first.

    >>> found = whence.audit("explanations", model=model, data=dataset)
    >>> found.suspicious                            # clusters, with mask, samples, evidence and reason
    >>> found.save("report.html")                   # or .json, .png

    A cluster is suspicious if what its samples have in common decides the prediction: pasted on samples of other classes, it
    raises the probability of the class, and other content at that place does not. Without a model and data, clusters are
    candidates at most.

    Args:
        store: The audited store of explanations.
        clusters: The clusters of all classes: the suspicious ones by decreasing effect, then the others by decreasing excess.
        groups: The samples of each clustered class, with the eigenvalues and the embedding.
        skipped: Names of the classes that have too few samples to cluster.
        layer: Layer whose channel relevance was clustered; empty if it was the relevance of the input.
        tested: Whether the clusters were tested on a model.
    """

    store: Store
    clusters: Sequence[Cluster]
    groups: Sequence[SampleGroup]
    skipped: Sequence[str] = ()
    layer: str = ""
    tested: bool = False

    @property
    def suspicious(self) -> list[Cluster]:
        """The suspicious clusters, the most suspicious first."""
        return [cluster for cluster in self.clusters if cluster.suspicious]

    def name(self, group: int) -> str:
        """Return the name of a class, given its number."""
        return self.store.manifest.class_name(group)

    def __repr__(self) -> str:
        lines = [f"  class {self.name(c.group)}, cluster {c.number}: {c.reason(self.name(c.group))}" for c in self._named]
        return "\n".join([self.headline, *lines])

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        about = f"Audit of {len(self.store)} explanations: "
        if self.suspicious:
            return f"{about}{count_noun(len(self.suspicious), 'suspicious cluster')} of {len(self.clusters)}"
        if self.tested:
            return f"{about}nothing found in {count_noun(len(self.clusters), 'cluster')}"
        return f"{about}{count_noun(len(self.candidates), 'candidate')} of {len(self.clusters)} clusters, not tested"

    @property
    def candidates(self) -> list[Cluster]:
        """The clusters that are not tested and may be suspicious, those with the largest excess first."""
        return [cluster for cluster in self.clusters if cluster.candidate and cluster.evidence is None]

    @property
    def _named(self) -> list[Cluster]:
        """The clusters that the outcome names."""
        return self.suspicious or ([] if self.tested else self.candidates[:MAX_NAMED])

    def save(self, path: str | Path) -> Path:
        """Write a report (.html), all numbers (.json), the table (.csv) or the figure (.png, .pdf, …), and return the path."""
        return self._save(path, {".html": text_writer(self._page), ".json": text_writer(self.json)})

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per cluster: its class, size, excess, verdict, effect, reason, accuracy and confidence."""
        wanted = ("class", "cluster", "layer", "size", "share", "excess", "candidate", "suspicious")
        found = []
        for c in self.clusters:
            plain, of = c.plain(self.name(c.group)), c.evidence
            row = {key: plain[key] for key in wanted}
            row |= {"test": of.test if of else None, "effect": of.effect if of else None}
            found.append(row | {key: plain[key] for key in ("reason", "accuracy", "confidence")})
        return found

    def figure(self) -> "Figure":
        """Return a figure with a row for each of the first clusters: mean heatmap, suspicious positions, nearest samples."""
        from whence.plotting.clusters import ClusterRow, cluster_rows

        drawn = []
        for c in self.clusters[:MAX_ROWS_DRAWN]:
            verdict = f"effect {c.evidence.effect:.2f}" if c.evidence is not None else f"excess {c.excess:.0%}"
            title = f"class {self.name(c.group)}, cluster {c.number}\n{c.size} samples, {verdict}"
            drawn.append(ClusterRow(title, c.mean, _outline(c), self._samples(c.nearest)))
        return cluster_rows(drawn)

    def _samples(self, rows: Tensor) -> list[tuple[Tensor | None, Tensor]]:
        """Return the thumbnail, if stored, and the heatmap of each row."""
        pictures = "picture" in self.store.names
        found = []
        for row in rows.tolist():
            of_row = self.store[row]
            found.append((of_row["picture"] if pictures else None, of_row["relevance"]))
        return found

    def json(self) -> str:
        """Return all clusters and eigenvalues as a JSON string."""
        groups = [
            {"class": self.name(g.number), "eigenvalues": g.spectrum.eigenvalues.tolist(), "gap": g.spectrum.gap,
             "clusters": g.spectrum.count}
            for g in self.groups
        ]  # fmt: skip
        clusters = [c.plain(self.name(c.group)) for c in self.clusters]
        about = {
            "store": str(self.store.folder), "samples": len(self.store), "outcome": self.headline, "tested": self.tested,
            "skipped": list(self.skipped),
        }  # fmt: skip
        return json.dumps(about | {"clusters": clusters, "classes": groups}, indent=1)

    def _page(self) -> str:
        from whence.plotting.clusters import ClusterRow, cluster_rows
        from whence.plotting.html_pages import embed_figure, embed_in_each_palette, render_page
        from whence.plotting.mark_examples import mark_figure

        clusters = []
        for c in self.clusters:
            name = self.name(c.group)
            strip = ClusterRow("", c.mean, _outline(c), self._samples(c.nearest) + self._samples(c.random))
            examples = c.evidence.examples if c.evidence is not None else None
            shown = None if examples is None else embed_figure(mark_figure(*examples))
            clusters.append((c, name, c.reason(name), embed_in_each_palette(partial(cluster_rows, [strip])), shown))
        clouds = [(self.name(g.number), g.spectrum, embed_figure(_embedding_figure(g.spectrum))) for g in self.groups]
        named = {id(c) for c in self._named}
        first, rest = ([each for each in clusters if (id(each[0]) in named) == one] for one in (True, False))
        return render_page("audit.html", audit=self, first=first, rest=rest, clouds=clouds)


@check_arguments
def audit(
    store: Store | str | Path,
    *,
    model: Callable[..., Any] | None = None,
    data: Any = None,
    read: ReadFunction | None = None,
    layer: str | None = None,
    group_by: str = "prediction",
    n_clusters: int | None = None,
    masks: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: Progress = True,
) -> Audit:
    """Detect Clever Hans behaviour in many explanations by spectral clustering (SpRAy, Lapuschkin et al. 2019) and tests.

    >>> whence.audit("explanations", model=model, data=dataset)
    Audit of 5000 explanations: 1 suspicious cluster of 31
      class 3, cluster 2: pasting what its samples have in common on samples of other classes changes the probability of 3 …

    The explanations of each class are clustered spectrally. Clusters with relevance at positions where no other class has as
    much are candidates. Each is tested: what its samples have in common is pasted on samples of other classes, beside other
    content at the same place. Pictures are also searched for a watermark and for crops, series for tones, and texts for
    phrases, that raise the class wherever they are pasted and recur in it alone.

    A legitimate feature that is at one place in all samples, and decides the class wherever it is pasted, is the same thing as
    a mark: look at what was found. Marks that the model hardly uses are not found.

    Args:
        store: A `Store`, or the path of its folder.
        model: The model that was explained, which returns logits `[N, classes]`; None names candidates only.
        data: The dataset that the store was computed from: `x`, `(x, y)` or a map-style dataset; needed with `model`. Alone it
            suffices to find watermarks.
        read: Function from a row of the dataset to an input, or to a pair of input and label; not for tensors.
        layer: Layer whose channel relevance is clustered instead of the relevance of the input; the store must contain it. A
            late convolution is best for artifacts that are recognised at any position.
        group_by: What defines the class of a sample: "prediction", "label" or "target". With `layer`, "label" works best (for a
            store with `target="label"`): samples without the artifact, which the model may misclassify, are then in the same
            class.
        n_clusters: Number of clusters per class, 1 to 12; if None, chosen by the largest gap between eigenvalues.
        masks: Masks by name whose share of the relevance is reported too: `[H, W]`, or `[n, H, W]` with one for each sample of
            the dataset.
        seed: Random seed of the clustering and of the samples shown.
        progress: Whether to show a progress bar, or a function that is called with (done, total) instead.

    Returns:
        The clusters, the most suspicious first, with a report.

    Raises:
        StoreError: If the store is empty, or has no column `group_by` or no relevance of `layer`.
        RuleError: If `n_clusters` or `group_by` is invalid, or a model is given without data.
        InputError: If no sample has a class by `group_by`, no class has 12 samples or more, there is only one class, or a mask
            has the wrong shape; or the data are not those of the store.
        MissingPackageError: If scikit-learn is not installed.
    """
    store = store if isinstance(store, Store) else open_store(store)
    if n_clusters is not None and not 1 <= n_clusters <= MIN_SAMPLES:
        raise RuleError(
            f"n_clusters={n_clusters}; give an integer from 1 to {MIN_SAMPLES}, or None to choose it by the eigenvalues"
        )
    if group_by not in GROUP_COLUMNS:
        raise RuleError(f"group_by={value_repr(group_by)}; choose from {', '.join(GROUP_COLUMNS)}")
    if not store.present or not len(store):
        raise StoreError(f"{store.folder} contains no explanations yet; run whence.explain_dataset first")
    if model is not None and data is None:
        raise RuleError("model= needs data=, the dataset that the store was computed from, to test the clusters on")
    samples = None if data is None else AuditData.of(data, model, read, store.manifest.count)
    maps = _maps(store) if layer is None else store.channels(layer)
    column = store.column(group_by)
    if (column < 0).all():
        raise InputError(f"the samples have no {group_by}; choose group_by='prediction'")
    groups, skipped = _cluster_groups(store, maps, column, n_clusters, seed, progress)
    if not groups:
        raise InputError(
            f"no class has {MIN_SAMPLES} samples or more, so there is nothing to cluster; explain more samples of the dataset"
        )
    if len(column.unique()) < 2:
        raise InputError("all samples belong to one class; an audit compares explanations of at least two classes")
    drawn = ClusterMaker(store, shares(maps), column, layer or "", seed, masks or {})
    found = drawn.of_groups(groups)
    if samples is not None and layer is None:
        tests = ClusterTests(samples, maps, column, store.index, seed)
        found = tests.verdicts(found)
        found += drawn.of_marks(tests.moving(), found)
    ranked = sorted(found, key=_rank)
    return Audit(store, ranked, groups, skipped, layer or "", model is not None and layer is None)


def _maps(store: Store) -> Tensor:
    """Return the relevance of all samples, summed over channels."""
    maps = torch.cat(list(store.relevance.batches()))
    if store.manifest.reduce == "channels" or maps.dim() < 3:
        return maps
    return maps.sum(-1 if has_colours_last(maps.shape) else 1)


def _rank(cluster: Cluster) -> tuple[float, ...]:
    """Return a sort key: suspicious clusters by decreasing effect, then the others by decreasing excess."""
    effect = cluster.evidence.effect if cluster.evidence is not None and cluster.suspicious else 0.0
    return (not cluster.suspicious, -effect, -cluster.excess)


def _embedding_figure(found: SpectralClusters) -> "Figure":
    from whence.plotting.clusters import embedding_scatter

    return embedding_scatter(spectral_clustering.embed_2d(found.embedding), found.labels, found.eigenvalues)


def _cluster_groups(
    store: Store, maps: Tensor, column: Tensor, clusters: int | None, seed: int, shown: Progress
) -> tuple[list[SampleGroup], list[str]]:
    groups, skipped = [], []
    numbers = [int(number) for number in column.unique() if number >= 0]
    with progress("audit", len(numbers), shown) as advance:
        for number in numbers:
            rows = (column == number).nonzero()[:, 0]
            if len(rows) < MIN_SAMPLES:
                skipped.append(f"{store.manifest.class_name(number)} ({len(rows)} samples, fewer than {MIN_SAMPLES})")
            else:
                found = spectral_clustering.spectral_clusters(spectral_clustering.features(maps[rows]), clusters, seed)
                groups.append(SampleGroup(number, rows, found))
            advance(1)
    return groups, skipped


@dataclass(frozen=True)
class ClusterMaker:
    """Maker of the clusters of an audit, with all that is said about them.

    Args:
        store: The audited store.
        parts: Shares of the relevance, `[n, …]`.
        classes: The class of each sample, `[n]`.
        layer: Layer of the channel relevance; empty for the relevance of the input.
        seed: Random seed of the samples shown.
        masks: The user's masks by name.
    """

    store: Store
    parts: Tensor
    classes: Tensor
    layer: str
    seed: int
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def of_groups(self, groups: Sequence[SampleGroup]) -> list[Cluster]:
        """Return the clusters of each class, and for channels the parts of classes that rely on single channels."""
        found = []
        for g in groups:
            for k in range(g.spectrum.count):
                rows = g.rows[g.spectrum.labels == k]
                found.append(self._cluster(g.number, k, rows, *self._excess(g.number, rows), g.spectrum.stability))
            if self.layer:
                others = torch.stack([mean for c, mean in self._class_means.items() if c != g.number])
                for i, (channel, high) in enumerate(split_by_channel(self.parts[g.rows], others, MIN_SAMPLES)):
                    rows, mask = g.rows[high], torch.arange(self.parts.shape[1]) == channel
                    own = float(self.parts[rows, channel].mean())
                    found.append(self._cluster(g.number, g.spectrum.count + i, rows, own, mask, g.spectrum.stability))
        return found

    def of_marks(self, marks: Iterable[MarkedSamples], known: Sequence[Cluster]) -> list[Cluster]:
        """Return clusters of samples with a mark at changing places, unless a known suspicious cluster has most of them."""
        found: list[Cluster] = []
        for mark in marks:
            same = [c for c in known if c.group == mark.group]
            if any(c.suspicious and torch.isin(mark.rows, c.rows).double().mean() > 0.5 for c in same):
                continue
            number = 1 + max((c.number for c in (*same, *(c for c in found if c.group == mark.group))), default=-1)
            nowhere = torch.zeros(self.parts.shape[1:], dtype=torch.bool)
            cluster = self._cluster(mark.group, number, mark.rows, self._excess(mark.group, mark.rows)[0], nowhere, math.nan)
            found.append(replace(cluster, evidence=mark.evidence))
        return found

    @cached_property
    def _cells(self) -> Tensor:
        return pooled(self.parts)

    @cached_property
    def _class_means(self) -> dict[int, Tensor]:
        return {int(c): (self.parts if self.layer else self._cells)[self.classes == c].mean(0) for c in self.classes.unique()}

    @cached_property
    def _on_masks(self) -> Mapping[str, Tensor]:
        return _mask_shares(self.masks, self.parts, self.store)

    def _excess(self, group: int, rows: Tensor) -> tuple[float, Tensor]:
        """Return the share of relevance beyond that of other classes, and the positions that hold it."""
        if self.layer:
            others = torch.stack([mean for c, mean in self._class_means.items() if c != group])
            return exclusive_share(self.parts[rows].mean(0), others)
        others, own = largest_of_other_classes(self._class_means, group), self._cells[rows]
        if len(rows) < 2:
            return 0.0, torch.zeros(self.parts.shape[1:], dtype=torch.bool)
        mask = upsampled(excess_mask(own.mean(0), others), self.parts.shape[1:])
        return cross_fitted_excess(own, others, self.seed), mask

    def _cluster(self, group: int, number: int, rows: Tensor, excess: float, mask: Tensor, stability: float) -> Cluster:
        own, store = self.parts[rows], self.store
        mean = own.mean(0)
        inside = own[:, mask].sum(1)
        order = (own - mean).flatten(1).norm(dim=1).argsort()
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed + number))[:SAMPLES_SHOWN]
        columns = {name: store.column(name)[rows] for name in ("label", "prediction", "confidence") if name in store.names}
        return Cluster(
            group, number, rows, store.index[rows], mean, excess, mask, **_statistics(columns),
            consistency=float((inside >= float(mean[mask].sum()) / 2).double().mean()), stability=stability,
            nearest=rows[order[:SAMPLES_SHOWN]], random=rows[drawn], layer=self.layer,
            share=len(rows) / int((self.classes == group).sum()),
            on_masks={name: float(share[rows].mean()) for name, share in self._on_masks.items()},
        )  # fmt: skip


def _outline(cluster: Cluster) -> Tensor | None:
    """Return the positions that a picture of the cluster outlines."""
    named = cluster.suspicious or (cluster.candidate and cluster.evidence is None)
    return cluster.mask if named and cluster.mask.any() else None


def _mask_shares(masks: Mapping[str, Tensor], parts: Tensor, store: Store) -> dict[str, Tensor]:
    """Return the share of relevance of each sample inside each mask, `[n]`, by name."""
    found = {}
    for name, given in masks.items():
        mask = torch.as_tensor(given)
        if parts.dim() != 3 or tuple(mask.shape) not in (tuple(parts.shape[1:]), (store.manifest.count, *parts.shape[1:])):
            raise InputError(
                f"mask {name!r} has shape {tuple(mask.shape)}, but the relevance maps have shape {tuple(parts.shape[1:])} for "
                f"{store.manifest.count} samples; give a mask [H, W], or [n, H, W] with one for each sample of the dataset"
            )
        found[name] = (parts * (mask.bool() if mask.dim() == 2 else mask.bool()[store.index])).sum((1, 2))
    return found


def _statistics(columns: dict[str, Tensor]) -> dict[str, Any]:
    label, prediction, confidence = (columns.get(name) for name in ("label", "prediction", "confidence"))
    known = None if label is None or bool((label < 0).all()) else label
    return {
        "accuracy": None if known is None or prediction is None else float((known == prediction).double().mean()),
        "confidence": None if confidence is None else float(confidence.mean()),
        "purity": None if known is None else float(known.bincount().max() / len(known)) if (known >= 0).all() else None,
    }
