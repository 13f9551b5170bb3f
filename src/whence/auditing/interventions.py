"""Interventional tests of a suspected artifact: cut it out of samples, paste it on others, and measure the predictions."""

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
MIN_EFFECT = 0.01  # change of probability: a smaller effect is not accepted as proof, however certain
MIN_FILL = 0.25  # share of the bounding rectangle that the mask must cover
MARGIN = 1  # pixels around the mask that belong to the mark


@dataclass(frozen=True)
class ArtifactPatch:
    """A rectangle of pixels and its content.

    Args:
        rows: Rows of the rectangle.
        columns: Columns of the rectangle.
        content: Pixel values, `[C, h, w]`.
    """

    rows: slice
    columns: slice
    content: Tensor  # [C, h, w]

    def pasted(self, x: Tensor, down: int = 0, right: int = 0) -> Tensor:
        """Return a copy of images `[N, C, H, W]` with the content pasted, shifted by `down` and `right` pixels."""
        twins = x.clone()
        rows, columns = self._place(down, right)
        twins[:, :, rows, columns] = self.content.to(x)
        return twins

    def cut(self, x: Tensor, down: int = 0, right: int = 0) -> Tensor:
        """Return images with the rectangle, shifted by `down` and `right` pixels, inpainted from around it."""
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
    """The effect of a mark on the probability of a class, with the same rectangle at another position as the control.

    >>> proof = whence.prove(found.clusters[0], model, dataset)
    >>> proof.proven, proof.pasted, proof.cut

    Each `Interval` is the mean change of the probability with a 95 % bootstrap interval. The verdict `proven` uses the paired
    differences to the control.

    Args:
        mark: The tested patch.
        pasted: Change where the mark was pasted on samples of other classes.
        pasted_elsewhere: Change where it was pasted on them at the control position.
        pasted_rather: Paired difference `pasted` − `pasted_elsewhere`.
        cut: Change where the mark was cut out of samples of the cluster.
        cut_elsewhere: Change where the rectangle at the control position was cut out of them.
        cut_rather: Paired difference `cut` − `cut_elsewhere`.
        taken: Share of the samples of other classes that are classified as the class once the mark is pasted on them.
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
        """Whether the mark changes the probability by at least 0.01 more than the control does, with 95 % confidence."""
        return self.pasted_rather.low > MIN_EFFECT or self.cut_rather.high < -MIN_EFFECT

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per intervention and control: the mean change of the probability, with its interval."""
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
            f"(elsewhere {format_interval(self.pasted_elsewhere)}), and {self.taken:.0%} of them are then classified as the "
            f"class; cut out of the cluster, it changes it by {format_interval(self.cut)} "
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
    """Test whether the model's prediction depends on the mark of a suspicious cluster.

    >>> whence.prove(whence.audit("explanations").clusters[0], model, dataset)
    Proof: proven. The mark pasted on other classes changes the probability by 0.43 [0.39, 0.47] …

    The mark is the rectangle around the cluster's mask, with the median content of samples of the cluster. It is pasted on
    samples that the model assigns to other classes and cut out of samples of the cluster; a rectangle of the same size at
    another position is the control.

    Args:
        cluster: A cluster of an audit of the input's relevance (not of a layer).
        model: Callable that returns logits `[N, classes]`; an `nn.Module` must be in eval mode.
        inputs: The dataset that the store was computed from: `x`, `(x, y)` or a map-style dataset of images `[C, H, W]`.
        read: Function from a row of the dataset to an input, or to a pair of input and label; not for tensors.
        n_samples: Number of samples of the cluster, and of other classes, at most.
        seed: Random seed of the samples and of the control position.

    Returns:
        The mean changes of the class's probability, with their controls.

    Raises:
        InputError: If the cluster is of channels, which have no position in the image; its mask is scattered or too large; or
            the dataset is not the one of the store, has no images, or has no samples of other classes.
    """
    check_model(model)
    if cluster.layer or cluster.mask.dim() != 2 or not cluster.mask.any():
        raise InputError("the cluster has no position in the image to cut or paste; audit the input instead of a layer")
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
    """Callable that computes the change of a class's probability between images and their modified copies, `[N]`."""

    model: Callable[..., Any]
    group: int

    def __call__(self, x: Tensor, twins: Tensor) -> Tensor:
        before, after = (batched_logits(self.model, t).double().softmax(1)[:, self.group] for t in (x, twins))
        return (after - before).cpu()


def _samples(
    cluster: Cluster, model: Callable[..., Any], rows: DatasetRows, count: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return some samples of the cluster, and some that the model assigns to other classes."""
    if int(cluster.indices.max()) >= rows.count:
        raise InputError(
            f"the dataset has {rows.count} samples, but the cluster contains sample {int(cluster.indices.max())}; "
            "give the dataset that the store was computed from"
        )
    members = set(cluster.indices.tolist())
    strangers = torch.tensor([i for i in range(rows.count) if i not in members])
    own = _read_pictures(rows, _random_subset(cluster.indices, count, random), model)
    others = _read_pictures(rows, _random_subset(strangers, 2 * count, random), model)
    others = others[batched_logits(model, others).argmax(1) != cluster.group][:count]
    if not len(others):
        raise InputError("the mark is pasted on samples of other classes, but the model predicts none; add such samples")
    return own, others


def _read_pictures(rows: DatasetRows, numbers: Tensor, model: Any) -> Tensor:
    """Return the samples that can be read."""
    samples, failed = rows.read(numbers.tolist())
    if samples is None:
        raise InputError(f"none of {len(numbers)} samples can be read: {failed[0].message if failed else 'the set is empty'}")
    if not isinstance(samples.inputs.nest, Tensor):
        raise InputError("prove() expects samples that are one image [C, H, W]; the dataset has several inputs per sample")
    return samples.inputs.beside(model).nest


def artifact_of(cluster: Cluster, x: Tensor) -> ArtifactPatch:
    """Return the rectangle around the mask, one pixel wider, with the median content of samples of the cluster."""
    h, w = cluster.mask.shape
    if x.dim() != 4 or tuple(x.shape[2:]) != (h, w):
        raise InputError(f"the cluster's mask has shape {(h, w)}, expected images [C, {h}, {w}], got {tuple(x.shape[1:])}")
    r, c = cluster.mask.nonzero().T
    rows = slice(max(0, int(r.min()) - MARGIN), min(h, int(r.max()) + 1 + MARGIN))
    columns = slice(max(0, int(c.min()) - MARGIN), min(w, int(c.max()) + 1 + MARGIN))
    if int(cluster.mask.sum()) < MIN_FILL * (rows.stop - rows.start) * (columns.stop - columns.start):
        raise InputError(
            "the suspicious positions are scattered, so there is no single mark to cut or paste; inspect the cluster's samples"
        )
    return ArtifactPatch(rows, columns, x[:, :, rows, columns].median(0).values)


def _control_offset(mark: ArtifactPatch, x: Tensor, random: torch.Generator) -> tuple[int, int]:
    """Draw a shift to a position that does not overlap the mark."""
    height, width = mark.rows.stop - mark.rows.start, mark.columns.stop - mark.columns.start
    tops, lefts = range(x.shape[2] - height + 1), range(x.shape[3] - width + 1)
    free = [
        (top - mark.rows.start, left - mark.columns.start)
        for top in tops
        for left in lefts
        if abs(top - mark.rows.start) >= height or abs(left - mark.columns.start) >= width
    ]
    if not free:
        raise InputError("the mark is too large: the image has no other position of its size for the control")
    return free[int(torch.randint(len(free), (), generator=random))]


def _random_subset(numbers: Tensor, count: int, random: torch.Generator) -> Tensor:
    return numbers[torch.randperm(len(numbers), generator=random)[:count]]
