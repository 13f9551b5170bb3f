"""Transplants: what the samples of a cluster have in common is pasted on other classes, beside other content at that place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.auditing.marks import AlignedMark, Mark, high_pass
from whence.evaluation.bootstrap import Interval, mean_interval

CONSTANT_SHARE, CONSTANT_RANGE, CONSTANT_DIFFERENCE = 0.9, 0.03, 0.1  # of samples; of the range of values, twice
N_FLIPS = 999

Probability = Callable[[Tensor], Tensor]  # samples [N, …] -> the probability of the class, [N]


@dataclass(frozen=True)
class Effect:
    """The effect of a mark on the probability of a class, beyond that of a control.

    Args:
        mark: The mark.
        other: The mark of the control.
        change: Mean change of the probability of other classes' samples with the mark.
        control: Mean change with the control.
        interval: The mean difference, with its 95 % bootstrap interval.
        p_value: Of the difference, by flipping the signs of the samples' differences.
    """

    mark: Mark
    other: Mark
    change: float
    control: float
    interval: Interval
    p_value: float


def transplant(own: Tensor, others: Tensor, onto: Tensor, cells: Tensor, probability: Probability, seed: int = 0) -> Effect:
    """Return the largest effect of the content that samples of a cluster have in common, of three ways to paste it.

    The content is the median of the cluster, the mean of its high-passed values, or the values that nearly all of its samples
    share. The control is what as many random samples of other classes have in common, at the same place. Other places are no
    control: a mark that works anywhere would work there.

    Args:
        own: Samples of the cluster, `[n, …]`.
        others: Samples of other classes, `[m, …]`, for the control.
        onto: Samples of other classes, `[k, …]`, on which the content is pasted.
        cells: The positions of the cluster's excess relevance, a boolean tensor of any resolution.
        probability: The probability of the class.
        seed: Random seed of the samples of the control.
    """
    before = probability(onto)
    control_rows = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[: max(len(own), 1)]
    found = [
        effect(mark, mark.of_content(content), onto, before, probability)
        for mark, content in _marks(own, others, others[control_rows], cells)
    ]
    return max(found, key=lambda each: each.interval.mean)


def effect(mark: Mark, control: Mark, onto: Tensor, before: Tensor, probability: Probability) -> Effect:
    """Return the effect of a mark beyond that of a control on the same samples."""
    change, other = (probability(each.pasted(onto)) - before for each in (mark, control))
    return Effect(
        mark, control, float(change.mean()), float(other.mean()), mean_interval(change - other), sign_flip_p(change - other)
    )


def sign_flip_p(differences: Tensor, seed: int = 0) -> float:
    """Return the p value of the mean of differences `[n]` under random signs, one-sided."""
    random = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (N_FLIPS, len(differences)), generator=random).double() * 2 - 1
    means = signs @ differences.double() / len(differences)
    return (int((means >= differences.double().mean()).sum()) + 1) / (N_FLIPS + 1)


def _marks(own: Tensor, others: Tensor, control: Tensor, cells: Tensor) -> Iterator[tuple[AlignedMark, Tensor]]:
    """Yield marks, each with the content of its control."""
    w = placed(cells, own)
    yield AlignedMark(w, own.median(0).values), control.median(0).values
    if own.dim() > 2:
        base = high_pass(others).mean(0)
        yield AlignedMark(w, high_pass(own).mean(0) - base, adds=True), high_pass(control).mean(0) - base
    constant = _constant_values(own, others)
    if constant.any():
        yield AlignedMark(constant.float(), own.median(0).values), control.median(0).values


def placed(cells: Tensor, x: Tensor) -> Tensor:
    """Return the positions as weights at the resolution of samples `[N, C, H, W]`, `[N, C, T]` or `[N, F]`."""
    w = cells[None, None].float()
    if w.shape[2:] != x.shape[-cells.dim() :]:
        mode = "bilinear" if cells.dim() == 2 else "linear"
        w = F.interpolate(w, tuple(x.shape[-cells.dim() :]), mode=mode, align_corners=False)
    return w[0] if x.dim() > 2 else w[0, 0]


def _constant_values(own: Tensor, others: Tensor) -> Tensor:
    """Return where nearly all samples have one value in all channels, which other classes do not have, `[1, …]`."""
    both = torch.cat([own, others])
    size = both.max() - both.min()
    middle, there = own.median(0).values, others.median(0).values
    near = ((own - middle).abs() <= CONSTANT_RANGE * size).float().mean(0) >= CONSTANT_SHARE
    differs = (middle - there).abs() >= CONSTANT_DIFFERENCE * size
    if own.dim() == 2:
        return near & differs
    return near.all(0, keepdim=True) & differs.any(0, keepdim=True)
