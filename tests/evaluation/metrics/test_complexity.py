"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import whence
from whence import metrics

SIDE = 6


def cnn(seed=0, channels=2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 5)
    ).eval()  # fmt: skip


def linear(n=12):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(n, 3, bias=False)).eval()


def scores(model, x, method, metric, **more):
    more = {"progress": False} | more
    return whence.evaluate(model, x, {"m": method}, [metric], **more).values["m"][metric.name]


def given_map(relevance):
    return lambda model, x, target: relevance[: len(x)]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9).filter(lambda v: sum(map(abs, v)) > 1e-3))
def test_sparseness_and_entropy_equal_their_formulas(values):
    heat = torch.tensor([values])
    model, x = linear(len(values)), torch.rand(1, len(values))
    found = whence.evaluate(model, x, {"m": given_map(heat)}, ["sparseness", "complexity"], progress=False).values["m"]
    magnitude = sorted(abs(v) for v in heat[0].double().tolist())
    n, total = len(values), sum(magnitude)
    gini = sum((2 * k - n - 1) * v for k, v in enumerate(magnitude, 1)) / (n * total)
    assert float(found["sparseness"]) == pytest.approx(gini, abs=1e-9)
    entropy = -sum(v / total * math.log(v / total) for v in magnitude if v > 0)
    assert float(found["complexity"]) == pytest.approx(entropy, abs=1e-9)


def test_complete_explanations_have_no_gap():
    """Quantus compares floats with == after normalising and a softmax (its defect 2)."""
    model, x = linear(), torch.randn(8, 12)
    assert scores(model, x, "gradient_times_input", metrics.Completeness()).max() < 1e-5
    net = cnn()
    x = torch.rand(3, 2, SIDE, SIDE)
    complete = whence.IntegratedGradients(n_steps=300)
    assert scores(net, x, complete, metrics.Completeness()).max() < 1e-2
    assert scores(net, x, "lrp", metrics.ConservationGap()).max() < 1e-5
    assert scores(net, x, "sensitivity", metrics.ConservationGap()).min() > 1e-3
    arrived = scores(net, x, "lrp", metrics.RelevanceRatio())
    account = whence.explain(net, x).conservation
    torch.testing.assert_close(arrived.float(), account.relevance / account.output)
