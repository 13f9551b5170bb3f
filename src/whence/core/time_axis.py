"""The time axis of series: a sampling rate, or the labels of the steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, inf, log10
from numbers import Real
from typing import Any

from whence.errors import InputError, value_repr


@dataclass(frozen=True)
class TimeAxis:
    """The time of each step of a series, for figures.

    >>> TimeAxis(rate=16000.0).label(8000), TimeAxis(labels=("Mon", "Tue")).label(1)
    ('0.5', 'Tue')

    Args:
        rate: Steps per second.
        labels: Label of each step, such as a date.
    """

    rate: float | None = None
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, index: Any, sampling_rate: float | None) -> "TimeAxis":
        """Return the axis of an index (of a data frame, or any sequence) or a sampling rate; raise `InputError` for others."""
        if (index is None) == (sampling_rate is None):
            raise InputError("give either the index of the steps or sampling_rate, in steps per second")
        if index is None:
            if isinstance(sampling_rate, bool) or not isinstance(sampling_rate, Real) or not 0 < sampling_rate < inf:
                raise InputError(f"sampling_rate={value_repr(sampling_rate)}; expected a positive number of steps per second")
            return cls(rate=float(sampling_rate))
        try:
            labels = tuple(map(str, index))
        except TypeError:
            raise InputError(f"the index of the steps must be a sequence, got {type(index).__name__}") from None
        for end in (" 00:00:00", ":00"):
            if labels and all(label.endswith(end) and label.count(":") == 2 for label in labels):
                labels = tuple(label.removesuffix(end) for label in labels)
        return cls(labels=labels)

    def label(self, step: int) -> str:
        """Return the label of a step."""
        return f"{step / self.rate:g}" if self.rate else self.labels[step]

    @property
    def name(self) -> str:
        """The name of the axis."""
        return "time in seconds" if self.rate else "time"

    def ticks(self, count: int) -> tuple[Sequence[float], Sequence[str]]:
        """Return the places and labels of a few ticks along `count` steps: fewer of longer labels."""
        longest = max(map(len, self.labels), default=0)
        most = 7 if longest <= 10 else 4
        if self.rate:
            step = _round_step(count / self.rate / most)
            places = [i * step for i in range(int(count / self.rate / step + 1e-9) + 1)]
            return [place * self.rate for place in places], [f"{place:g}" for place in places]
        stride = max(1, -(-count // most))
        chosen = list(range(0, count, stride))
        return chosen, [self.labels[i] for i in chosen]


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least this large."""
    power = 10.0 ** floor(log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
