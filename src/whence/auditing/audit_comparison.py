"""Comparison of two audits, of a model before and after a change, or of two models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from whence.auditing.clusters import Cluster
from whence.core.result import Result
from whence.errors import count_noun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_OVERLAP = 0.3  # share of a cluster's samples in another one, from which on it is the same
Outcome = Literal["gone", "remains", "new", "not audited"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, eq=False)
class ClusterChange:
    """A suspicious cluster of one of two audits.

    Args:
        outcome: "gone", "remains", "new", or "not audited": the second audit has no cluster with these samples.
        name: Name of the class.
        before: The cluster of the first audit; for new ones, the one with most of its samples, if there is one.
        after: The cluster of the second audit, likewise.
    """

    outcome: Outcome
    name: str
    before: Cluster | None
    after: Cluster | None

    def __repr__(self) -> str:
        first, second = (_effect_words(cluster) for cluster in (self.before, self.after))
        return f"{self.outcome}: {self.cluster_name}: effect {first} before, {second} after"

    @property
    def cluster_name(self) -> str:
        """The class and the number of the cluster, in the audit that found it."""
        cluster = self.after if self.outcome == "new" else self.before
        return f"class {self.name}, cluster {cluster and cluster.number}"


@dataclass(frozen=True, repr=False, eq=False)
class AuditComparison(Result):
    """The suspicious clusters of two audits, which are gone, remain, are new, or were not audited again.

    >>> before = whence.audit("before", model=model, data=dataset)
    >>> after = whence.audit("after", model=cured, data=dataset)
    >>> before.compare(after)
    Comparison of audits: 1 suspicious cluster gone, 0 remain, 0 new …

    Args:
        changes: The suspicious clusters of both audits.
    """

    changes: Sequence[ClusterChange]

    def of(self, outcome: Outcome) -> list[ClusterChange]:
        """Return the changes with an outcome."""
        return [change for change in self.changes if change.outcome == outcome]

    def __repr__(self) -> str:
        gone, remain, new, missing = (len(self.of(outcome)) for outcome in OUTCOMES)
        again = f", {missing} not audited again" if missing else ""
        head = f"Comparison of audits: {count_noun(gone, 'suspicious cluster')} gone, {remain} remain, {new} new{again}"
        return "\n".join([head, *(f"  {change!r}" for change in self.changes)])

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per suspicious cluster: its class, outcome, and the numbers, sizes and effects in both audits."""
        rows = []
        for change in self.changes:
            row: dict[str, Any] = {"class": change.name, "outcome": change.outcome}
            for when, c in (("before", change.before), ("after", change.after)):
                row |= {f"cluster_{when}": c and c.number, f"size_{when}": c and c.size, f"effect_{when}": _effect(c)}
            rows.append(row)
        return rows

    def figure(self) -> "Figure":
        """Return a figure of the effects of each suspicious cluster before and after."""
        from whence.plotting.effect_changes import effect_change_figure

        names = [f"{change.cluster_name}: {change.outcome}" for change in self.changes]
        return effect_change_figure(names, [(_effect(change.before), _effect(change.after)) for change in self.changes])


def compare_clusters(before: Sequence[Cluster], after: Sequence[Cluster], name: Any) -> AuditComparison:
    """Return the comparison of the clusters of two audits, which are matched by their samples."""
    changes, matched = [], set()
    for cluster in (c for c in before if c.suspicious):
        same = _most_similar(cluster, [c for c in after if c.suspicious or _as_strong(c, cluster)])
        found = same or _most_similar(cluster, after)
        if same is not None:
            matched.add(id(same))
        outcome: Outcome = "remains" if same is not None else "not audited" if found is None else "gone"
        changes.append(ClusterChange(outcome, name(cluster.group), cluster, found))
    for cluster in (c for c in after if c.suspicious and id(c) not in matched):
        if _most_similar(cluster, [c for c in before if c.suspicious]) is None:
            changes.append(ClusterChange("new", name(cluster.group), _most_similar(cluster, before), cluster))
    return AuditComparison(sorted(changes, key=lambda change: OUTCOMES.index(change.outcome)))


def _most_similar(cluster: Cluster, others: Sequence[Cluster]) -> Cluster | None:
    """Return the cluster of the same class with most of the samples, if it has three tenths of them."""
    shared = [
        (float(torch.isin(cluster.indices, other.indices).double().mean()), other)
        for other in others
        if other.group == cluster.group
    ]
    share, best = max(shared, key=lambda pair: pair[0], default=(0.0, None))
    return best if share >= MIN_OVERLAP else None


def _as_strong(after: Cluster, before: Cluster) -> bool:
    """Return whether an effect is at least half of one before, though it may not reach the threshold any more."""
    first, second = _effect(before), _effect(after)
    return first is not None and second is not None and second >= first / 2


def _effect(cluster: Cluster | None) -> float | None:
    return None if cluster is None or cluster.evidence is None else cluster.evidence.effect


def _effect_words(cluster: Cluster | None) -> str:
    effect = _effect(cluster)
    if effect is None:
        return "none" if cluster is not None and not cluster.candidate else "not tested"
    return f"{effect:.2f}"
