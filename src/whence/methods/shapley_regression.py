"""Shapley values from a sample of coalitions: regression on paired complements, with a Gaussian prior over higher orders.

Write a game in the basis χ_T(S) = Π_{i∈T} ±1, + where i is in S. A Shapley value is then 2 Σ_{T∋i} β_T / |T| over the odd
orders |T|. v(S) − v(S^c) contains only odd orders, v(S) + v(S^c) only even ones. Each half is therefore regressed on its own
orders, order k with prior variance a_k / C(n, k); the regression of KernelSHAP (Lundberg and Lee 2017) is the special case in
which all but a_1 are zero. Shapley values and interactions are linear functionals of β and have a closed form under the
posterior: a weight for each order, without a table of 2^n values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.methods import coalitions

MAX_PAIRS = 4096  # in one regression; more are split into several regressions, whose results are averaged
PAIRS_FOR_SELECTION = 512  # minimum number of pairs whose likelihood selects the prior
FIRST_ORDER_SHARES = (3.0, 30.0, 300.0, 1e4, 1e7)  # prior variance of the lowest order, relative to the next one
DECAYS = (0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)  # ratio of prior variances from one order to the next of its parity
MAX_ORDER = 24
JITTER = 1e-10

Moment = Callable[[int], float]  # E[(2t − 1)^j] over the share t of others present


def shapley_moment(j: int) -> float:
    """Return the moment of the Shapley value and the Shapley interaction index: t is uniform, as in a random order."""
    return 1 / (j + 1) if j % 2 == 0 else 0.0


def taylor_moment(j: int) -> float:
    """Return the moment of the Shapley–Taylor index: t has density 2 (1 − t)."""
    return 1 / (j + 1) if j % 2 == 0 else -1 / (j + 2)


@dataclass(frozen=True)
class GaussianRegression:
    """The posterior of one half of a game, its odd or its even orders, given its values at some coalitions."""

    coalitions: Tensor  # [M, n]
    shares: dict[int, float]  # relative prior variance a_k by order
    factor: Tensor  # Cholesky factor of the kernel, [M, M]
    alpha: Tensor  # kernel⁻¹ values, [N, M]
    scale: Tensor  # [N], the variance that multiplies the shares

    @classmethod
    def of(cls, members: Tensor, values: Tensor, shares: dict[int, float]) -> "GaussianRegression":
        """Fit the posterior to values `[N, M]` at coalitions `[M, n]`."""
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
        """The log-likelihood of each game's values at the best scale, up to a constant, `[N]`."""
        tiny = torch.finfo(self.scale.dtype).tiny
        return -len(self.coalitions) / 2 * self.scale.clamp(min=tiny).log() - self.factor.diagonal().log().sum()

    def singles(self, moment: Moment) -> Tensor:
        """Return the posterior means of each player's marginal contribution, `[N, n]`."""
        return coalitions.weighted_single_effects(self.coalitions, self.alpha, *self._single_weights(moment))

    def doubles(self, moment: Moment) -> Tensor:
        """Return the posterior means of the interactions of two players, `[N, n, n]`."""
        players = self.coalitions.shape[1]
        weights = {k: 4 * k * (k - 1) / (players * (players - 1)) * a * moment(k - 2) for k, a in self.shares.items() if k > 1}
        table = _krawtchouk_kernel(players - 2, {k - 2: w for k, w in weights.items()})
        outside = players - self.coalitions.sum(1)
        both, one, none = (_lookup(table, outside - taken).to(self.alpha) for taken in (0, 1, 2))
        return coalitions.weighted_pair_effects(self.coalitions, self.alpha, both, one, none)

    def variances(self, moment: Moment) -> Tensor:
        """Return the posterior variances of `singles`, `[N, n]`."""
        players = self.coalitions.shape[1]
        within, without = self._single_weights(moment)
        inside = self.coalitions.to(self.alpha)
        covariance = within[:, None] * inside - without[:, None] * (1 - inside)
        known = torch.linalg.solve_triangular(self.factor, covariance, upper=False).square().sum(0)
        prior = sum(4 * k / players * a * moment(k - 1) ** 2 for k, a in self.shares.items() if k)
        return self.scale[:, None] * (prior - known).clamp(min=0)

    def _single_weights(self, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return each value's covariance with a player's contribution, if in the coalition, and the negative, if not."""
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

    `asked` are functions from a regression to estimates. A large sample is split into regressions of at most `MAX_PAIRS` pairs,
    each of which includes the first coalition. Returns the means over these regressions, and their number.
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
    """Return Σ_k w_k K_k(d) / C(n, k) for d = 0 … n, with K_k the Krawtchouk polynomials.

    K_k(d) is the sum of χ_T over all sets T of k players, where d of the n players have the sign −1.
    """
    d = torch.arange(players + 1, dtype=torch.float64)
    total, before, now = torch.zeros_like(d), torch.zeros_like(d), torch.ones_like(d)
    for k in range(max(weights, default=-1) + 1):
        total += weights.get(k, 0.0) * now
        before, now = now, ((players - 2 * d) * now - k * before) / max(players - k, 1)
    return total


def _lookup(table: Tensor, index: Tensor) -> Tensor:
    """Return entries of the table; indices outside of it belong to no coalition, and their entries are multiplied by zero."""
    return table[index.cpu().clamp(0, max(len(table) - 1, 0))]
