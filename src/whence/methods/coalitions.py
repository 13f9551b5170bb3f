"""Coalitions of players: enumeration, sampling of complementary pairs, and weights of Shapley and interaction values.

A value of player i is a sum over coalitions S of v(S) times a weight: `within[|S|]` where i is in S, −`without[|S|]` where it
is not. A pair of players takes part in three ways: both in S, one of them (counted negatively), or none.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

MAX_ENUMERATED = 20


def all_coalitions(players: int) -> Tensor:
    """Return all 2^players coalitions as rows; coalition k contains the players whose bits are set in k.

    >>> all_coalitions(2).int().tolist()
    [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    return _members(torch.arange(2**players), players)


def sample_pairs(players: int, count: int, random: torch.Generator) -> Tensor:
    """Sample `count` distinct coalitions `[count, players]`, none of them empty, full or the complement of another.

    Sizes are uniform and sets uniform within a size: the leverage scores of the regression (Musco and Witter 2025, section 3).
    """
    if players <= MAX_ENUMERATED:
        members = _members(torch.arange(1, 2 ** (players - 1)), players)  # one of each pair: without the last player
        scores = torch.tensor([1 / math.comb(players, k) for k in range(players)], dtype=torch.float64)[members.sum(1)]
        return members[torch.multinomial(scores, min(count, len(members)), generator=random)]
    found = torch.empty(0, players, dtype=torch.bool)
    while len(found) < count:
        found = unique_coalitions(torch.cat([found, _uniform_sizes(players, 2 * (count - len(found)) + count // 8, random)]))
    return found[:count]


def unique_coalitions(coalitions: Tensor) -> Tensor:
    """Return the distinct coalitions, in order of first occurrence."""
    random = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**62), 2**62, (coalitions.shape[1],), generator=random)  # a sum that no two have in common
    _, which = (coalitions * keys).sum(1).unique(return_inverse=True)
    first = torch.full((int(which.max()) + 1,), len(which)).scatter_reduce(0, which, torch.arange(len(which)), "amin")
    return coalitions[first.sort().values]


def max_pairs(players: int) -> int:
    """Return the number of complementary pairs of coalitions, not counting the empty and the full one."""
    return 2 ** (players - 1) - 1


def weighted_single_effects(coalitions: Tensor, values: Tensor, within: Tensor, without: Tensor) -> Tensor:
    """Return the weighted sums `[…, players]` of values `[…, coalitions]`, with weights by coalition."""
    inside = coalitions.to(values)
    return (values * within) @ inside - (values * without) @ (1 - inside)


def weighted_pair_effects(coalitions: Tensor, values: Tensor, both: Tensor, one: Tensor, none: Tensor) -> Tensor:
    """Return the weighted sums `[…, players, players]` of values `[…, coalitions]`; the diagonal has no meaning."""
    inside = coalitions.to(values)
    outside = 1 - inside

    def summed(first: Tensor, weights: Tensor, second: Tensor) -> Tensor:
        return (first.T * (values * weights)[..., None, :]) @ second

    mixed = summed(inside, one, outside)
    return summed(inside, both, inside) - mixed - mixed.transpose(-1, -2) + summed(outside, none, outside)


def weights_by_size(weight: Callable[[int], float], sizes: Tensor) -> Tensor:
    """Return a weight for each coalition, computed from its size."""
    table = [weight(size) for size in range(int(sizes.max()) + 1)]
    return torch.tensor(table, dtype=torch.float64, device=sizes.device)[sizes]


def shapley_weight(players: int) -> Callable[[int], float]:
    """Return the weight 1 / (n C(n−1, t)) of adding a player to t others, as a function of t (Shapley 1953)."""
    return lambda t: 1 / (players * math.comb(players - 1, t)) if 0 <= t < players else 0.0


def sii_weight(players: int) -> Callable[[int], float]:
    """Return the weight 1 / ((n−1) C(n−2, t)) of adding a pair to t others, as a function of t (Grabisch and Roubens 1999)."""
    return lambda t: 1 / ((players - 1) * math.comb(players - 2, t)) if 0 <= t < players - 1 else 0.0


def stii_weight(players: int) -> Callable[[int], float]:
    """Return the weight 2 / (n C(n−1, t)) of adding a pair to t others, as a function of t (Sundararajan et al. 2020, STII)."""
    return lambda t: 2 / (players * math.comb(players - 1, t)) if 0 <= t < players - 1 else 0.0


def _members(numbers: Tensor, players: int) -> Tensor:
    return (numbers[:, None] >> torch.arange(players)) & 1 == 1


def _uniform_sizes(players: int, count: int, random: torch.Generator) -> Tensor:
    sizes = torch.randint(1, players, (count, 1), generator=random)
    ranks = torch.rand(count, players, generator=random).argsort(1).argsort(1)
    members = ranks < sizes
    return members ^ members[:, -1:]  # of a set and its complement, the one without the last player
