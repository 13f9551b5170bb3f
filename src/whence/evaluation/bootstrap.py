"""Means with bootstrap intervals (Efron 1979), paired where two are compared."""

from typing import NamedTuple

import torch
from torch import Tensor

MIN_SAMPLES = 5  # samples that an interval needs
N_RESAMPLES = 2000
MAX_ENTRIES = 2**24


class Interval(NamedTuple):
    """A mean and the middle 95 % of the means of resampled samples; NaN bounds of fewer than five samples."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Tensor, level: float = 0.95, seed: int = 0) -> Interval:
    """Of the mean of values `[n]`, those that are NaN left out.

    >>> interval(torch.tensor([1.0, 2, 3, 4, 5, 6]))
    Interval(mean=3.5, low=2.166…, high=4.833…, n=6)
    """
    values = values[~values.isnan()].double()
    n = len(values)
    mean = float(values.mean()) if n else torch.nan
    if n < MIN_SAMPLES or not values.isfinite().all():
        return Interval(mean, torch.nan, torch.nan, n)
    random = torch.Generator().manual_seed(seed)
    rounds = max(1, MAX_ENTRIES // n)
    means = torch.cat([
        values[torch.randint(n, (min(rounds, N_RESAMPLES - start), n), generator=random)].mean(1)
        for start in range(0, N_RESAMPLES, rounds)
    ])  # fmt: skip
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=means.dtype)).tolist()
    return Interval(mean, low, high, n)


def paired_interval(a: Tensor, b: Tensor, level: float = 0.95, seed: int = 0) -> Interval:
    """Of the mean of a − b over the samples that both have."""
    return mean_interval(a - b, level, seed)
