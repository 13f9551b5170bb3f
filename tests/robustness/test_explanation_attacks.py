"""Attacks by their papers and beside foolbox; robust features in closed form; explanations under attack."""

from dataclasses import fields

import pytest
import torch
from torch import nn

import whence
from whence.methods.registry import METHODS
from whence.models.digits import digit_samples, digits
from whence.robustness.attacked_batch import predicted


@pytest.fixture
def bundled():
    return digits(), *digit_samples()


def small(classes=4, features=6, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, classes)).double().eval()


def test_a_pair_of_heatmaps(bundled, tmp_path):
    model, x, y = bundled
    pair = whence.explain_attack(model, x[:3], y[:3], whence.attacks.PGD(0.15))
    assert torch.equal(pair.before.target, y[:3])
    assert torch.equal(pair.after.target, pair.result.after)
    assert ((pair.moved > 0) & (pair.moved <= 1)).all()
    with torch.no_grad():
        rows = torch.arange(3)
        margins = [
            (out := model(at))[rows, pair.result.after] - out[rows, pair.result.before]
            for at in (pair.result.originals, pair.result.inputs)
        ]
    torch.testing.assert_close(pair.flip.relevance.sum((1, 2, 3)), margins[1] - margins[0], rtol=5e-3, atol=5e-3)
    unchanged = pair.result.inputs == pair.result.originals
    assert (pair.flip.relevance[unchanged] == 0).all()
    assert pair.save(tmp_path / "pair.png").stat().st_size > 1000
    assert "% of the relevance moved" in repr(pair)
    assert pair._repr_png_().startswith(b"\x89PNG")


def test_relevance_that_moves_is_measured_from_0_to_1():
    from whence.robustness.explanation_attacks import relevance_shift

    here, there = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    assert relevance_shift(here, here).item() == 0
    assert relevance_shift(here, 3 * here).item() == 0
    assert relevance_shift(here, there).item() == 1
    assert relevance_shift(here, -here).item() == 1
    assert relevance_shift(torch.zeros(1, 2), torch.zeros(1, 2)).item() == 0


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_can_be_checked(method):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    given = {"layer": "0"} if "layer" in {f.name for f in fields(METHODS[method])} else {}
    chosen = {"rise": whence.RISE(n_samples=20), "shapley": whence.Shapley(budget=100)}.get(method) or METHODS[method](**given)
    found = whence.attack_explanation(net, torch.rand(2, 1, 6, 6), epsilon=0.1, method=chosen, n_queries=5, progress=False)
    assert (found.moved >= found.moved_by_noise).all()
    assert found._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", ["lrp", "gradient_times_input"])
def test_the_same_output_with_another_heatmap(bundled, method):
    model, x, _ = bundled
    found = whence.attack_explanation(model, x[:3], epsilon=0.1, method=method, n_queries=40, progress=False)
    assert (found.moved >= found.moved_by_noise).all()
    assert found.moved.mean() > 1.1 * found.moved_by_noise.mean()
    assert torch.equal(predicted(model, found.after.inputs), predicted(model, x[:3]))
    assert ((found.after.output - found.before.output).abs() <= 0.05 * found.before.output.abs() + 1e-6).all()
    assert (found.after.inputs - x[:3]).abs().max() <= 0.1 + 1e-6
    assert "relevance moved" in repr(found)


def test_what_the_network_says_stays_however_much_the_output_may_change(bundled):
    model, x, _ = bundled
    found = whence.attack_explanation(model, x[:10], epsilon=0.2, n_queries=30, tolerance=10, progress=False)
    assert torch.equal(predicted(model, found.after.inputs), predicted(model, x[:10]))


def test_explanations_of_rows_can_be_attacked():
    model, x = small(), torch.rand(3, 6, dtype=torch.float64)
    found = whence.attack_explanation(
        model, x, 1, epsilon=0.05, method="sensitivity", n_queries=20, progress=False, tolerance=1
    )
    assert found.after.inputs.shape == x.shape
