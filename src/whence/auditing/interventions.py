"""Interventional proof of a suspicious cluster: paste its mark on other samples, cut it out of its own, measure the class."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.auditing.audit_data import AuditData
from whence.auditing.clusters import Cluster
from whence.auditing.coherence import coherence, watermark
from whence.auditing.evidence import least_effect
from whence.auditing.marks import AlignedMark, BackgroundMark, Mark, ToneMark
from whence.auditing.transplants import transplant
from whence.core.argument_checks import check_arguments
from whence.core.inputs import Inputs, check_model
from whence.core.result import Result
from whence.data.batches import ReadFunction
from whence.data.dataset_rows import DatasetRows
from whence.errors import InputError, RuleError
from whence.evaluation.bootstrap import Interval, mean_interval
from whence.evaluation.results import format_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_SAMPLES = 200
MIN_LOGIT = 0.5  # change of the logit by a watermark, where the class is too unlikely for its probability to change
SEED_OF_CONTROL = 1


@dataclass(frozen=True, eq=False)
class InterventionTest(Result):
    """The effect of a mark on a class, beside a control of other content.

    >>> proof = whence.prove(found.clusters[0], model, dataset)
    >>> proof.proven, proof.effect, proof.cut
    >>> better = whence.cure(model, proof=proof)

    Each `Interval` is the mean change with a 95 % bootstrap interval.

    Args:
        mark: What was pasted.
        group: The class.
        pasted: Change of the class's probability where the mark was pasted on samples of other classes.
        control: Change where other content was pasted on them, at the same place for marks that have one.
        effect: Paired difference `pasted` − `control`.
        logit: Paired difference of the class's logit.
        cut: Change where the mark was cut out of samples of the cluster; None for marks that cannot be cut.
        taken: Share of the samples of other classes that are classified as the class once the mark is pasted on them.
        plain: The samples of other classes, for `whence.cure`.
        least: The effect on the probability from which on the dependence is proven.
        least_logit: The same of the logit, for watermarks; infinite for others.
        channels_last: Whether the samples have their channels last; the mark has them first.
    """

    mark: Mark
    group: int
    pasted: Interval
    control: Interval
    effect: Interval
    logit: Interval
    cut: Interval | None
    taken: float
    plain: Inputs = field(repr=False)
    least: float
    least_logit: float = math.inf
    channels_last: bool = False

    @property
    def proven(self) -> bool:
        """Whether the probability changes as much beyond the control as the test asks, or the logit by 0.5 for a watermark."""
        by_probability = self.effect.mean >= self.least and self.effect.low > 0
        return by_probability or (self.logit.mean >= self.least_logit and self.logit.low > 0)

    def pasted_on(self, x: Tensor) -> Tensor:
        """Return copies of samples `[N, …]` of the dataset with the mark."""
        return self.mark.pasted(x.movedim(-1, 1)).movedim(1, -1) if self.channels_last else self.mark.pasted(x)

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per intervention: the mean change of the probability, and of the logit, with its interval."""
        found = [
            ("pasted", self.pasted),
            ("control", self.control),
            ("effect", self.effect),
            ("logit", self.logit),
            ("cut", self.cut),
        ]
        return [{"intervention": name, **interval._asdict()} for name, interval in found if interval is not None]

    def figure(self) -> "Figure":
        """Return a figure of the mean changes of the probability with their intervals."""
        from whence.plotting.interval_plots import MetricMeans, interval_figure

        found = {"pasted on other classes": self.pasted, "other content": self.control, "cut out of the cluster": self.cut}
        shown = {name: interval for name, interval in found.items() if interval is not None}
        title = f"change of the class's probability: {'proven' if self.proven else 'not proven'}"
        means, bounds = [i.mean for i in shown.values()], [i[1:3] for i in shown.values()]
        return interval_figure([MetricMeans(title, list(shown), means, bounds)], {})

    def __repr__(self) -> str:
        cut = "" if self.cut is None else f"; cut out of the cluster, it changes it by {format_interval(self.cut)}"
        return (
            f"Proof: {'proven' if self.proven else 'not proven'}. The mark pasted on other classes changes the probability by "
            f"{format_interval(self.pasted)} (other content {format_interval(self.control)}) and the logit by "
            f"{format_interval(self.logit)}, and {self.taken:.0%} of them are then classified as the class{cut}"
        )


@check_arguments
def prove(
    cluster: Cluster,
    model: Callable[..., Any],
    inputs: Any,
    *,
    read: ReadFunction | None = None,
    n_samples: int = N_SAMPLES,
    seed: int = 0,
) -> InterventionTest:
    """Test whether the model's prediction depends on what the samples of a cluster have in common.

    >>> whence.prove(whence.audit("explanations", model=model, data=dataset).clusters[0], model, dataset)
    Proof: proven. The mark pasted on other classes changes the probability by 0.43 [0.39, 0.47] …

    The mark is that of the cluster's evidence: content at a place of any shape, a watermark, a crop, a tone, or a phrase. For
    a cluster that was not tested it is the content that its samples have in common where their relevance is. It is pasted on
    samples that the model assigns to other classes, beside other content at the same place, or of the same kind, and cut out
    of samples of the cluster by the median of other classes.

    Args:
        cluster: A cluster of an audit of the input's relevance (not of a layer).
        model: Callable that returns logits `[N, classes]`; an `nn.Module` must be in eval mode.
        inputs: The dataset that the store was computed from: `x`, `(x, y)` or a map-style dataset.
        read: Function from a row of the dataset to an input, or to a pair of input and label; not for tensors.
        n_samples: Number of samples of the cluster, and of other classes, at most.
        seed: Random seed of the samples.

    Returns:
        The mean changes of the class's probability, with their controls.

    Raises:
        InputError: If the cluster is of channels, which have no position in the input; it has no positions of excess relevance;
            or the dataset is not the one of the store, or has no samples of other classes.
    """
    check_model(model)
    if n_samples < 2:
        raise RuleError(f"n_samples={n_samples}; expected 2 or more samples")
    if cluster.layer or (cluster.evidence is None and not cluster.mask.any()):
        raise InputError("the cluster has no position in the input to cut or paste; audit the input instead of a layer")
    data, random = AuditData(DatasetRows.of(inputs, read), model), torch.Generator().manual_seed(seed)
    own, plain = _samples(cluster, data, n_samples, random)
    half = plain.batch_size // 2 or 1  # the control has content of samples that the mark is not pasted on
    others, onto = data.values(plain)[half:], plain.of_samples(torch.arange(half))
    x, probability = data.values(onto), data.probability(cluster.group, onto)
    mark, control = _mark_and_control(cluster, data.values(own), others, x, probability, seed)
    before, with_mark, with_control = (data.logits_of(onto, t) for t in (x, mark.pasted(x), control.pasted(x)))
    change, other = (_probability(t, cluster.group) - _probability(before, cluster.group) for t in (with_mark, with_control))
    cut = _cut(mark, data.values(own), others)
    lost = None
    if cut is not None:
        after = data.logits_of(own, cut)
        lost = mean_interval(_probability(after, cluster.group) - _probability(data.logits(own), cluster.group))
    return InterventionTest(
        mark, cluster.group, mean_interval(change), mean_interval(other), mean_interval(change - other),
        mean_interval((with_mark - with_control)[:, cluster.group]), lost,
        float((with_mark.argmax(1) == cluster.group).double().mean()), plain, *_least(cluster, data, own, others),
        data.channels_last,
    )  # fmt: skip


def _least(cluster: Cluster, data: AuditData, own: Inputs, others: Tensor) -> tuple[float, float]:
    """Return the effect on the probability, and on the logit, from which on the dependence is proven."""
    test = "transplant" if cluster.evidence is None else cluster.evidence.test
    if test == "coherence":
        return least_effect("transplant"), MIN_LOGIT
    same = test == "transplant" and data.kind == "pictures"
    return least_effect(test, coherence(data.values(own), others, cluster.mask) if same else math.nan), math.inf


def _probability(logits: Tensor, group: int) -> Tensor:
    return logits.softmax(1)[:, group]


def _samples(cluster: Cluster, data: AuditData, count: int, random: torch.Generator) -> tuple[Inputs, Inputs]:
    """Return some samples of the cluster, and some that the model assigns to other classes."""
    if int(cluster.indices.max()) >= data.rows.count:
        raise InputError(
            f"the dataset has {data.rows.count} samples, but the cluster contains sample {int(cluster.indices.max())}; "
            "give the dataset that the store was computed from"
        )
    strangers = torch.ones(data.rows.count, dtype=torch.bool)
    strangers[cluster.indices] = False
    own = data.inputs(_random_subset(cluster.indices, count, random))
    others = data.inputs(_random_subset(strangers.nonzero()[:, 0], 2 * count, random), skip_unreadable=True)
    rows = (data.logits(others).argmax(1) != cluster.group).nonzero()[:count, 0]
    if len(rows) < 2:
        raise InputError("the mark is pasted on samples of other classes, but the model predicts none; add such samples")
    return own, others.of_samples(rows)


def _mark_and_control(
    cluster: Cluster, own: Tensor, others: Tensor, onto: Tensor, probability: Callable[[Tensor], Tensor], seed: int
) -> tuple[Mark, Mark]:
    """Return the mark of a cluster, and one of other content."""
    evidence = cluster.evidence
    if evidence is not None and evidence.test == "coherence":
        return watermark(own, others), watermark(others, own.flip(0), like=watermark(own, others))
    if evidence is None or evidence.mark is None or isinstance(evidence.mark, AlignedMark):
        if cluster.mask.shape != onto.shape[-cluster.mask.dim() :] and cluster.mask.dim() != onto.dim() - 2:
            raise InputError(
                f"the cluster's mask has shape {tuple(cluster.mask.shape)}, samples have shape {tuple(onto.shape[1:])}; give "
                "the dataset that the store was computed from"
            )
        found = transplant(own, others, onto, cluster.mask, probability, seed)
        return found.mark, found.other
    mark: Any = evidence.mark
    return mark, mark.like(others, SEED_OF_CONTROL)


def _cut(mark: Mark, own: Tensor, others: Tensor) -> Tensor | None:
    """Return samples of the cluster without the mark; None for marks whose place in a sample is not known."""
    if isinstance(mark, AlignedMark):
        return mark.cut(own, others.median(0).values)
    return mark.cut(own) if isinstance(mark, ToneMark | BackgroundMark) else None


def _random_subset(numbers: Tensor, count: int, random: torch.Generator) -> Tensor:
    return numbers[torch.randperm(len(numbers), generator=random)[:count]]
