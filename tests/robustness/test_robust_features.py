"""Attacks by their papers and beside foolbox; robust features in closed form; explanations under attack."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence.models.digits import digit_samples, digits, robust_digits
from whence.robustness.attacked_batch import predicted
from whence.robustness.robust_features import _FeatureExtractor

UNBOUNDED = whence.attacks.Box.unbounded()


@pytest.fixture
def bundled():
    return digits(), *digit_samples()


def phi(z):
    return (1 + math.erf(z / math.sqrt(2))) / 2


def test_closed_forms():
    for d in (9, 100, 400):
        data = whence.experiments.RobustFeatures(d)
        assert data.accuracy("weak") == pytest.approx(phi(3), rel=1e-12)
        assert data.accuracy("weak", 0.15) == pytest.approx(phi(3 - 0.15 * math.sqrt(d)), rel=1e-12)
        assert data.accuracy("strong") == data.accuracy("strong", 0.15) == 0.9975
    assert round(whence.experiments.RobustFeatures().accuracy("weak"), 4) == 0.9987
    assert whence.experiments.RobustFeatures(d=16, eta=0.5).accuracy("weak") == pytest.approx(phi(2))
    assert whence.experiments.RobustFeatures().accuracy("strong", 1.5) == 0
    for epsilon in (0.99, 1.0, 1.01):
        data = whence.experiments.RobustFeatures(d=4)
        x, labels = data.sample(20_000)
        found = whence.attack(data.classifier("strong"), x, labels, whence.attacks.FGSM(epsilon, box=UNBOUNDED))
        assert found.robust_accuracy == pytest.approx(data.accuracy("strong", epsilon), abs=0.015)


def test_the_two_adversarial_claims():
    """At x = (1, 0.1, …, 0.1), y = 1 and ε = 0.15, FGSM fools the weak classifier, and nothing fools the strong one."""
    data = whence.experiments.RobustFeatures(d=100)
    x, y = torch.full((1, 101), 0.1, dtype=torch.float64), torch.tensor([1])
    x[0, 0] = 1
    weak, strong = data.classifier("weak"), data.classifier("strong")
    assert predicted(weak, x) == predicted(strong, x) == y
    twin = whence.attacks.fgsm(weak, x, y, epsilon=0.15, box=UNBOUNDED)
    expected = torch.full((1, 101), -0.05, dtype=torch.float64)
    expected[0, 0] = 1
    torch.testing.assert_close(twin, expected)
    assert predicted(weak, twin) == 0
    twin = whence.attacks.fgsm(strong, x, y, epsilon=0.15, box=UNBOUNDED)
    expected = x.clone()
    expected[0, 0] = 0.85
    torch.testing.assert_close(twin, expected)
    corners = x + 0.15 * (torch.randint(2, (1000, 101)) * 2 - 1)
    assert (predicted(strong, corners) == 1).all()
    assert not whence.attack(strong, x, y, whence.attacks.PGD(0.15, 50, restarts=5, box=UNBOUNDED)).success.any()


def test_simulation_lies_within_its_standard_error(tmp_path):
    experiment = whence.experiments.robust_features_experiment(n_samples=4000, progress=False)
    assert {row["over"] for row in experiment.rows} == {"d", "eta", "p", "epsilon"}
    errors = [(row["simulated"] - row["exact"]) / max(row["standard_error"], 1 / 4000) for row in experiment.rows]
    assert np.abs(errors).max() < 4
    assert np.mean(np.abs(errors) < 1) > 0.5
    assert "50.00% exactly" in repr(experiment)
    assert experiment.save(tmp_path / "experiment.png").stat().st_size > 10_000


def test_samples_are_of_the_distribution():
    x, labels = whence.experiments.RobustFeatures(d=4, p=0.8, eta=0.5).sample(40_000)
    y = 2.0 * labels - 1
    assert x.shape == (40_000, 5)
    assert set(x[:, 0].tolist()) == {-1.0, 1.0}
    assert (x[:, 0] == y).double().mean().item() == pytest.approx(0.8, abs=0.01)
    torch.testing.assert_close((x[:, 1:] * y[:, None]).mean(0), torch.full((4,), 0.5).double(), atol=0.03, rtol=0)
    torch.testing.assert_close(x[:, 1:].var(0), torch.full((4,), 1.25).double(), atol=0.05, rtol=0)


def test_scores_of_input_features_are_the_closed_form():
    """u = E[y f], and ε/σ less under attack: the strong feature stays useful, the weak ones do not."""
    data = whence.experiments.RobustFeatures(d=100, eta=0.1)
    x, labels = data.sample(40_000)
    scores = whence.attacks.feature_scores(data.classifier("weak"), x, labels, epsilon=0.15, box=UNBOUNDED)
    spread = math.sqrt(1 + 0.1**2)
    assert scores.usefulness[0].item() == pytest.approx(2 * 0.9975 - 1, abs=0.01)
    assert scores.robustness[0].item() == pytest.approx(2 * 0.9975 - 1 - 0.15, abs=0.01)
    assert scores.usefulness[1:].mean().item() == pytest.approx(0.1 / spread, abs=0.01)
    assert scores.robustness[1:].mean().item() == pytest.approx((0.1 - 0.15) / spread, abs=0.01)
    assert scores.robust.nonzero().flatten().tolist() == [0]


def test_units_that_are_off_can_be_switched_on():
    """The gradient goes round a ReLU that stops all of it: else a dead unit would pass for robust."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    net[0].weight.data, net[0].bias.data = torch.eye(2), torch.tensor([-0.4, 0.0])
    x, y = torch.tensor([[0.9, 0.5], [0.8, 0.3], [0.35, 0.5], [0.3, 0.2]]), torch.tensor([1, 1, 0, 0])
    scores = whence.attacks.feature_scores(net, x, y, epsilon=0.2, layer="1", progress=False)
    values = torch.tensor([0.5, 0.4, 0.0, 0.0])
    worst = torch.tensor([0.3, 0.2, 0.15, 0.1])
    assert scores.robustness[0].item() == pytest.approx(
        ((worst[:2].mean() - worst[2:].mean()) / 2 / values.std(correction=0)).item(), abs=1e-5
    )


def test_the_furthest_that_a_feature_got_counts():
    """From 0.45 a step too long leads past the peak at 0.52, to 0.55, and the next one back to where it is less."""

    class Bump(nn.Module):
        def forward(self, x):
            return -(x - 0.52).square()

    features = _FeatureExtractor(nn.Sequential(Bump(), nn.Linear(1, 2)).eval(), "0", whence.attacks.Box())
    found = features._climbed(torch.tensor([[0.45]]), torch.ones(1), 0, epsilon=0.1, steps=2)
    assert found.item() == pytest.approx(-(0.03**2), rel=1e-3)


def test_scores_of_channels(bundled, tmp_path):
    model, x, y = bundled
    plain = whence.attacks.feature_scores(model, x, y, epsilon=0.0, layer="3", n_steps=1, progress=False)
    torch.testing.assert_close(plain.robustness, plain.usefulness)
    scores = {
        name: whence.attacks.feature_scores(net, x[:20], y[:20], epsilon=0.1, layer="0", n_steps=3, progress=False)
        for name, net in (("standard", model), ("robust", robust_digits()))
    }
    for found in scores.values():
        assert len(found) == 16
        assert (found.robustness < found.usefulness).all()
    share = {name: (found.robustness / found.usefulness).median() for name, found in scores.items()}
    assert share["robust"] > share["standard"]
    assert "channels of '3'" in repr(plain)
    assert plain.save(tmp_path / "scores.png").stat().st_size > 1000
