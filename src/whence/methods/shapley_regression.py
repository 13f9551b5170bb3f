"""Shapley values from a sample of coalitions: regression on paired complements, with higher orders as a Gaussian prior.

Write a game in the basis χ_T(S) = Π_{i∈T} ±1, + where i is in S. A Shapley value is then 2 Σ_{T∋i} β_T / |T| over the odd
orders |T|, and v(S) − v(S^c) has odd orders alone, v(S) + v(S^c) even ones. So each half is regressed on its own orders, order
k with prior variance a_k / C(n, k): the regression of KernelSHAP (Lundberg and Lee 2017) is what is left when all but a_1 are
zero. What is asked for is a linear functional of β and has a closed form under the posterior: a weight for each order, no
table of 2^n values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.methods import coalitions

MAX_PAIRS = 4096  # in one regression; more are parted, and the results averaged
PAIRS_FOR_SELECTION = 512  # at least; the prior is chosen by the likelihood of these
FIRST_ORDER_SHARES = (3.0, 30.0, 300.0, 1e4, 1e7)  # of the lowest order, the next one being 1
DECAYS = (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)  # of the share from one order to the next of its parity
MAX_ORDER = 24
JITTER = 1e-10

Moment = Callable[[int], float]  # E[(2t − 1)^j] over the share t of others present


def shapley_moment(j: int) -> float:
    """Others join in a random order: t is uniform. Also of the Shapley interaction index."""
    return 1 / (j + 1) if j % 2 == 0 else 0.0


def taylor_moment(j: int) -> float:
    """Moment of the Shapley–Taylor index: t has density 2 (1 − t)."""
    return 1 / (j + 1) if j % 2 == 0 else -1 / (j + 2)


@dataclass(frozen=True)
class GaussianRegression:
    """The posterior of one half of a game, of odd or of even orders, given its values at some coalitions."""

    coalitions: Tensor  # [M, n]
    shares: dict[int, float]  # a_k by order
    factor: Tensor  # Cholesky factor of the kernel, [M, M]
    alpha: Tensor  # kernel⁻¹ values, [N, M]
    scale: Tensor  # [N], the variance that the shares are shares of

    @classmethod
    def of(cls, members: Tensor, values: Tensor, shares: dict[int, float]) -> "GaussianRegression":
        """Given values `[N, M]` at coalitions `[M, n]`."""
        players = members.shape[1]
        signs = 2 * members.to(values) - 1
        distances = ((players - signs @ signs.T) / 2).round().long()
        kernel = _krawtchouk_kernel(players, shares)[distances.cpu()].to(values)
        kernel.diagonal().mul_(1 + JITTER)
        factor = torch.linalg.cholesky(kernel)
        alpha = torch.cholesky_solve(values.T, factor).T
        return cls(members, shares, factor, alpha, (alpha * values).sum(1).clamp(min=0) / len(members))

    @property
    def likelihood(self) -> Tensor:
        """The log-likelihood of each game's values but for a constant, their scale at its best, `[N]`."""
        tiny = torch.finfo(self.scale.dtype).tiny
        return -len(self.coalitions) / 2 * self.scale.clamp(min=tiny).log() - self.factor.diagonal().log().sum()

    def singles(self, moment: Moment) -> Tensor:
        """Expected differences that a player makes, `[N, n]`."""
        return coalitions.weighted_single_effects(self.coalitions, self.alpha, *self._single_weights(moment))

    def doubles(self, moment: Moment) -> Tensor:
        """Expected interactions of two players, `[N, n, n]`."""
        players = self.coalitions.shape[1]
        weights = {k: 4 * k * (k - 1) / (players * (players - 1)) * a * moment(k - 2) for k, a in self.shares.items() if k > 1}
        table = _krawtchouk_kernel(players - 2, {k - 2: w for k, w in weights.items()})
        outside = players - self.coalitions.sum(1)
        both, one, none = (_lookup(table, outside - taken).to(self.alpha) for taken in (0, 1, 2))
        return coalitions.weighted_pair_effects(self.coalitions, self.alpha, both, one, none)

    def variances(self, moment: Moment) -> Tensor:
        """Posterior variances of `singles`, `[N, n]`."""
        players = self.coalitions.shape[1]
        within, without = self._single_weights(moment)
        inside = self.coalitions.to(self.alpha)
        covariance = within[:, None] * inside - without[:, None] * (1 - inside)
        known = torch.linalg.solve_triangular(self.factor, covariance, upper=False).square().sum(0)
        prior = sum(4 * k / players * a * moment(k - 1) ** 2 for k, a in self.shares.items() if k)
        return self.scale[:, None] * (prior - known).clamp(min=0)

    def _single_weights(self, moment: Moment) -> tuple[Tensor, Tensor]:
        """Covariance of each value with a player's difference, the player within the coalition or (negatively) without."""
        players = self.coalitions.shape[1]
        table = _krawtchouk_kernel(
            players - 1, {k - 1: 2 * k / players * a * moment(k - 1) for k, a in self.shares.items() if k}
        )
        outside = players - self.coalitions.sum(1)
        return _lookup(table, outside).to(self.alpha), _lookup(table, outside - 1).to(self.alpha)


def regression_estimates(
    members: Tensor, values: Tensor, odd: bool, asked: Sequence[Callable[[GaussianRegression], Tensor]]
) -> tuple[list[Tensor], int]:
    """Return estimates from regressions of games with `values` `[N, M]`, each under its most likely prior.

    A large sample is parted into regressions of at most `MOST_PAIRS`, the first coalition in each; the means over the parts are
    given, and how many parts there were.
    """
    count = -(-(len(members) - 1) // MAX_PAIRS) or 1
    parts = [torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1 + i, len(members), count)]) for i in range(count)]
    found = [_estimates(members[part], values[:, part], odd, asked) for part in parts]
    return [torch.stack(several).mean(0) for several in zip(*found, strict=True)], count


def _estimates(
    members: Tensor, values: Tensor, odd: bool, asked: Sequence[Callable[[GaussianRegression], Tensor]]
) -> list[Tensor]:
    orders = range(1 if odd else 0, min(members.shape[1], MAX_ORDER) + 1, 2)
    choices = [_order_shares(orders, first, decay) for first in FIRST_ORDER_SHARES for decay in DECAYS]
    few = slice(0, max(PAIRS_FOR_SELECTION, 2 * members.shape[1]))
    likeliest = torch.stack(
        [GaussianRegression.of(members[few], values[:, few], choice).likelihood for choice in choices]
    ).argmax(0)
    answers: list[list[Tensor]] = [[torch.empty(0)] * len(values) for _ in asked]
    for choice in likeliest.unique().tolist():
        games = (likeliest == choice).nonzero()[:, 0]
        regression = GaussianRegression.of(members, values[games], choices[choice])
        for answer, question in zip(answers, asked, strict=True):
            for game, found in zip(games.tolist(), question(regression), strict=True):
                answer[game] = found
    return [torch.stack(answer) for answer in answers]


def _order_shares(orders: Sequence[int], first: float, decay: float) -> dict[int, float]:
    low = [first * 30, first] if orders[0] == 0 else [first]  # a constant is of no interest
    return {k: low[j] if j < len(low) else decay ** (j - len(low)) for j, k in enumerate(orders)}


def _krawtchouk_kernel(players: int, weights: dict[int, float]) -> Tensor:
    """Σ_k w_k K_k(d) / C(n, k) for d = 0 … n; Krawtchouk's K_k is the sum of χ_T over all sets of k players, d of them −1."""
    d = torch.arange(players + 1, dtype=torch.float64)
    total, before, now = torch.zeros_like(d), torch.zeros_like(d), torch.ones_like(d)
    for k in range(max(weights, default=-1) + 1):
        total += weights.get(k, 0.0) * now
        before, now = now, ((players - 2 * d) * now - k * before) / max(players - k, 1)
    return total


def _lookup(table: Tensor, index: Tensor) -> Tensor:
    """Entries of the table; what lies beyond it belongs to no coalition and is multiplied by zero."""
    return table[index.cpu().clamp(0, max(len(table) - 1, 0))]
