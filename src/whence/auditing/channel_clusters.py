"""Clusters of channel relevance: channels that only a part of a class relies on."""

import torch
from torch import Tensor

PRESENCE_SHARE = 0.1  # a channel is exclusive if no other class has this share of its relevance
PART_SHARE = 0.25  # the same for a part of a class; higher, because all classes share channels to some extent
MIN_SHARE = 0.06  # of the relevance
MASK_COVERAGE = 0.9


def exclusive_share(mean: Tensor, others: Tensor) -> tuple[float, Tensor]:
    """Return the share of relevance in channels that other classes do not use, and a mask of the channels with most of it.

    A channel is exclusive if none of `others`, mean shares of other classes `[k, C]`, has a tenth of the relevance there.
    """
    held = mean * (others.amax(0) < PRESENCE_SHARE * mean)
    own = float(held.sum())
    order = held.argsort(descending=True)
    count = int((held[order].cumsum(0) < MASK_COVERAGE * own).sum()) + 1
    mask = torch.zeros(len(mean), dtype=torch.bool)
    if own > 0:
        mask[order[:count]] = True
    return own, mask


def split_by_channel(parts: Tensor, others: Tensor, fewest: int) -> list[tuple[int, Tensor]]:
    """Return the channels that only a part of a class relies on, each with a boolean tensor of these samples.

    In these channels the part of the class (`parts`, shares `[n, C]`) has much more relevance than the rest of it and than
    `others`, mean shares of other classes `[k, C]`. A channel that represents the class itself is used by all of its samples.
    """
    found = []
    for channel in range(parts.shape[1]):
        high = parts[:, channel] > _otsu_threshold(parts[:, channel])
        if min(int(high.sum()), int((~high).sum())) < fewest:
            continue
        strong, weak = float(parts[high, channel].mean()), float(parts[~high, channel].mean())
        if strong >= MIN_SHARE and max(weak, float(others[:, channel].max())) < PART_SHARE * strong:
            found.append((channel, high))
    return found


def _otsu_threshold(values: Tensor) -> float:
    """Return the threshold that maximises the variance between the two groups it separates (Otsu 1979)."""
    ordered = values.double().sort().values
    below, count = ordered.cumsum(0)[:-1], len(ordered)
    lower = torch.arange(1, count, dtype=torch.float64)
    gap = (ordered.sum() - below) / (count - lower) - below / lower
    return float(ordered[int((lower * (count - lower) * gap.square()).argmax())])
