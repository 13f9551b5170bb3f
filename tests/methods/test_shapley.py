"""Shapley values: exercise G, axioms, captum's truths, exact values against the definition, sampled ones against exact."""

import pytest
import torch
from torch import nn

import whence
from support.comparisons import close
from whence import Shapley

pytestmark = pytest.mark.usefixtures("float64")

CALLS_BEFORE = 4  # the output, and the check that rows are independent: the target, altered samples alone and behind others


def relevance(model, x, method=None, target=0, **settings):
    return whence.explain(model, x, target, method=method or Shapley(**settings)).relevance


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize("estimator", ["exact", "regression", "permutation", None])
def test_shapley_values_are_complete(estimator):
    x = torch.randn(3, 12)
    e = whence.explain(
        net(), x, method=Shapley(torch.randn(3, 12), estimator=estimator, budget=None if estimator == "exact" else 500)
    )
    assert e.conservation.error.max() < 1e-12
    close(e.relevance.sum(1), e.output - e.conservation.baseline)
    assert (e.standard_errors is None) == (estimator == "exact")


def test_the_marginal_value_averages_over_the_background():
    x, background, model = torch.randn(2, 12), torch.randn(5, 12), net()
    e = whence.explain(model, x, 1, method=Shapley(background=background))
    close(e.conservation.baseline, model(background)[:, 1].detach().mean().expand(2))
    each = torch.stack([relevance(model, x, target=1, baselines=b[None]) for b in background])
    close(e.relevance, each.mean(0), rtol=1e-3, atol=1e-4)
    exact = whence.explain(model, x, 1, method=Shapley(background=background, estimator="exact"))
    close(
        exact.relevance,
        torch.stack([relevance(model, x, target=1, baselines=b[None], estimator="exact") for b in background]).mean(0),
    )


def test_interactions_of_a_model():
    w = torch.randn(4)
    e = whence.explain(
        lambda x: ((x * w.to(x)).sum(1) + x[:, 0] * x[:, 3])[:, None], torch.ones(2, 4), 0, method=Shapley(interactions="sii")
    )
    assert e.interactions.shape == (2, 4, 4)
    close(e.interactions[:, 0, 3], [1.0, 1.0])
    close(e[1].interactions[0], e.interactions[1])
    assert "interactions" in e.numbers()


def test_the_budget_counts_model_evaluations():
    rows, model = [], net()

    def counted(x):
        rows.append(len(x))
        return model(x)

    for method in (
        Shapley(budget=100),
        Shapley(budget=600, background=torch.randn(5, 12)),
        Shapley(budget=100, estimator="permutation"),
    ):
        rows.clear()
        whence.explain(counted, torch.randn(2, 12), 0, method=method)
        assert 0.7 * 2 * method.budget <= sum(rows[CALLS_BEFORE:]) <= 2 * method.budget


def test_features_that_equal_their_baseline_are_zero_and_cost_nothing():
    rows, model, x = [], net(), torch.randn(3, 12)
    x[0, 5:] = x[1, 5:] = 0.0
    x[2, :3] = 0.0

    def counted(x):
        rows.append(len(x))
        return model(x)

    method = Shapley(interactions="sii", budget=100)
    e = whence.explain(counted, x, 1, method=method)
    assert sum(rows[CALLS_BEFORE:]) == 2 * 2**5 + 100  # two games of five players exactly, one of nine by a sample
    assert torch.equal(e.relevance == 0, x == 0)
    assert torch.equal(e.standard_errors[:2], torch.zeros(2, 12))
    for i in range(3):
        alone = whence.explain(model, x[i : i + 1], 1, method=method)
        close(e.relevance[i : i + 1], alone.relevance)
        close(e.interactions[i : i + 1], alone.interactions)
        close(e[i].conservation.baseline, alone.conservation.baseline)
    nothing = whence.explain(model, torch.zeros(1, 12), 1, method=method)
    close(nothing.relevance, torch.zeros(1, 12))
    close(nothing.conservation.baseline, nothing.output)


def test_pictures_by_patches():
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)).eval()
    e = whence.explain(model, x, 0, method=Shapley(feature_mask=whence.patches(x, 4)))
    assert e.relevance.shape == x.shape
    close(e.relevance[:, :, :4, :4], e.relevance[:, :1, :1, :1].expand(2, 3, 4, 4))
    close(e.relevance[:, 0, ::4, ::4].flatten(1).sum(1), e.output - e.conservation.baseline)
