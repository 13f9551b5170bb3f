"""`audit`: spectral relevance analysis of stored explanations, with clusters ranked by suspicion."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.auditing import spectral_clustering
from whence.auditing.spectral_clustering import SpectralClusters
from whence.auditing.suspicious_clusters import Cluster, exclusive_share, shares, split_by_channel
from whence.core.argument_checks import check_arguments
from whence.core.files import PICTURE_SUFFIXES, text_writer
from whence.core.progress import Progress, progress
from whence.core.result import Result
from whence.errors import InputError, RuleError, StoreError, value_repr
from whence.stores.store import Store, open_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_SAMPLES = 12  # samples of a class, below which it is not clustered
SAMPLES_SHOWN = 8
MAX_ROWS_DRAWN = 6
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

    >>> found = whence.audit("explanations")
    >>> found.suspicious                            # clusters, with mask, samples and reason
    >>> found.save("report.html")                   # or .json, .png

    A cluster is suspicious if much of its relevance is at a few positions, the same in most of its samples, where no other
    class has relevance: an artifact that indicates the class.

    Args:
        store: The audited store of explanations.
        clusters: The clusters of all classes, the suspicious ones first, then by decreasing suspicion.
        groups: The samples of each clustered class, with the eigenvalues and the embedding.
        skipped: Names of the classes that have too few samples to cluster.
        layer: Layer whose channel relevance was clustered; empty if it was the relevance of the input.
    """

    store: Store
    clusters: Sequence[Cluster]
    groups: Sequence[SampleGroup]
    skipped: Sequence[str] = ()
    layer: str = ""

    @property
    def suspicious(self) -> list[Cluster]:
        """The suspicious clusters, the most suspicious first."""
        return [cluster for cluster in self.clusters if cluster.suspicious]

    def name(self, group: int) -> str:
        """Return the name of a class, given its number."""
        return self.store.manifest.class_name(group)

    def __repr__(self) -> str:
        found = self.suspicious
        head = f"Audit of {len(self.store)} explanations: {len(self.clusters)} clusters, {len(found) or 'none'} suspicious"
        lines = [f"  class {self.name(c.group)}, cluster {c.number}: {c.reason(self.name(c.group))}" for c in found]
        return "\n".join([head, *lines])

    def save(self, path: str | Path) -> Path:
        """Write a report (.html), all numbers (.json), the table (.csv) or the figure (.png, .pdf, …), and return the path."""
        return self._save(path, {".html": text_writer(self._page), ".json": text_writer(self.json)})

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per cluster: its class, size, suspicion, reason, accuracy and confidence."""
        wanted = ("class", "cluster", "layer", "size", "suspicion", "suspicious", "reason", "accuracy", "confidence")
        return [{key: c.plain(self.name(c.group))[key] for key in wanted} for c in self.clusters]

    def figure(self) -> "Figure":
        """Return a figure with a row for each of the first clusters: mean heatmap, suspicious positions, nearest samples."""
        from whence.plotting.clusters import ClusterRow, cluster_rows

        drawn = []
        for c in self.clusters[:MAX_ROWS_DRAWN]:
            title = f"class {self.name(c.group)}, cluster {c.number}\n{c.size} samples, suspicion {c.own:.0%}"
            drawn.append(ClusterRow(title, c.mean, c.mask if c.suspicious else None, self._samples(c.nearest)))
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
        about = {"store": str(self.store.folder), "samples": len(self.store), "skipped": list(self.skipped)}
        return json.dumps(about | {"clusters": clusters, "classes": groups}, indent=1)

    def _page(self) -> str:
        from whence.plotting.clusters import ClusterRow, cluster_rows
        from whence.plotting.html_pages import embed_figure, embed_in_each_palette, render_page

        clusters = []
        for c in self.clusters:
            name = self.name(c.group)
            strip = ClusterRow("", c.mean, c.mask if c.suspicious else None, self._samples(c.nearest) + self._samples(c.random))
            clusters.append((c, name, c.reason(name), embed_in_each_palette(partial(cluster_rows, [strip]))))
        clouds = [(self.name(g.number), g.spectrum, embed_figure(_embedding_figure(g.spectrum))) for g in self.groups]
        return render_page("audit.html", audit=self, clusters=clusters, clouds=clouds)


@check_arguments
def audit(
    store: Store | str | Path,
    *,
    layer: str | None = None,
    group_by: str = "prediction",
    n_clusters: int | None = None,
    masks: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: Progress = True,
) -> Audit:
    """Detect Clever Hans behaviour in many explanations by spectral clustering (SpRAy, Lapuschkin et al. 2019).

    >>> whence.audit("explanations")
    Audit of 5000 explanations: 31 clusters, 1 suspicious
      class 3, cluster 2: 22% of the relevance for 3 is at positions where no other class has any, most of it …
    >>> whence.audit("explanations", layer="features.10")     # channels, for artifacts whose position varies

    The explanations of each class are clustered spectrally; the mean |R| of each cluster is compared with those of all other
    classes. With `layer`, a part of a class that has four times as much relevance in a channel as the rest of the class and as
    any other class is a cluster too.

    Args:
        store: A `Store`, or the path of its folder.
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
        RuleError: If `n_clusters` or `group_by` is invalid.
        InputError: If no sample has a class by `group_by`, no class has 12 samples or more, there is only one class, or a mask
            has the wrong shape.
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
    maps = torch.cat(list(store.relevance.batches())) if layer is None else store.channels(layer)
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
    parts = shares(maps)
    found = _clusters(store, parts, column, groups, layer or "", seed, _mask_shares(masks or {}, parts, store))
    ranked = sorted(found, key=lambda c: (not c.suspicious, -c.own))
    return Audit(store, ranked, groups, skipped, layer or "")


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


def _clusters(
    store: Store,
    parts: Tensor,
    column: Tensor,
    groups: Sequence[SampleGroup],
    layer: str,
    seed: int,
    on_masks: Mapping[str, Tensor],
) -> list[Cluster]:
    columns = {name: store.column(name) for name in ("label", "prediction", "confidence") if name in store.names}

    def cluster(group: SampleGroup, number: int, rows: Tensor, own: float, mask: Tensor) -> Cluster:
        mean = parts[rows].mean(0)
        inside = parts[rows][:, mask].sum(1)
        order = (parts[rows] - mean).flatten(1).norm(dim=1).argsort()
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + number))[:SAMPLES_SHOWN]
        return Cluster(
            group.number, number, rows, store.index[rows], mean, own, mask,
            **_statistics({n: c[rows] for n, c in columns.items()}),
            consistency=float((inside >= float(mean[mask].sum()) / 2).double().mean()), stability=group.spectrum.stability,
            nearest=rows[order[:SAMPLES_SHOWN]], random=rows[drawn], layer=layer,
            on_masks={name: float(share[rows].mean()) for name, share in on_masks.items()},
        )  # fmt: skip

    members = {(g.number, k): g.rows[g.spectrum.labels == k] for g in groups for k in range(g.spectrum.count)}
    classes = {int(c): parts[column == c].mean(0) for c in column.unique()}
    means = {key: parts[rows].mean(0) for key, rows in members.items()}
    means |= {(c, -1): mean for c, mean in classes.items() if c not in {g.number for g in groups}}
    # classes with too few samples to cluster are compared with, too
    found = []
    for g in groups:
        against = torch.stack([mean for (number, _), mean in means.items() if number != g.number])
        for k in range(g.spectrum.count):
            found.append(cluster(g, k, members[g.number, k], *exclusive_share(means[g.number, k], against)))
        others = torch.stack([mean for c, mean in classes.items() if c != g.number])
        split = split_by_channel(parts[g.rows], others, MIN_SAMPLES) if layer and parts.dim() == 2 else []
        for i, (channel, high) in enumerate(split):
            rows, mask = g.rows[high], torch.arange(parts.shape[1]) == channel
            found.append(cluster(g, g.spectrum.count + i, rows, float(parts[rows, channel].mean()), mask))
    return found


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
