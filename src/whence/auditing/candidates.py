"""Candidates of an audit: clusters whose relevance is at positions where no other class has as much."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS, BINS = 14, 32  # to which maps [H, W] and [T] are pooled
N_HALVES = 10
MIN_SIZE = 8  # samples of a cluster
MIN_EXCESS, MAX_AREA = 0.05, 0.5  # of a candidate: share of its relevance, share of the positions
SHARE_OF_PEAK = 0.3  # of the largest excess: where the positions of a candidate end
BLUR = (0.25, 0.5, 0.25)


def shares(relevance: Tensor) -> Tensor:
    """Return |R| scaled to a sum of 1 for each sample, `[n, …]`."""
    sizes = relevance.abs().float()
    return sizes / sizes.flatten(1).sum(1).clamp(min=1e-30).view(-1, *[1] * (sizes.dim() - 1))


def pooled(parts: Tensor) -> Tensor:
    """Return shares `[n, H, W]`, `[n, T]` or `[n, D, H, W]` summed over at most 14 cells a side, or 32 bins."""
    size: Any = tuple(min(side, BINS if parts.dim() == 2 else CELLS) for side in parts.shape[1:])
    if size == tuple(parts.shape[1:]):
        return parts
    pool = {2: F.adaptive_avg_pool1d, 3: F.adaptive_avg_pool2d, 4: F.adaptive_avg_pool3d}[parts.dim()]
    return shares(pool(parts[:, None], size)[:, 0])


def excess_mask(mean: Tensor, others: Tensor, *, blur: bool = True) -> Tensor:
    """Return the positions where a mean map exceeds `others` by at least 0.3 of the largest excess, a boolean tensor."""
    excess = _blurred(mean - others) if blur else mean - others
    top = excess.max()
    return (excess >= SHARE_OF_PEAK * top) & (top > 0)


def cross_fitted_excess(own: Tensor, others: Tensor, seed: int = 0, *, blur: bool = True) -> float:
    """Return the share of relevance of a cluster beyond that of all other classes, on positions chosen by other samples of it.

    The positions come from a random half of the cluster, the share from the other half, 10 times both ways: a cluster is made
    of the maps that it is tested on, and positions chosen by the same maps would show an excess in any data.

    Args:
        own: Shares of the cluster's samples, `[n, …]`.
        others: The largest mean share of any other class at each position.
        seed: Random seed of the halves.
        blur: Whether positions have neighbors.
    """
    found = []
    for half in range(N_HALVES):
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed + half))
        one, two = (own[rows].mean(0) for rows in order.tensor_split(2))
        found += [float((b - others)[excess_mask(a, others, blur=blur)].sum()) for a, b in ((one, two), (two, one))]
    return sum(found) / len(found)


def largest_of_other_classes(means: dict[int, Tensor], group: int) -> Tensor:
    """Return the largest mean share of any class but `group` at each position."""
    return torch.stack([mean for number, mean in means.items() if number != group]).amax(0)


def upsampled(cells: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a boolean mask of cells at the resolution of the maps."""
    return F.interpolate(cells[None, None].float(), tuple(shape), mode="nearest")[0, 0] > 0


def _blurred(excess: Tensor) -> Tensor:
    """Return a map convolved with [1 2 1]/4 along each axis."""
    kernel = torch.tensor(BLUR).to(excess)
    for dim in range(excess.dim()):
        rows = excess.movedim(dim, -1)
        padded = F.pad(rows.reshape(-1, 1, rows.shape[-1]), (1, 1), mode="replicate")
        excess = F.conv1d(padded, kernel[None, None]).view(rows.shape).movedim(-1, dim)
    return excess
