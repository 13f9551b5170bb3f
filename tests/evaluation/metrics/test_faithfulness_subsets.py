"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import metrics
from whence.core.inputs import Inputs
from whence.evaluation.evaluation_batch import EvaluationBatch
from whence.lrp.engine.prepared_model import PreparedModel

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


def test_sensitivity_n_is_1_for_a_linear_model_and_equals_a_transcription():
    """Quantus reads the first batch alone and sums single steps (its defect 3)."""
    model, x = linear(), torch.randn(6, 12)
    ones = scores(model, x, "gradient_times_input", metrics.SensitivityN())
    torch.testing.assert_close(ones, torch.ones(6, dtype=torch.float64), atol=1e-5, rtol=0)
    metric = metrics.SensitivityN(sizes=(0.25, 0.5), n_samples=40)
    net, relevance = cnn(), torch.randn(2, 2, SIDE, SIDE)
    x = torch.rand(2, 2, SIDE, SIDE)
    found = scores(net, x, given_map(relevance), metric)
    batch = EvaluationBatch.of(PreparedModel(net), Inputs.of(x), None)
    regions, _, chosen = metric._lost(batch)
    mask = regions.masks[0]
    for i in range(2):
        target, means = int(net(x[i : i + 1]).argmax()), []
        for part in chosen[:, i].split(40):
            sums, lost = [], []
            for subset in part:
                hidden = subset[mask[0, 0]]
                sums.append(float(relevance[i][:, hidden].sum()))
                lost.append(float((net(x[i : i + 1]) - net((x[i] * ~hidden)[None]))[0, target].detach()))
            means.append(np.corrcoef(sums, lost)[0, 1])
        assert float(found[i]) == pytest.approx(np.mean(means), abs=1e-4)


def test_infidelity_is_0_for_a_linear_model():
    """Quantus' samples are all alike (its defect 4)."""
    model, x = linear(), torch.randn(4, 12)
    assert scores(model, x, "gradient_times_input", metrics.Infidelity(scaled=False)).max() < 1e-8
    scaled = scores(model, x, given_map(3 * x * model[0].weight[model(x).argmax(1)].detach()), metrics.Infidelity())
    assert scaled.max() < 1e-8  # the best factor is a third
    assert scores(model, x, given_map(torch.randn(4, 12)), metrics.Infidelity()).min() > 0.1


def test_any_size_of_picture_divides_into_patches():
    """Quantus fails where the patch does not divide the side (its defect 4)."""
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(2)).eval()
    model(torch.rand(1, 1, 7, 11))
    found = whence.evaluate(model, torch.rand(3, 1, 7, 11), ["lrp"], ["infidelity", "srg"], regions=4, progress=False)
    assert torch.isfinite(found.values["lrp"]["infidelity"]).all()
