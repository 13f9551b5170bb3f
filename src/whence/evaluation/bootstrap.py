"""Means with bootstrap intervals (Efron 1979), paired where two are compared."""

from typing import NamedTuple

import torch
from torch import Tensor

FEWEST = 5  # samples that an interval needs
RESAMPLES = 2000
AT_ONCE = 2**24


class Interval(NamedTuple):
    """A mean and the middle 95 % of the means of resampled samples; NaN bounds of fewer than five samples."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Tensor, level: float = 0.95, seed: int = 0) -> Interval:
    """Of the mean of values `[n]`, those that are NaN left out.

    >>> interval(torch.tensor([1.0, 2, 3, 4, 5, 6]))
    Interval(mean=3.5, low=2.166…, high=4.833…, n=6)
    """
    values = values[~values.isnan()].double()
    n = len(values)
    mean = float(values.mean()) if n else torch.nan
    if n < FEWEST or not values.isfinite().all():
        return Interval(mean, torch.nan, torch.nan, n)
    random = torch.Generator().manual_seed(seed)
    rounds = max(1, AT_ONCE // n)
    means = torch.cat([
        values[torch.randint(n, (min(rounds, RESAMPLES - start), n), generator=random)].mean(1)
        for start in range(0, RESAMPLES, rounds)
    ])  # fmt: skip
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=means.dtype)).tolist()
    return Interval(mean, low, high, n)


def difference(a: Tensor, b: Tensor, level: float = 0.95, seed: int = 0) -> Interval:
    """Of the mean of a − b over the samples that both have."""
    return interval(a - b, level, seed)
