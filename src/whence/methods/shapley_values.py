"""Shapley values of the players of any game, and interactions of pairs: exact, or from a sample of coalitions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.result import Result
from whence.errors import InputError, RuleError, value_repr
from whence.methods import coalitions
from whence.methods.coalitions import MAX_ENUMERATED, weights_by_size
from whence.methods.shapley_regression import MAX_PAIRS, regression_estimates, shapley_moment, taylor_moment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GameValue = Callable[[Tensor], Tensor]  # coalitions [M, players] of bool -> [M], or [M, N] for N games at once
Estimator = Literal["exact", "regression", "permutation"]
InteractionIndex = Literal["sii", "stii"]

INDICES = {"sii": (coalitions.sii_weight, shapley_moment), "stii": (coalitions.stii_weight, taylor_moment)}
COALITIONS_PER_CALL = 2**16
MAX_GAMES = 8  # in a figure
MAX_SAMPLED_PLAYERS = 4096  # whose sampled coalitions, and a regression on them, fit in memory


@dataclass(frozen=True, eq=False)
class ShapleyValues(Result):
    """Shapley values of the players of a game, and their interactions.

    >>> found = whence.shapley_values(lambda coalitions: coalitions.sum(1).float() ** 2, players=3)
    >>> found.values.tolist()
    [3.0, 3.0, 3.0]

    `values` and their `standard_errors` (None where they are exact) are `[players]`, or `[N, players]` for N games at once.
    `interactions` `[…, players, players]` are symmetric, with the Shapley values on the diagonal (sii) or the gain of each
    player alone over the empty coalition (stii). `evaluations` is the number of coalitions that were evaluated.
    """

    values: Tensor
    standard_errors: Tensor | None
    interactions: Tensor | None
    whole: Tensor
    empty: Tensor
    evaluations: int

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each game and player: its value, and the standard error where values are sampled."""
        values = self.values.reshape(-1, self.values.shape[-1])
        errors = None if self.standard_errors is None else self.standard_errors.reshape(values.shape)
        return [
            {"game": game, "player": player, "value": float(value)}
            | ({} if errors is None else {"standard_error": float(errors[game, player])})
            for game, row in enumerate(values)
            for player, value in enumerate(row)
        ]

    def figure(self) -> "Figure":
        """Return a figure with the values of each of the first games as bars, and their interactions."""
        from whence.plotting.bars import Bars
        from whence.plotting.interactions import InteractionMatrix
        from whence.plotting.stacked_panels import stack_panels

        values = self.values.reshape(-1, self.values.shape[-1])[:MAX_GAMES]
        panels: list[Any] = [Bars(row, "Shapley values of the players") for row in values]
        if self.interactions is not None:
            matrices = self.interactions.reshape(-1, *self.interactions.shape[-2:])[:MAX_GAMES]
            panels += [InteractionMatrix(matrix, "interactions of the players") for matrix in matrices]
        return stack_panels(panels)

    @property
    def first(self) -> "ShapleyValues":
        """The values of the first game alone."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: part[0] for name, part in parts.items() if isinstance(part, Tensor)})


@check_arguments
def shapley_values(
    value: GameValue,
    players: int,
    *,
    estimator: Estimator | None = None,
    budget: int | None = None,
    interactions: InteractionIndex | None = None,
    seed: int = 0,
) -> ShapleyValues:
    """Compute the Shapley values of the players of any game.

    >>> worth = torch.tensor([3.0, 0.0, 1.0])
    >>> whence.shapley_values(lambda coalitions: coalitions.float() @ worth, players=3).values
    tensor([3., 0., 1.], dtype=torch.float64)

    `value` takes many coalitions at once, `[M, players]` of bool, and returns `[M]`, or `[M, N]` for N games. `budget` limits
    the number of coalitions; the other arguments are those of `Shapley`. Raises `RuleError` if the
    budget is too small or there are too many players for exact values, and `InputError` if `value` returns a wrong shape.

    Args:
        value: Function from coalitions, a boolean tensor `[M, players]`, to their values `[M]`, or `[M, N]` of N games.
        players: Number of players.
        estimator: "exact", "regression" or "permutation"; chosen by the number of players and the budget if not given.
        budget: Largest number of coalitions to evaluate.
        interactions: "sii" or "stii" to compute interactions of pairs too.
        seed: Random seed.

    Returns:
        A `ShapleyValues` result.
    """
    check_settings(estimator, interactions, budget, seed)
    if not isinstance(players, int) or players < 1:
        raise RuleError(f"players={value_repr(players)}; expected at least 1")
    single = False

    def checked(members: Tensor) -> Tensor:
        nonlocal single
        found = [_evaluate_game(value, part) for part in members.split(COALITIONS_PER_CALL)]
        single = found[0].dim() == 1
        return torch.cat(found).view(len(members), -1)

    try:
        found = estimate(checked, players, estimator, budget, interactions, seed)
    except BudgetError as error:
        given = f"budget={budget} coalitions" if budget is not None else "the default budget"
        raise RuleError(f"{given} is too small: {error}; pass at least {error.least}") from None
    return found.first if single else found


class BudgetError(RuleError):
    """The budget is too small; `least` is the number of coalitions that are needed."""

    def __init__(self, message: str, least: int):
        super().__init__(message)
        self.least = least


def check_settings(estimator: Estimator | None, interactions: InteractionIndex | None, budget: int | None, seed: int) -> None:
    if estimator not in (None, "exact", "regression", "permutation"):
        raise RuleError(f"estimator={value_repr(estimator)}; choose 'exact', 'regression', 'permutation' or None")
    if interactions is not None and interactions not in INDICES:
        raise RuleError(f"interactions={value_repr(interactions)}; choose 'sii', 'stii' or None")
    if interactions is not None and estimator == "permutation":
        raise RuleError("estimator='permutation' computes no interactions; use estimator='regression' or 'exact'")
    if (budget is not None and not isinstance(budget, int)) or not isinstance(seed, int):
        raise RuleError(f"budget={value_repr(budget)}, seed={value_repr(seed)}; expected ints (budget may be None)")


def _evaluate_game(value: GameValue, members: Tensor) -> Tensor:
    found = value(members)
    if not isinstance(found, Tensor) or found.dim() not in (1, 2) or len(found) != len(members) or not found.numel():
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"the value function returned {given} for {len(members)} coalitions; give [{len(members)}] or [{len(members)}, N]"
        )
    if found.is_complex() or not torch.isfinite(found).all():
        raise InputError("the value function returned NaN, infinite or complex values")
    return found.detach()


def estimate(
    game: GameValue, players: int, estimator: Estimator | None, budget: int | None, index: InteractionIndex | None, seed: int
) -> ShapleyValues:
    chosen, budget = budget, 4 * players + 2048 if budget is None else budget
    everything = 2**players <= budget and players <= MAX_ENUMERATED
    if estimator == "exact" and players > MAX_ENUMERATED:
        count = f" = {2**players:,}" if players < 64 else ""
        raise RuleError(
            f"exact values of {players} features take 2^{players}{count} coalitions; "
            f"group them into at most {MAX_ENUMERATED} with a feature_mask, or use estimator='regression'"
        )
    if estimator == "exact" and chosen is not None and 2**players > chosen:
        raise BudgetError(f"exact values of {players} features take {2**players} coalitions", 2**players)
    random = torch.Generator().manual_seed(seed)
    if estimator == "exact" or (everything and estimator != "permutation"):
        return _exact(game, players, index)
    if players > MAX_SAMPLED_PLAYERS:
        raise RuleError(
            f"{players} features are too many for Shapley values; group them with a feature_mask, "
            "such as whence.patches(x, 16) for images"
        )
    if estimator == "permutation":
        return _permutation_estimate(game, players, budget, random)
    return _regression_estimate(game, players, budget, index, random)


def _exact(game: GameValue, players: int, index: InteractionIndex | None) -> ShapleyValues:
    members = coalitions.all_coalitions(players)
    found = game(members).T.double().cpu()
    sizes, weight = members.sum(1), coalitions.shapley_weight(players)
    within, without = weights_by_size(lambda size: weight(size - 1), sizes), weights_by_size(weight, sizes)
    parts = [slice(start, start + COALITIONS_PER_CALL) for start in range(0, len(members), COALITIONS_PER_CALL)]
    shapley = _sum_parts(coalitions.weighted_single_effects(members[p], found[:, p], within[p], without[p]) for p in parts)
    pairs = None
    if index is not None:
        weight = INDICES[index][0](players)
        weights = [weights_by_size(lambda size, taken=taken: weight(size - taken), sizes) for taken in (2, 1, 0)]
        pairs = _sum_parts(coalitions.weighted_pair_effects(members[p], found[:, p], *(w[p] for w in weights)) for p in parts)
        alone = found[:, 2 ** torch.arange(players)] - found[:, :1]
        pairs.diagonal(dim1=1, dim2=2).copy_(shapley if index == "sii" else alone)
    return ShapleyValues(shapley, None, pairs, found[:, -1], found[:, 0], len(members))


def _sum_parts(parts: Iterator[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


def _regression_estimate(
    game: GameValue, players: int, budget: int, index: InteractionIndex | None, random: torch.Generator
) -> ShapleyValues:
    alone = players if index == "stii" else 0
    if index is not None and players * (players - 1) // 2 > MAX_PAIRS:
        raise RuleError(f"{players} features have too many interactions to sample; group them with a feature_mask")
    least = 2 * players if index is None else players * (players - 1) + 2 + 2 * alone
    if budget < min(least, 2**players):
        raise BudgetError(f"{players} features{' and their pairs' if index else ''} take {least} coalitions", least)
    count = min(budget // 2 - 1, coalitions.max_pairs(players))
    members = torch.cat([torch.ones(1, players, dtype=torch.bool), _sample_coalitions(players, count, alone, random)])
    found = game(torch.cat([members, ~members])).T.double().cpu()
    there, back = found.split(len(members), 1)

    moment = None if index is None else INDICES[index][1]
    pairwise = [] if moment is None else [lambda half: half.doubles(moment)]
    of_odd = [lambda half: half.singles(shapley_moment), lambda half: half.variances(shapley_moment), *pairwise]
    (shapley, variances, *pairs), parts = regression_estimates(members, (there - back) / 2, True, of_odd)
    means = (there + back) / 2  # whose constant no interaction depends on
    pairs = pairs[0] + regression_estimates(members, means - means[:, :1], False, pairwise)[0][0] if pairs else None
    shapley += (there[:, :1] - back[:, :1] - shapley.sum(1, keepdim=True)) / players  # what rounding left
    if pairs is not None:
        empty = back[:, :1]
        adds = torch.where(members[1 : 1 + alone].sum(1) == 1, there[:, 1 : 1 + alone], back[:, 1 : 1 + alone]) - empty
        pairs.diagonal(dim1=1, dim2=2).copy_(shapley if index == "sii" else adds)
    return ShapleyValues(shapley, (variances / parts).sqrt(), pairs, there[:, 0], back[:, 0], 2 * len(members))


def _sample_coalitions(players: int, count: int, alone: int, random: torch.Generator) -> Tensor:
    """Pairs of complements, after those of the players `alone`."""
    sampled = coalitions.sample_pairs(players, count, random)
    single = torch.eye(players, dtype=torch.bool)[:alone]
    single = single ^ single[:, -1:]  # the half without the last player, as those sampled
    return coalitions.unique_coalitions(torch.cat([single, sampled]))[:count]


def _permutation_estimate(game: GameValue, players: int, budget: int, random: torch.Generator) -> ShapleyValues:
    """Each order and its reverse (Mitchell et al. 2022, antithetic sampling)."""
    if players == 1:
        return _exact(game, players, None)
    least = 4 * players - 2
    if budget < least:
        raise BudgetError(f"two orders of {players} features and their reverses take {least} coalitions", least)
    count = (budget - 2) // (2 * (players - 1))
    ranks = torch.rand(count, players, generator=random).argsort(1)
    ranks = torch.stack([ranks, players - 1 - ranks], 1)  # [orders, 2, players]
    prefixes = ranks[:, :, None] < torch.arange(1, players)[:, None]  # [orders, 2, players − 1, players]
    ends = torch.stack([torch.zeros(players, dtype=torch.bool), torch.ones(players, dtype=torch.bool)])
    found = game(torch.cat([ends, prefixes.flatten(0, 2)])).T.double().cpu()
    inner = found[:, 2:].view(len(found), count, 2, players - 1)
    empty, whole = (end.expand(inner.shape[:-1])[..., None] for end in found[:, :2, None, None].unbind(1))
    steps = torch.cat([empty, inner, whole], -1).diff(dim=-1)
    adds = steps.gather(-1, ranks.expand(len(found), -1, -1, -1)).mean(2)  # [N, orders, players]
    errors = adds.std(1) / count**0.5
    return ShapleyValues(adds.mean(1), errors, None, found[:, 1], found[:, 0], found.shape[1])
