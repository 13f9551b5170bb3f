"""Coherence: whether the samples of a cluster have the same fine structure at its positions, as those with a watermark have."""

import torch
from torch import Tensor

from whence.auditing.marks import AlignedMark, high_pass
from whence.auditing.transplants import placed

SIGNIFICANT = 3.0  # standard errors


def coherence(own: Tensor, others: Tensor, cells: Tensor) -> float:
    """Return the mean pairwise cosine of the high-passed pixels of samples `[n, C, H, W]`, at the cells.

    ρ = (‖Σ_i u_i‖² − n) / (n (n − 1)), where u_i is H_i less the median H of other classes, on the cells, of norm 1. No
    model is needed: photos of one class share no pixels, photos with one watermark do.
    """
    u = (high_pass(own) - high_pass(others).median(0).values) * placed(cells, own)
    u = torch.nn.functional.normalize(u.flatten(1).double(), dim=1)
    n = len(u)
    return float((u.sum(0).square().sum() - u.square().sum()) / max(n * (n - 1), 1))


def watermark(own: Tensor, others: Tensor, like: AlignedMark | None = None) -> AlignedMark:
    """Return what is added to the pictures of a cluster: where their mean high-passed pixels are significant in all channels.

    w = {min over channels |mean H| / (sd H / √n + 0.001) ≥ 3}, by a majority of 5 × 5 pixels; the content is the median H of
    the cluster less that of others. `like` gives the place instead.
    """
    mine, theirs = high_pass(own), high_pass(others).median(0).values
    if like is None:
        t = (mine.mean(0).abs() / (mine.std(0) / len(mine) ** 0.5 + 1e-3)).amin(0)
        votes = torch.nn.functional.avg_pool2d((t >= SIGNIFICANT).float()[None, None], 5, 1, 2)[0]
        weights = (votes > 0.5).float()
    else:
        weights = like.weights
    return AlignedMark(weights, mine.median(0).values - theirs, adds=True)
