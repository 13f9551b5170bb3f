"""Running sums, means, variances and standard errors of contributions that arrive in batches of rounds."""

import torch
from torch import Tensor


class RunningMoments:
    """Accumulator of weighted contributions `[rounds, N, …]` of each part of the inputs.

    >>> moments = RunningMoments()
    >>> moments.add({0: torch.ones(2, 1, 3)}, torch.tensor([0.5, 0.5]))
    >>> moments.sums()
    {0: tensor([[1., 1., 1.]])}
    """

    def __init__(self):
        self._rounds = 0
        self._first: dict[int, Tensor] = {}  # sums are of differences from it, to avoid cancellation in the variance
        self._sums: dict[int, Tensor] = {}
        self._squares: dict[int, Tensor] = {}
        self._dtypes: dict[int, torch.dtype] = {}

    def add(self, parts: dict[int, Tensor], weights: Tensor | None = None) -> None:
        """Add the next rounds, multiplied by their entries in `weights` of all rounds, or by 1 if None."""
        rounds = len(next(iter(parts.values())))
        of_these = None if weights is None else weights[self._rounds : self._rounds + rounds]
        self._rounds += rounds
        for i, values in parts.items():
            self._dtypes[i] = values.dtype
            wide = values.float() if values.dtype.itemsize < 4 else values
            if of_these is not None:
                wide = wide * of_these.to(wide).view(-1, *[1] * (wide.dim() - 1))
            off = wide - self._first.setdefault(i, wide[0])
            self._sums[i] = self._sums.get(i, 0) + off.sum(0)
            self._squares[i] = self._squares.get(i, 0) + off.square().sum(0)

    def sums(self) -> dict[int, Tensor]:
        return self._typed({i: total + self._rounds * self._first[i] for i, total in self._sums.items()})

    def means(self) -> dict[int, Tensor]:
        return self._typed({i: total / self._rounds + self._first[i] for i, total in self._sums.items()})

    def mean_squares(self) -> dict[int, Tensor]:
        n = self._rounds
        means = {i: total / n + self._first[i] for i, total in self._sums.items()}
        return self._typed({i: mean.square() + self._scatter(i) / n for i, mean in means.items()})

    def variances(self) -> dict[int, Tensor]:
        """Return the sample variances of the rounds, Σ (c − c̄)² / (n − 1)."""
        return self._typed({i: self._scatter(i) / (self._rounds - 1) for i in self._sums})

    def standard_errors(self) -> dict[int, Tensor]:
        """Return the standard errors of the sums for independent rounds, √(n · variance)."""
        n = self._rounds
        return self._typed({i: (self._scatter(i) * n / (n - 1)).sqrt() for i in self._sums})

    def _scatter(self, i: int) -> Tensor:
        """Return Σ (c − c̄)²."""
        return (self._squares[i] - self._sums[i].square() / self._rounds).clamp(min=0)

    def _typed(self, parts: dict[int, Tensor]) -> dict[int, Tensor]:
        return {i: part.to(self._dtypes[i]) for i, part in parts.items()}
