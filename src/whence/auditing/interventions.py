"""From suspicion to proof: cut the mark out where it is, paste it where it is not, and see how predictions move."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.auditing.suspicious_clusters import Cluster
from whence.core.argument_checks import check_arguments
from whence.core.inputs import check_model
from whence.core.result import Result
from whence.data.dataset_rows import DatasetRows
from whence.errors import InputError
from whence.evaluation.bootstrap import Interval, mean_interval, paired_interval
from whence.evaluation.imputers import Inpainting
from whence.evaluation.results import format_interval
from whence.robustness.attacked_batch import batched_logits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_SAMPLES = 200
MIN_EFFECT = 0.01  # change of probability: less is no proof, however certain
MIN_FILL = 0.25  # of the rectangle around a mask, the mask
MARGIN = 1  # pixels around the mask that belong to the mark


@dataclass(frozen=True)
class ArtifactPatch:
    """A rectangle of pixels, and what stands in it."""

    rows: slice
    columns: slice
    content: Tensor  # [C, h, w]

    def pasted(self, x: Tensor, down: int = 0, right: int = 0) -> Tensor:
        """On pictures `[N, C, H, W]`, moved by so many pixels."""
        twins = x.clone()
        rows, columns = self._place(down, right)
        twins[:, :, rows, columns] = self.content.to(x)
        return twins

    def cut(self, x: Tensor, down: int = 0, right: int = 0) -> Tensor:
        """Out of pictures, the hole filled from around it."""
        hidden = torch.zeros(1, 1, 1, *x.shape[2:], dtype=torch.bool, device=x.device)
        rows, columns = self._place(down, right)
        hidden[..., rows, columns] = True
        (fill,) = Inpainting().fills(x, [])
        return fill(hidden.expand(1, *x.shape))[0]

    def _place(self, down: int, right: int) -> tuple[slice, slice]:
        rows = slice(self.rows.start + down, self.rows.stop + down)
        columns = slice(self.columns.start + right, self.columns.stop + right)
        return rows, columns


@dataclass(frozen=True)
class InterventionTest(Result):
    """How the probability of a class moves with its mark, and with a control: the same rectangle somewhere else.

    >>> proof = whence.prove(found.clusters[0], model, dataset)
    >>> proof.proven, proof.pasted, proof.cut

    `pasted` is the mean change where the mark was pasted on samples of other classes, `taken` the share of these that is then
    taken for the class; `cut` the mean change where it was cut out of samples of the cluster. Each with a 95 % interval, as is
    the difference to the control, by which it is judged.
    """

    mark: ArtifactPatch
    pasted: Interval
    pasted_elsewhere: Interval
    pasted_rather: Interval  # paired difference
    cut: Interval
    cut_elsewhere: Interval
    cut_rather: Interval
    taken: float

    @property
    def proven(self) -> bool:
        """Whether the mark itself moves predictions, by a hundredth more than a control does."""
        return self.pasted_rather.low > MIN_EFFECT or self.cut_rather.high < -MIN_EFFECT

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each intervention and its control: the mean change of the probability, with its interval."""
        names = ("pasted", "pasted_elsewhere", "pasted_rather", "cut", "cut_elsewhere", "cut_rather")
        return [{"intervention": name, **getattr(self, name)._asdict()} for name in names]

    def figure(self) -> "Figure":
        """Return a figure of the mean changes of the probability with their intervals."""
        from whence.plotting.interval_plots import MetricMeans, interval_figure

        names = {
            "pasted": "pasted on other classes", "pasted_elsewhere": "pasted elsewhere", "cut": "cut out of the cluster",
            "cut_elsewhere": "cut out elsewhere",
        }  # fmt: skip
        found = [getattr(self, name) for name in names]
        title = f"change of the class's probability: {'proven' if self.proven else 'not proven'}"
        return interval_figure([MetricMeans(title, list(names.values()), [i.mean for i in found], [i[1:3] for i in found])], {})

    def __repr__(self) -> str:
        verdict = "proven" if self.proven else "not proven"
        return (
            f"Proof: {verdict}. The mark pasted on other classes changes the probability by {format_interval(self.pasted)} "
            f"(elsewhere {format_interval(self.pasted_elsewhere)}), and {self.taken:.0%} of them are then taken for the class; "
            f"cut out of the cluster it changes it by {format_interval(self.cut)} "
            f"(elsewhere {format_interval(self.cut_elsewhere)})"
        )


@check_arguments
def prove(
    cluster: Cluster,
    model: Callable[..., Any],
    inputs: Any,
    *,
    read: Callable[[Any], Any] | None = None,
    n_samples: int = N_SAMPLES,
    seed: int = 0,
) -> InterventionTest:
    """Is it the mark that the model answers to?

    >>> whence.prove(whence.audit("explanations").clusters[0], model, dataset)
    Proof: proven. The mark pasted on other classes changes the probability by 0.43 [0.39, 0.47] …

    The mark is the rectangle around the cluster's mask with the median of what samples of the cluster have there.
    `inputs` is the one that the store is of. Raises `InputError` for clusters of channels, which have no place.
    """
    check_model(model)
    if cluster.layer or cluster.mask.dim() != 2 or not cluster.mask.any():
        raise InputError("this cluster has no place in the picture that could be cut or pasted; audit the input, not a layer")
    rows, random = DatasetRows.of(inputs, read), torch.Generator().manual_seed(seed)
    with_mark, without = _samples(cluster, model, rows, n_samples, random)
    mark = artifact_of(cluster, with_mark)
    aside = _control_offset(mark, with_mark, random)
    moved = ProbabilityShift(model, cluster.group)
    pasted, pasted_aside = (moved(without, mark.pasted(without, *at)) for at in ((0, 0), aside))
    cut, cut_aside = (moved(with_mark, mark.cut(with_mark, *at)) for at in ((0, 0), aside))
    taken = (batched_logits(model, mark.pasted(without)).argmax(1) == cluster.group).double().mean()
    return InterventionTest(
        mark, mean_interval(pasted), mean_interval(pasted_aside), paired_interval(pasted, pasted_aside),
        mean_interval(cut), mean_interval(cut_aside), paired_interval(cut, cut_aside), float(taken),
    )  # fmt: skip


@dataclass(frozen=True)
class ProbabilityShift:
    """How the probability of a class differs between pictures and their twins, `[N]`."""

    model: Callable[..., Any]
    group: int

    def __call__(self, x: Tensor, twins: Tensor) -> Tensor:
        before, after = (batched_logits(self.model, t).double().softmax(1)[:, self.group] for t in (x, twins))
        return (after - before).cpu()


def _samples(
    cluster: Cluster, model: Callable[..., Any], rows: DatasetRows, count: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Some of the cluster, and some that the model takes for other classes."""
    if int(cluster.indices.max()) >= rows.count:
        raise InputError(
            f"{rows.count} samples, but the cluster has sample {int(cluster.indices.max())}; give the data of the store"
        )
    members = set(cluster.indices.tolist())
    strangers = torch.tensor([i for i in range(rows.count) if i not in members])
    own = _read_pictures(rows, _random_subset(cluster.indices, count, random), model)
    others = _read_pictures(rows, _random_subset(strangers, 2 * count, random), model)
    others = others[batched_logits(model, others).argmax(1) != cluster.group][:count]
    if not len(others):
        raise InputError("the data has no samples of other classes to paste the mark on")
    return own, others


def _read_pictures(rows: DatasetRows, numbers: Tensor, model: Any) -> Tensor:
    """Those that can still be read."""
    samples, failed = rows.read(numbers.tolist())
    if samples is None:
        raise InputError(f"none of {len(numbers)} samples can be read: {failed[0].message if failed else 'there are none'}")
    if not isinstance(samples.inputs.nest, Tensor):
        raise InputError("marks are cut from pictures [C, H, W]; the data has several inputs")
    return samples.inputs.beside(model).nest


def artifact_of(cluster: Cluster, x: Tensor) -> ArtifactPatch:
    """The rectangle around the mask, a pixel wider, with the median of what samples of the cluster have there."""
    h, w = cluster.mask.shape
    if x.dim() != 4 or tuple(x.shape[2:]) != (h, w):
        raise InputError(f"a mask of {(h, w)} for samples of {tuple(x.shape[1:])}; marks are cut from pictures [C, H, W]")
    r, c = cluster.mask.nonzero().T
    rows = slice(max(0, int(r.min()) - MARGIN), min(h, int(r.max()) + 1 + MARGIN))
    columns = slice(max(0, int(c.min()) - MARGIN), min(w, int(c.max()) + 1 + MARGIN))
    if int(cluster.mask.sum()) < MIN_FILL * (rows.stop - rows.start) * (columns.stop - columns.start):
        raise InputError(
            "the suspicious places are scattered; there is no one mark to cut or paste. Look at the cluster's samples"
        )
    return ArtifactPatch(rows, columns, x[:, :, rows, columns].median(0).values)


def _control_offset(mark: ArtifactPatch, x: Tensor, random: torch.Generator) -> tuple[int, int]:
    """A shift to a place that does not touch the mark."""
    height, width = mark.rows.stop - mark.rows.start, mark.columns.stop - mark.columns.start
    tops, lefts = range(x.shape[2] - height + 1), range(x.shape[3] - width + 1)
    free = [
        (top - mark.rows.start, left - mark.columns.start)
        for top in tops
        for left in lefts
        if abs(top - mark.rows.start) >= height or abs(left - mark.columns.start) >= width
    ]
    if not free:
        raise InputError("the mark is too large: there is no other place of its size to compare with")
    return free[int(torch.randint(len(free), (), generator=random))]


def _random_subset(numbers: Tensor, count: int, random: torch.Generator) -> Tensor:
    return numbers[torch.randperm(len(numbers), generator=random)[:count]]
