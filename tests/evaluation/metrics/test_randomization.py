"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import pytest
import torch
from torch import nn

import whence
from whence import metrics
from whence.evaluation.metrics.randomization import spearman
from whence.evaluation.retraining import label_randomisation, roar

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


def test_mprt_leaves_out_the_intact_model_and_the_model_alone():
    """Quantus averages the 1 of the intact model in (its defect 5)."""
    model, x = linear(), torch.rand(20, 12)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    signed = metrics.MPRT(absolute=False)
    found = scores(model, x, "gradient_times_input", signed)
    assert abs(float(found.mean())) < 0.75  # one layer: half of 1 and chance would be 0.5 and more
    constant = scores(model, x, given_map(torch.rand(20, 12)), signed)
    torch.testing.assert_close(constant, torch.ones(20, dtype=torch.float64))
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
    state = torch.get_rng_state()
    scores(model, x, "gradient_times_input", metrics.SmoothMPRT(n_samples=2))
    assert torch.equal(state, torch.get_rng_state())


def test_mprt_equals_a_cascade_by_hand():
    model, x = cnn(), torch.rand(2, 2, SIDE, SIDE)
    found = scores(model, x, "gradient_times_input", metrics.MPRT(absolute=False, seed=3))
    other, target = cnn(), model(x).argmax(1)
    other.load_state_dict(model.state_dict())
    here = whence.explain(model, x, target, method="gradient_times_input").relevance
    with torch.random.fork_rng():
        torch.manual_seed(3)
        stages = []
        for layer in (other[3], other[0]):
            layer.reset_parameters()
            there = whence.explain(other, x, target, method="gradient_times_input").relevance
            stages.append(spearman(here.flatten(1).double(), there.flatten(1).double()))
    torch.testing.assert_close(found, torch.stack(stages).mean(0))


def test_spearman_equals_scipy():
    from scipy.stats import spearmanr

    a, b = torch.randint(0, 5, (6, 40)).double(), torch.randn(6, 40).double()
    for i in range(6):
        assert float(spearman(a, b)[i]) == pytest.approx(spearmanr(a[i], b[i]).statistic)


def test_random_logit_and_efficient_mprt():
    model, x = linear(), torch.rand(30, 12)
    assert scores(model, x, given_map(torch.rand(30, 12)), metrics.RandomLogit()).min() > 0.999
    assert abs(float(scores(model, x, "gradient_times_input", metrics.RandomLogit()).mean())) < 0.6
    assert torch.isfinite(scores(cnn(), torch.rand(3, 2, SIDE, SIDE), "lrp", metrics.EfficientMPRT())).all()


def _train(x, y, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 2))
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(80):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


def test_retraining():
    """Two pixels tell the class: without what gradient × input calls relevant nothing is left to learn, at random much is."""
    torch.manual_seed(0)
    y = torch.randint(2, (200,))
    x = torch.rand(200, 1, 4, 4) - 0.5
    x[:, 0, 0, :2] = 2 * y[:, None].float() - 1 + 0.1 * torch.rand(200, 2)
    rows = roar(_train, (x[:100], y[:100]), (x[100:], y[100:]), ["gradient_times_input", "random"],
                fractions=(0.15,), regions="pixels", imputer=0.0)  # fmt: skip
    accuracy = {row["method"]: row["accuracy"][0] for row in rows}
    assert accuracy["gradient_times_input"] < 0.8 < accuracy["random"]
    found = label_randomisation(_train, (x, y), ["gradient_times_input"])
    assert found["gradient_times_input"].shape == (100,)
    assert float(found["gradient_times_input"].mean()) < 0.8
