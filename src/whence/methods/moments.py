"""Sums over rounds that come in batches: of contributions, and of their squares for standard errors."""

from torch import Tensor


class Moments:
    """Gathers weighted contributions `[rounds, N, …]` of each part.

    >>> moments = Moments()
    >>> moments.add({0: torch.ones(2, 1, 3)}, torch.tensor([0.5, 0.5]))
    >>> moments.sums()
    {0: tensor([[1., 1., 1.]])}
    """

    def __init__(self):
        self._rounds = 0
        self._sums: dict[int, Tensor] = {}
        self._squares: dict[int, Tensor] = {}

    def add(self, parts: dict[int, Tensor], weights: Tensor | None = None) -> None:
        """The next rounds, by `weights` of all rounds; by 1 if none."""
        rounds = len(next(iter(parts.values())))
        of_these = None if weights is None else weights[self._rounds : self._rounds + rounds]
        self._rounds += rounds
        for i, values in parts.items():
            if of_these is not None:
                values = values * of_these.to(values).view(-1, *[1] * (values.dim() - 1))
            wide = values.float() if values.dtype.itemsize < 4 else values
            self._sums[i] = self._sums.get(i, 0) + wide.sum(0)
            self._squares[i] = self._squares.get(i, 0) + wide.square().sum(0)
            self._dtype = values.dtype

    def sums(self) -> dict[int, Tensor]:
        return {i: total.to(self._dtype) for i, total in self._sums.items()}

    def means(self) -> dict[int, Tensor]:
        return {i: total / self._rounds for i, total in self.sums().items()}

    def mean_squares(self) -> dict[int, Tensor]:
        return {i: (total / self._rounds).to(self._dtype) for i, total in self._squares.items()}

    def variances(self) -> dict[int, Tensor]:
        """Of the rounds, as of a sample: Σ (c − c̄)² / (n − 1)."""
        n = self._rounds
        spread = {i: (self._squares[i] - total.square() / n).clamp(min=0) for i, total in self._sums.items()}
        return {i: (s / (n - 1)).to(self._dtype) for i, s in spread.items()}

    def standard_errors(self) -> dict[int, Tensor]:
        """Of the sums, if the rounds are independent draws: √(n · variance)."""
        return {i: (v * self._rounds).sqrt() for i, v in self.variances().items()}
