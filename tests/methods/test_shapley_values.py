"""Shapley values: exercise G, axioms, captum's truths, exact values against the definition, sampled ones against exact."""

import math
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, strategies as st

import whence
from support.comparisons import close
from support.toy_models import M
from whence import Shapley, shapley_values
from whence.methods import coalitions, shapley_regression

pytestmark = pytest.mark.usefixtures("float64")


def relevance(model, x, method=None, target=0, **settings):
    return whence.explain(model, x, target, method=method or Shapley(**settings)).relevance


def game(players, seed=0):
    """A value for each coalition, at random."""
    table = torch.randn(2**players, generator=torch.Generator().manual_seed(seed))
    bits = 2 ** torch.arange(players)
    return lambda members: table[(members * bits).sum(1)]


def smooth(players, seed=0):
    """A game of interactions up to order four, as networks make them."""
    random = torch.Generator().manual_seed(seed)
    w1, w2 = torch.randn(players, 32, generator=random) * 2 / players**0.5, torch.randn(32, generator=random)
    return lambda members: torch.tanh(members.double() @ w1) @ w2


def by_definition(value, players):
    """Marginal contributions averaged over all orders (Shapley 1953)."""
    total = torch.zeros(players)
    for order in permutations(range(players)):
        members = torch.zeros(1, players, dtype=torch.bool)
        for player in order:
            before = value(members)
            members[0, player] = True
            total[player] += (value(members) - before)[0]
    return total / math.factorial(players)


def interaction(value, players, i, j, weight):
    """The weighted mean of v(T ∪ ij) − v(T ∪ i) − v(T ∪ j) + v(T) over all T without i and j."""
    total, others = torch.zeros(()), [p for p in range(players) if p not in (i, j)]
    for size in range(len(others) + 1):
        for members in combinations(others, size):
            row = torch.zeros(4, players, dtype=torch.bool)
            row[:, list(members)] = True
            row[0, [i, j]] = row[1, i] = row[2, j] = True
            a, b, c, d = value(row)
            total = total + weight(size) * (a - b - c + d)
    return total


def exercise_g(x):
    a, b = torch.tensor([3.0, -2.0, 1.0]), torch.tensor([[1.0, 1, 0], [0, 1, 1]])
    return torch.relu(x * a.to(x)) @ b.T.to(x)


def test_exercise_g():
    x, other = torch.tensor([[1.0, 2, 3]]), torch.tensor([[-1.0, -2, 3]])
    close(relevance(exercise_g, x), [[3.0, 0, 0]])
    close(relevance(exercise_g, x, target=1), [[0.0, 0, 3]])
    close(relevance(exercise_g, other), [[0.0, 4, 0]])
    close(relevance(exercise_g, other, target=1), [[0.0, 4, 3]])


def test_the_printed_solution_of_exercise_g_is_inconsistent_with_its_own_network():
    other, printed = torch.tensor([[-1.0, -2, 3]]), torch.tensor([[3.0, 0, 4], [0, 4, 3]])
    assert exercise_g(other).tolist() == [[4.0, 7.0]]
    assert printed.sum(1).tolist() == [7.0, 7.0]  # Shapley values of the first output must add up to 4
    found = torch.cat([relevance(exercise_g, other, target=t) for t in (0, 1)])
    assert torch.equal(found.sum(1), exercise_g(other)[0])


def test_shapley_values_of_m():
    x = torch.tensor([[20.0, 50, 30]])
    mask = torch.tensor([[0, 0, 1]])
    close(relevance(M(), x), [[230 / 3, 590 / 3, 350 / 3]])
    close(relevance(M(), x, feature_mask=mask), [[275.0, 275, 115]])
    close(relevance(M(), x, feature_mask=mask, baselines=4.0), [[248.0, 248, 104]])
    close(relevance(M(), x, baselines=torch.tensor([[10.0, 20, 10]])), [[40.0, 120, 80]])
    close(relevance(M(), torch.tensor([[2.0, 10, 3]])), [[7.0, 32.5, 10.5]])


@given(st.integers(1, 6), st.integers(0, 99))
def test_exact_values_equal_the_definition(players, seed):
    value = game(players, seed)
    found = shapley_values(value, players)
    close(found.values, by_definition(value, players))
    close(found.values.sum(), found.whole - found.empty)
    assert found.evaluations == 2**players
    assert found.standard_errors is None


@pytest.mark.parametrize("players", [2, 3, 5, 6])
@pytest.mark.parametrize("index", ["sii", "stii"])
def test_exact_interactions_equal_the_definition(players, index):
    value = game(players)
    found = shapley_values(value, players, interactions=index)
    weight = {
        "sii": lambda t: math.factorial(t) * math.factorial(players - t - 2) / math.factorial(players - 1),
        "stii": lambda t: 2 / players / math.comb(players - 1, t),
    }[index]
    for i, j in combinations(range(players), 2):
        close(found.interactions[i, j], interaction(value, players, i, j, weight))
        close(found.interactions[j, i], found.interactions[i, j])
    if index == "sii":
        close(found.interactions.diagonal(), found.values)
    else:  # main effects and pairs add up (Sundararajan et al. 2020, proposition 1)
        close(found.interactions.triu().sum(), found.whole - found.empty)


def test_a_soum_game_in_closed_form():
    """v = Σ c_T [T ⊆ S]: φ_i = Σ_{T∋i} c_T / |T|, SII_ij = Σ_{T⊇ij} c_T / (|T| − 1)."""
    terms = {(0,): 2.0, (1, 4): -3.0, (0, 2, 3): 1.5, (2, 3, 4, 5): 4.0}
    found = shapley_values(lambda m: sum(c * m[:, list(t)].all(1).double() for t, c in terms.items()), 6, interactions="sii")
    close(found.values, [sum(c / len(t) for t, c in terms.items() if i in t) for i in range(6)])
    for i, j in combinations(range(6), 2):
        close(found.interactions[i, j], sum(c / (len(t) - 1) for t, c in terms.items() if i in t and j in t))


def test_axioms():
    a, b = game(6, 1), game(6, 2)
    close(shapley_values(lambda m: 2 * a(m) - b(m), 6).values, 2 * shapley_values(a, 6).values - shapley_values(b, 6).values)
    symmetric = shapley_values(lambda m: (m[:, 0] + m[:, 1]).double() ** 2 + a(m) * 0 + m[:, 2], 6).values
    close(symmetric[0], symmetric[1])
    close(symmetric[3:], [0.0, 0, 0])  # who adds nothing gets nothing


def test_each_coalition_is_asked_once():
    asked = []
    shapley_values(lambda m: (asked.append(m), game(10)(m))[1], 10, estimator="exact")
    members = torch.cat(asked)
    assert len(members) == len(members.unique(dim=0)) == 1024


def test_the_seventeenth_player_and_more():
    worth = torch.randn(17)
    found = shapley_values(lambda m: m.double() @ worth + (m[:, 3] & m[:, 16]), 17, estimator="exact", interactions="sii")
    expected = worth.clone()
    expected[[3, 16]] += 0.5
    close(found.values, expected)
    close(found.interactions[3, 16], 1.0)


@pytest.mark.parametrize("estimator", ["regression", "permutation"])
@pytest.mark.parametrize("players", [2, 5, 13, 30])
def test_sampled_values_add_up_and_approach_the_exact(estimator, players):
    value = smooth(players)
    budget = max(4 * players, 600 if players < 20 else 1200)
    found = shapley_values(value, players, estimator=estimator, budget=budget)
    close(found.values.sum(), found.whole - found.empty)
    if players == 30:
        reference = shapley_values(value, players, estimator="permutation", budget=200_000).values
    else:
        reference = shapley_values(value, players, estimator="exact").values
    assert (found.values - reference).square().sum() < (0.03 if estimator == "permutation" else 0.01) * reference.square().sum()
    assert found.evaluations <= budget or players == 2


@pytest.mark.parametrize("estimator", ["regression", "permutation"])
def test_standard_errors_are_neither_boasting_nor_modest(estimator):
    off = []
    for seed in range(12):
        value = smooth(12, seed)
        exact = shapley_values(value, 12, estimator="exact").values
        found = shapley_values(value, 12, estimator=estimator, budget=200, seed=seed)
        off.append((found.values - exact) / found.standard_errors)
    assert 0.6 < torch.cat(off).square().mean().sqrt() < 1.6


def test_samples_are_pairs_without_repetition_and_sizes_are_uniform():
    for players, count in ((8, 60), (26, 4000)):
        sample = coalitions.sample_pairs(players, count, torch.Generator().manual_seed(0))
        both = torch.cat([sample, ~sample])
        assert len(both.unique(dim=0)) == 2 * count
        assert both.any(1).all()
        assert not both.all(1).any()
        assert not sample[:, -1].any()
    sizes = torch.cat([sample, ~sample]).sum(1)[None] == torch.arange(3, 24)[:, None]  # all but the few small sets
    assert (sizes.sum(1) / 8000 - 1 / 25).abs().max() < 0.012
    assert len(coalitions.sample_pairs(8, 500, torch.Generator())) == coalitions.max_pairs(8) == 127


def test_no_coalition_is_asked_twice_and_the_budget_is_kept():
    for index, budget in ((None, 220), ("sii", 221), ("stii", 220)):
        asked = []
        found = shapley_values(
            lambda m, asked=asked: (asked.append(m), smooth(14)(m))[1], 14, budget=budget, interactions=index
        )
        members = torch.cat(asked)
        assert len(members) == len(members.unique(dim=0)) == found.evaluations == 220


def test_the_kernel_is_the_sum_over_all_sets():
    players, shares = 6, {1: 3.0, 3: 0.7, 5: 0.2}
    table = shapley_regression._krawtchouk_kernel(players, shares)
    members = coalitions.all_coalitions(players)
    signs = 2 * members.double() - 1
    for k in range(0, 64, 7):
        expected = 0.0
        for order, share in shares.items():
            sets = [signs[0, list(t)].prod() * signs[k, list(t)].prod() for t in combinations(range(players), order)]
            expected = expected + share * sum(sets) / math.comb(players, order)
        close(table[int((members[0] != members[k]).sum())], expected)


def test_a_regression_on_all_pairs_is_exact():
    value, members = game(7), coalitions.all_coalitions(7)[64:]  # one of each pair: with the last player
    differences = (value(members) - value(~members))[None] / 2
    odd = shapley_regression.GaussianRegression.of(members, differences, dict.fromkeys(range(1, 8, 2), 1.0))
    exact = shapley_values(value, 7, interactions="stii")
    close(odd.singles(shapley_regression.shapley_moment)[0], exact.values, rtol=1e-5, atol=1e-6)
    assert odd.variances(shapley_regression.shapley_moment).max() < 1e-6
    even = shapley_regression.GaussianRegression.of(
        members, (value(members) + value(~members))[None] / 2, dict.fromkeys(range(0, 8, 2), 1.0)
    )
    pairs = sum(half.doubles(shapley_regression.taylor_moment)[0] for half in (odd, even))
    off_diagonal = ~torch.eye(7, dtype=torch.bool)
    close(pairs[off_diagonal], exact.interactions[off_diagonal], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("index", ["sii", "stii"])
def test_sampled_interactions_approach_the_exact(index):
    value = smooth(12)
    exact = shapley_values(value, 12, estimator="exact", interactions=index).interactions
    errors_at = [
        float(
            (shapley_values(value, 12, budget=b, interactions=index).interactions - exact).square().sum() / exact.square().sum()
        )
        for b in (300, 1200, 3000)
    ]
    assert errors_at[0] > errors_at[1] > errors_at[2]
    assert errors_at[1] < 0.01


def test_large_samples_are_parted(monkeypatch):
    monkeypatch.setattr(shapley_regression, "MAX_PAIRS", 100)
    value = smooth(12)
    exact = shapley_values(value, 12, estimator="exact").values
    few, many = (shapley_values(value, 12, budget=b).values for b in (180, 1000))
    assert (many - exact).norm() < 0.6 * (few - exact).norm()


def test_standard_errors_of_large_samples_fall(monkeypatch):
    monkeypatch.setattr(shapley_regression, "MAX_PAIRS", 100)
    few, many = (shapley_values(smooth(14), 14, budget=b).standard_errors.norm() for b in (200, 1800))
    assert many < 0.6 * few


@pytest.mark.parametrize("players", [30, 200])
def test_additive_games_are_exact(players):
    worth = torch.randn(players)
    found = shapley_values(lambda m: m.double() @ worth, players)
    assert (found.values - worth).norm() < 1e-6 * worth.norm()


def test_interactions_of_a_pair_are_found_whatever_the_constant():
    value = lambda m: 1000.0 + (m[:, 0] & m[:, 1]).double()  # noqa: E731
    found = shapley_values(value, 30, interactions="sii", budget=2000).interactions
    close(found[0, 1], 1.0, atol=0.05, rtol=0)
    assert found[2:, 2:].abs().max() < 0.05
    close(shapley_values(lambda m: m[:, 0].double(), 1, interactions="sii").interactions, [[1.0]])


def test_many_pairs_of_few_players_are_found_soon():
    sample = coalitions.sample_pairs(21, 200_000, torch.Generator().manual_seed(0))
    assert len(sample.unique(dim=0)) == 200_000


def test_several_games_at_once_are_each_their_own():
    both = shapley_values(lambda m: torch.stack([smooth(14, 1)(m), smooth(14, 2)(m)], 1), 14, interactions="sii")
    assert both.values.shape == both.standard_errors.shape == (2, 14)
    assert both.interactions.shape == (2, 14, 14)
    assert (both.values[0] - shapley_values(smooth(14, 1), 14).values).norm() < 0.02 * both.values[0].norm()
