"""Shapley values: exercise G, axioms, captum's truths, exact values against the definition, sampled ones against exact."""

import pytest
import torch
from torch import nn

import whence
from whence import Shapley, errors, shapley_values

pytestmark = pytest.mark.usefixtures("float64")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"players": 21, "estimator": "exact"}, r"21 features take 2\^21 = 2,097,152 coalitions; group them into at most 20"),
        ({"players": 784, "estimator": "exact"}, r"784 features take 2\^784 coalitions"),
        ({"players": 30, "budget": 40}, "30 features take 60 coalitions; pass at least 60"),
        ({"players": 30, "budget": 100, "interactions": "stii"}, "30 features and their pairs take 932 coalitions"),
        ({"players": 200, "interactions": "sii"}, "features have too many interactions to sample; group them wi"),
        (
            {"players": 12, "budget": 500, "estimator": "exact"},
            "exact values of 12 features take 4096 coalitions; pass at least 4096",
        ),
        ({"players": 30, "budget": 1e3}, "budget may be None"),
        ({"players": 30, "seed": None}, "budget may be None"),
        ({"players": 30, "budget": 100, "estimator": "permutation"}, "take 118 coalitions"),
        ({"players": 150_528}, "features are too many for Shapley values; group them with a"),
        ({"players": 3, "estimator": "kernel"}, "choose 'exact'"),
        ({"players": 3, "interactions": "banzhaf"}, "choose 'sii'"),
        ({"players": 3, "estimator": "permutation", "interactions": "sii"}, "computes no interactions; use estimator"),
        ({"players": 0}, "expected at least"),
    ],
)
def test_what_cannot_be_estimated_is_refused(settings, message):
    with pytest.raises(errors.RuleError, match=message):
        shapley_values(lambda m: m.sum(1).double(), **settings)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda m: m.double(), None),
        (lambda m: m.double()[:-1], "the value function returned"),
        (lambda m: 3.0, "the value function returned float for"),
        (lambda m: m.double().sum(), "the value function returned"),
        (lambda m: m.double()[:, 0] / 0, "NaN"),
    ],
)
def test_a_value_function_of_the_wrong_shape(value, message):
    if message is None:
        assert shapley_values(value, 3).values.shape == (3, 3)
        return
    with pytest.raises(errors.InputError, match=message):
        shapley_values(value, 3)


def test_models_are_refused_like_games():
    with pytest.raises(
        errors.RuleError, match="budget=60 is below 120: 12 features take 24 coalitions at 5 model evaluations each"
    ):
        whence.explain(net(), torch.randn(1, 12), 0, method=Shapley(background=torch.randn(5, 12), budget=60))
    with pytest.raises(errors.RuleError, match="give baselines or a background to replace absent features, not both"):
        Shapley(baselines=0.0, background=torch.zeros(1, 12))
    with pytest.raises(errors.RuleError, match="group them with a feature_mask"):
        whence.explain(lambda x: x.flatten(1), torch.ones(1, 3, 64, 64), 0, method=Shapley())
