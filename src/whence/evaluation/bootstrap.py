"""Bootstrap confidence intervals of means (Efron 1979), paired for comparisons."""

from typing import NamedTuple

import torch
from torch import Tensor

MIN_SAMPLES = 5  # fewest samples for which an interval is computed
N_RESAMPLES = 2000
MAX_ENTRIES = 2**24


class Interval(NamedTuple):
    """A mean with its bootstrap interval (95 % by default); the bounds are NaN for fewer than five samples."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Tensor, level: float = 0.95, seed: int = 0) -> Interval:
    """Compute the mean of values `[n]`, ignoring NaN, and its bootstrap interval.

    >>> mean_interval(torch.tensor([1.0, 2, 3, 4, 5, 6]))
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
    """Compute the mean of a − b, with its interval, over the samples for which both have a value."""
    return mean_interval(a - b, level, seed)
