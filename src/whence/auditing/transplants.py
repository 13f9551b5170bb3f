"""Transplants: what the samples of a cluster have in common is pasted on other classes, beside other content at that place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.auditing.marks import AlignedMark, BackgroundMark, Mark, high_pass
from whence.evaluation.bootstrap import Interval, mean_interval

CONSTANT_SHARE, CONSTANT_RANGE, CONSTANT_DIFFERENCE = 0.9, 0.03, 0.1  # of samples; of the range of values, twice
N_COLORS, BACKGROUND_SHARE, FOREIGN_SHARE = 32, 0.2, 0.02  # levels of each channel; shares of the pixels of one color
N_GENERAL = 2  # ways that paste all that is at a place
SPECIFIC_SHARE = 0.9  # of the largest effect, from which on a more specific mark is preferred
N_PIXELS = 200_000  # of which the most common color is counted
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
    """Return the effect of the content that samples of a cluster have in common, of four ways to paste it.

    The content is the median of the cluster, the mean of its high-passed values, the values that nearly all of its samples
    share, or the color of their background. The control is what as many random samples of other classes have in common, at the
    same place. Other places are no control: a mark that works anywhere would work there. The effect is that of the way with the
    largest one; constant values and backgrounds, which leave the rest of a sample as it is, are preferred at nine tenths of it.

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
        effect(mark, control, onto, before, probability) for mark, control in _marks(own, others, others[control_rows], cells)
    ]
    best = max(found, key=lambda each: each.interval.mean)
    specific = (each for each in found[N_GENERAL:] if each.interval.mean >= SPECIFIC_SHARE * best.interval.mean > 0)
    return next(specific, best)


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


def _marks(own: Tensor, others: Tensor, control: Tensor, cells: Tensor) -> Iterator[tuple[Mark, Mark]]:
    """Yield marks, each with its control; the most specific ones come after the first two."""
    w, middle = placed(cells, own), control.median(0).values
    mark = AlignedMark(w, own.median(0).values)
    yield mark, mark.of_content(middle)
    if own.dim() > 2:
        base = high_pass(others).mean(0)
        mark = AlignedMark(w, high_pass(own).mean(0) - base, adds=True)
        yield mark, mark.of_content(high_pass(control).mean(0) - base)
    constant = _constant_values(own, others)
    for weights in (constant & (w > 0.5), constant):
        if weights.any():
            mark = AlignedMark(weights.float(), own.median(0).values)
            yield mark, mark.of_content(middle)
    if own.dim() == 4 and (background := background_mark(own, others)) is not None:
        yield background, background.like(others, 0)


def placed(cells: Tensor, x: Tensor) -> Tensor:
    """Return the positions as weights at the resolution of samples `[N, C, H, W]`, `[N, C, T]` or `[N, F]`."""
    w = cells[None, None].float()
    if w.shape[2:] != x.shape[-cells.dim() :]:
        mode = "bilinear" if cells.dim() == 2 else "linear"
        w = F.interpolate(w, tuple(x.shape[-cells.dim() :]), mode=mode, align_corners=False)
    return w[0] if x.dim() > 2 else w[0, 0]


def background_mark(own: Tensor, others: Tensor) -> BackgroundMark | None:
    """Return the color of the cluster's background, if it is hardly found in other classes; None for photos."""
    both = torch.cat([own, others])
    low, size = float(both.min()), max(float(both.max() - both.min()), 1e-30)
    (color, share), (plain, _) = _most_common_color(own, low, size), _most_common_color(others, low, size)
    tolerance = CONSTANT_RANGE * size
    same = ((others - color[:, None, None]).abs() <= tolerance).all(1)
    foreign = float(same.double().mean()) <= FOREIGN_SHARE and bool(((color - plain).abs() > 2 * tolerance).any())
    return BackgroundMark(plain, color, tolerance) if share >= BACKGROUND_SHARE and foreign else None


def _most_common_color(x: Tensor, low: float, size: float) -> tuple[Tensor, float]:
    """Return the most common color `[C]` of pictures, and the share of the pixels that have it."""
    pixels = x.movedim(1, -1).flatten(0, -2)
    pixels = pixels[:: max(1, len(pixels) // N_PIXELS)]
    levels = ((pixels - low) / size * N_COLORS).long()
    codes = (levels * (N_COLORS + 1) ** torch.arange(levels.shape[1], device=x.device)).sum(1)
    values, counts = codes.unique(return_counts=True)
    best = counts.argmax()
    return pixels[codes == values[best]].median(0).values, float(counts[best]) / len(pixels)


def _constant_values(own: Tensor, others: Tensor) -> Tensor:
    """Return where nearly all samples have one value in all channels, which other classes do not have, `[1, …]`.

    The most common color of other classes, their background, is no such value: where a class is always empty is a part of it.
    """
    both = torch.cat([own, others])
    size = both.max() - both.min()
    middle, there = own.median(0).values, others.median(0).values
    near = ((own - middle).abs() <= CONSTANT_RANGE * size).float().mean(0) >= CONSTANT_SHARE
    differs = (middle - there).abs() >= CONSTANT_DIFFERENCE * size
    if own.dim() == 2:
        return near & differs
    found = near.all(0, keepdim=True) & differs.any(0, keepdim=True)
    if own.dim() == 4:
        empty, _ = _most_common_color(others, float(both.min()), max(float(size), 1e-30))
        found &= ((middle - empty[:, None, None]).abs() > CONSTANT_RANGE * size).any(0, keepdim=True)
    return found
