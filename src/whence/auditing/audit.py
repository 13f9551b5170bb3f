"""`audit`: spectral relevance analysis of stored explanations, with clusters ranked by suspicion."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.auditing import spectral_clustering
from whence.auditing.audit_comparison import AuditComparison, compare_clusters
from whence.auditing.audit_data import AuditData
from whence.auditing.audit_rows import MIN_SAMPLES, AuditedRows
from whence.auditing.candidates import MIN_SIZE
from whence.auditing.cluster_maker import ClusterMaker, SampleGroup
from whence.auditing.cluster_tests import ClusterTests
from whence.auditing.clusters import Cluster
from whence.auditing.evidence import IDENTICAL, least_effect
from whence.auditing.spectral_clustering import SpectralClusters
from whence.core.argument_checks import check_arguments
from whence.core.files import PICTURE_SUFFIXES, text_writer
from whence.core.fingerprints import fingerprint
from whence.core.progress import Progress, progress
from whence.core.result import Result
from whence.data.batches import ReadFunction
from whence.errors import InputError, RuleError, StoreError, count_noun, value_repr
from whence.stores.shard_worker import dataset_fingerprint
from whence.stores.store import Store, open_store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SAMPLES = 20_000
N_COMPARED, MAX_DIFFERENT = 64, 0.1  # samples whose predictions are computed again; the share that may differ
MAX_ROWS_DRAWN = 6
N_SHOWN_OF_OTHERS = 4  # samples of the clusters that are not named, on the page
MAX_NAMED = 5  # candidates in the text of an audit
SUFFIXES = (*PICTURE_SUFFIXES, ".html", ".csv", ".json")
GROUP_COLUMNS = ("prediction", "label", "target")


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
        clusters: The clusters of all classes: the suspicious ones, those whose samples have identical content first, by
            decreasing effect; then the others by decreasing excess.
        groups: The samples of each clustered class, with the eigenvalues and the embedding.
        skipped: Names of the classes that have too few samples to cluster.
        layer: Layer whose channel relevance was clustered; empty if it was the relevance of the input.
        tested: Whether the clusters were tested on a model.
        n_samples: Number of samples that were audited.
        notes: What is missing from the store, and how the data and the model differ from those that were explained.
    """

    store: Store
    clusters: Sequence[Cluster]
    groups: Sequence[SampleGroup]
    skipped: Sequence[str] = ()
    layer: str = ""
    tested: bool = False
    n_samples: int = 0
    notes: Sequence[str] = ()

    @property
    def suspicious(self) -> list[Cluster]:
        """The suspicious clusters, the most suspicious first."""
        return [cluster for cluster in self.clusters if cluster.suspicious]

    def name(self, group: int) -> str:
        """Return the name of a class, given its number."""
        return self.store.manifest.class_name(group)

    def __repr__(self) -> str:
        lines = [f"  class {self.name(c.group)}, cluster {c.number}: {c.reason(self.name(c.group))}" for c in self._named]
        return "\n".join([self.headline, *lines, *(f"  note: {note}" for note in self.notes)])

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        total = len(self.store)
        about = f"Audit of {self.n_samples}{f' of {total}' if total > self.n_samples else ''} explanations: "
        if self.suspicious:
            return f"{about}{count_noun(len(self.suspicious), 'suspicious cluster')} of {len(self.clusters)}"
        if self.tested:
            small = f" ({count_noun(len(self.skipped), 'class')} with too few samples not audited)" if self.skipped else ""
            return f"{about}nothing found in {count_noun(len(self.clusters), 'cluster')}{small}"
        return f"{about}{count_noun(len(self.candidates), 'candidate')} of {len(self.clusters)} clusters, not tested"

    @property
    def verdict(self) -> str:
        """The outcome for readers who do not know the method, in one sentence."""
        if self.suspicious:
            names = ", ".join(dict.fromkeys(self.name(c.group) for c in self.suspicious))
            classes = count_noun(len({c.group for c in self.suspicious}), "class")
            if not self.tested:
                return f"Samples of {classes} have a watermark, which was not tested on the model: {names}"
            return f"The model relies on a mark for {classes}: {names}"
        if self.tested:
            small = f". Not audited, for want of samples: {', '.join(self.skipped)}" if self.skipped else ""
            return f"No mark was found that decides a prediction; marks that are hardly used are not found{small}"
        return "Whether a mark decides predictions is not known: the clusters were not tested on the model"

    @property
    def by_class(self) -> list[dict[str, Any]]:
        """One row per class: its samples, clusters, suspicious clusters, samples in these, and the largest effect."""
        rows = []
        for g in self.groups:
            clusters = [c for c in self.clusters if c.group == g.number]
            suspicious = [c for c in clusters if c.suspicious]
            effects = [c.evidence.effect for c in clusters if c.evidence is not None and c.evidence.test != "coherence"]
            rows.append({
                "class": self.name(g.number), "samples": len(g.rows), "clusters": len(clusters),
                "suspicious": len(suspicious), "with_mark": len({int(i) for c in suspicious for i in c.rows}),
                "largest_effect": max(effects, default=None),
            })  # fmt: skip
        return rows

    def compare(self, other: "Audit") -> AuditComparison:
        """Return which suspicious clusters of this audit are gone in another, remain, or are new.

        >>> before.compare(after)

        Args:
            other: The audit after a change of the model, or of another model, on the same dataset.

        Raises:
            InputError: If the audits are of different datasets, or one of them was not tested on a model.
        """
        if not isinstance(other, Audit):
            raise InputError(f"compare() expects another audit, got {type(other).__name__}")
        if not self.tested or not other.tested:
            raise InputError("an audit without tests finds nothing to compare; pass model= and data= to both")
        if self.store.manifest.data != other.store.manifest.data:
            raise InputError("the audits are of different datasets; compare audits of the same samples")
        return compare_clusters(self.clusters, other.clusters, self.name)

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
        """Return a figure with a row for each suspicious cluster: mean heatmap, suspicious positions, nearest samples.

        If nothing was found, the first clusters are drawn.
        """
        from whence.plotting.clusters import ClusterRow, cluster_rows

        drawn = []
        for c in (self._named or self.clusters)[:MAX_ROWS_DRAWN]:
            verdict = f"effect {c.evidence.effect:.2f}" if c.evidence is not None else f"excess {c.excess:.0%}"
            title = f"class {self.name(c.group)}, cluster {c.number}\n{c.size} samples, {verdict}"
            drawn.append(ClusterRow(title, c.mean, _outline(c), self._samples(c.nearest)))
        return cluster_rows(drawn)

    def _samples(self, rows: Iterable[Any]) -> list[tuple[Tensor | None, Tensor]]:
        """Return the thumbnail, if stored, and the heatmap of each row."""
        pictures = "picture" in self.store.names
        found = []
        for row in rows:
            of_row = self.store[int(row)]
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
            "store": str(self.store.folder), "samples": self.n_samples, "outcome": self.headline,
            "verdict": self.verdict, "tested": self.tested, "by_class": self.by_class,
            "skipped": list(self.skipped), "notes": list(self.notes),
        }  # fmt: skip
        return json.dumps(about | {"clusters": clusters, "classes": groups}, indent=1)

    def _page(self) -> str:
        from whence.plotting.clusters import ClusterRow, cluster_rows
        from whence.plotting.html_pages import embed_figure, embed_in_each_palette, render_page
        from whence.plotting.mark_examples import mark_figure

        clusters, named = [], {id(c) for c in self._named}
        for c in self.clusters:
            name = self.name(c.group)
            rows = [*c.nearest, *c.random] if id(c) in named else c.nearest[:N_SHOWN_OF_OTHERS]
            strip = ClusterRow("", c.mean, _outline(c), self._samples(rows))
            examples = c.evidence.examples if c.evidence is not None else None
            shown = None if examples is None else embed_figure(mark_figure(*examples))
            clusters.append((c, name, c.reason(name), embed_in_each_palette(partial(cluster_rows, [strip])), shown))
        clouds = [(self.name(g.number), g.spectrum, embed_figure(_embedding_figure(g.spectrum))) for g in self.groups]
        first, rest = ([each for each in clusters if (id(each[0]) in named) == one] for one in (True, False))
        least = [least_effect("transplant", coherence) for coherence in (0.0, 1.0)]
        return render_page("audit.html", audit=self, first=first, rest=rest, clouds=clouds, least=least)


@check_arguments
def audit(
    store: Store | str | Path,
    *,
    model: Callable[..., Any] | None = None,
    data: Any = None,
    read: ReadFunction | None = None,
    layer: str | None = "auto",
    group_by: str = "prediction",
    n_clusters: int | None = None,
    masks: Mapping[str, Tensor] | None = None,
    max_samples: int = MAX_SAMPLES,
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
        layer: "auto" also groups the samples of a class that rely on a channel of the stored layers which the rest of the class
            does not use; None clusters the relevance of the input alone. A stored layer by name: its channels are clustered
            instead of the input, without tests.
        group_by: What defines the class of a sample: "prediction", "label" or "target". With `layer`, "label" works best (for a
            store with `target="label"`): samples without the artifact, which the model may misclassify, are then in the same
            class.
        n_clusters: Number of clusters per class, 1 to 12; if None, chosen by the largest gap between eigenvalues.
        masks: Masks by name whose share of the relevance is reported too: `[H, W]`, or `[n, H, W]` with one for each sample of
            the dataset.
        max_samples: Number of samples that are clustered; of a larger store, a random part.
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
    _check_settings(n_clusters, group_by, max_samples)
    if not store.present or not len(store):
        raise StoreError(f"{store.folder} contains no explanations yet; run whence.explain_dataset first")
    if model is not None and data is None:
        raise RuleError("model= needs data=, the dataset that the store was computed from, to test the clusters on")
    samples = None if data is None else AuditData.of(data, model, read, store.manifest.count)
    audited = AuditedRows.of_store(store, group_by, masks or {}, max_samples, seed)
    inner = layer if layer not in (None, "auto") else ""
    relevance = audited.channels(inner) if inner else audited.maps
    groups, skipped = _cluster_groups(audited, relevance, n_clusters, seed, progress)
    if not groups:
        raise InputError(
            f"no class has {MIN_SAMPLES} samples or more of the {len(audited.rows)} audited, so there is nothing to cluster; "
            "explain more samples of the dataset"
            + (", or pass a larger max_samples" if len(audited.rows) == max_samples else "")
        )
    if len(audited.classes.unique()) < 2:
        raise InputError("all samples belong to one class; an audit compares explanations of at least two classes")
    made = ClusterMaker(audited, relevance, inner, seed)
    found = made.of_groups(groups)
    if layer == "auto":
        found += made.of_parts(_channel_parts(audited, groups, seed), found)
    tested, notes = False, []
    if store.missing:
        notes.append(
            f"{len(store.missing)} of {store.manifest.shards} shards of the store are missing; run explain_dataset again"
        )
    if samples is not None and not inner:
        notes += differences(audited, samples, seed)
        tests = ClusterTests(samples, audited, seed)
        tested = tests.possible
        if model is not None and not tested:
            notes.append(
                "there are no tests for such inputs, only for pictures, series and texts; whence.prove tests a cluster"
            )
        found = tests.verdicts(found)
        found += made.of_marks(tests.moving(), found)
    return Audit(store, sorted(found, key=_rank), groups, skipped, inner, tested, len(audited.rows), notes)


def _check_settings(n_clusters: int | None, group_by: str, max_samples: int) -> None:
    if n_clusters is not None and not 1 <= n_clusters <= MIN_SAMPLES:
        raise RuleError(
            f"n_clusters={n_clusters}; give an integer from 1 to {MIN_SAMPLES}, or None to choose it by the eigenvalues"
        )
    if group_by not in GROUP_COLUMNS:
        raise RuleError(f"group_by={value_repr(group_by)}; choose from {', '.join(GROUP_COLUMNS)}")
    if max_samples < MIN_SAMPLES:
        raise RuleError(f"max_samples={max_samples}; expected {MIN_SAMPLES} or more, the fewest samples of a class to cluster")


def _channel_parts(audited: AuditedRows, groups: Sequence[SampleGroup], seed: int) -> Iterator[tuple[str, int, Tensor]]:
    """Yield the parts of classes that rely on single channels of the stored layers: the view, the class and the rows."""
    for layer in audited.store.manifest.layers:
        made = ClusterMaker(audited, audited.channels(layer), layer, seed)
        for g in groups:
            for channel, rows in made.channel_parts(g.number, g.rows):
                yield f"{layer}, channel {channel}", g.number, rows


def differences(audited: AuditedRows, samples: AuditData, seed: int) -> list[str]:
    """Return notes on how the data and the model differ from those that were explained."""
    notes, manifest = [], audited.store.manifest
    other_data = dataset_fingerprint(samples.rows) != manifest.data
    if other_data:
        notes.append("the data differ from those that were explained, or are read differently each time: tests may be wrong")
    if samples.model is None:
        return notes
    if fingerprint(samples.model) != manifest.model:
        notes.append(
            "the model is not the one that was explained, or has changed since: candidates are of that one, tests of this one"
        )
    elif "prediction" in audited.columns and not other_data:
        rows = torch.randperm(len(audited.rows), generator=torch.Generator().manual_seed(seed))[:N_COMPARED]
        again = samples.logits(samples.inputs(audited.indices[rows])).argmax(1)
        if (different := int((again != audited.columns["prediction"][rows]).sum())) > MAX_DIFFERENT * len(rows):
            notes.append(
                f"the predictions of {different} of {len(rows)} samples differ from the stored ones: the data are not those "
                "that were explained, or have another order"
            )
    return notes


def _rank(cluster: Cluster) -> tuple[float, ...]:
    """Return a sort key: suspicious clusters, those of identical content first, by effect; then the others by excess."""
    if cluster.evidence is None or not cluster.suspicious:
        return (True, False, 0.0, -cluster.excess)
    return (False, not cluster.evidence.coherence >= IDENTICAL, -cluster.evidence.effect, -cluster.excess)


def _embedding_figure(found: SpectralClusters) -> "Figure":
    from whence.plotting.clusters import embedding_scatter

    return embedding_scatter(spectral_clustering.embed_2d(found.embedding), found.labels, found.eigenvalues)


def _cluster_groups(
    audited: AuditedRows, relevance: Tensor, clusters: int | None, seed: int, shown: Progress
) -> tuple[list[SampleGroup], list[str]]:
    groups, skipped = [], []
    numbers = [int(number) for number in audited.classes.unique() if number >= 0]
    with progress("audit", len(numbers), shown) as advance:
        for number in numbers:
            rows = (audited.classes == number).nonzero()[:, 0]
            if len(rows) < MIN_SAMPLES:
                skipped.append(f"{audited.store.manifest.class_name(number)} ({len(rows)} samples, fewer than {MIN_SAMPLES})")
            else:
                vectors = spectral_clustering.features(relevance[rows])
                found = spectral_clustering.spectral_clusters(vectors, clusters, seed)
                if clusters is None and found.labels.bincount().max() < MIN_SIZE:  # so small a class is one cluster
                    found = spectral_clustering.spectral_clusters(vectors, 1, seed)
                groups.append(SampleGroup(number, rows, found))
            advance(1)
    return groups, skipped


def _outline(cluster: Cluster) -> Tensor | None:
    """Return the positions that a picture of the cluster outlines."""
    named = cluster.suspicious or (cluster.candidate and cluster.evidence is None)
    return cluster.mask if named and cluster.mask.any() else None
