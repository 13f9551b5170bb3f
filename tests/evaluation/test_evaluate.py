"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import pytest
import torch
from torch import nn

import whence
from whence import errors, metrics
from whence.evaluation.retraining import roar
from whence.models.digits import digit_samples, digits

SIDE = 6


def cnn(seed=0, channels=2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 5)
    ).eval()  # fmt: skip


NEED_MASKS = {name for name, metric in metrics.METRICS.items() if getattr(metric, "needs_masks", False)}


@pytest.mark.parametrize("name", sorted(set(metrics.METRICS) - NEED_MASKS))
def test_no_score_depends_on_batches(name):
    model, x = cnn(), torch.rand(7, 2, SIDE, SIDE)
    whole = whence.evaluate(model, x, ["lrp", "random"], [name], progress=False)
    parts = whence.evaluate(model, x, ["lrp", "random"], [name], batch_size=3, progress=False)
    for method in ("lrp", "random"):
        a, b = whole.values[method][name], parts.values[method][name]
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4, equal_nan=True)


def test_a_batch_mate_changes_nothing():
    """Quantus divides by the largest value of the whole batch (its defect 10)."""
    model, x = cnn(), torch.rand(2, 2, SIDE, SIDE)
    loud = torch.stack([x[0], x[1] * 1e6])
    for name in ("sparseness", "complexity", "continuity", "srg"):
        a = whence.evaluate(model, x, ["lrp"], [name], progress=False).values["lrp"][name][0]
        b = whence.evaluate(model, loud, ["lrp"], [name], progress=False).values["lrp"][name][0]
        assert float(a) == pytest.approx(float(b), rel=1e-3), name


def test_the_defaults_rank_lrp_before_chance():
    x, y = digit_samples()
    found = whence.evaluate(digits(), (x, y), progress=False)
    assert found.best("srg") == "lrp"
    assert all(row["low"] > 0 for row in found.differences("srg", to="random"))


def test_tuning_as_it_comes_is_no_worse_than_the_default_by_its_own_metric():
    x, y = digit_samples()
    found = whence.tune(digits(), (x, y), progress=False)
    rows = {row["method"]: row["srg"] for row in found.table}
    assert rows[found.name] >= rows["default"]
    assert found.score.n == 25
    assert found.score.low > 2  # chance has 0


def test_a_moved_digit_is_drawn_for_each_method(tmp_path):
    from whence.evaluation.metrics.robustness import translation_figure

    x, _ = digit_samples()
    drawn = translation_figure(digits(), x[3:4], ["lrp", "sensitivity"])
    assert [axis.get_xlabel() for axis in drawn.axes] == ["shift in pixels: lrp", "shift in pixels: sensitivity"]
    lines = drawn.axes[0].get_lines()
    assert len(lines) == 9
    here = whence.explain(digits(), x[3:4]).relevance
    cells = nn.functional.adaptive_avg_pool2d(here, 3).flatten()
    unmoved = torch.tensor([float(line.get_ydata()[10]) for line in lines], dtype=cells.dtype)
    torch.testing.assert_close(unmoved / unmoved.abs().max(), cells / cells.abs().max(), rtol=1e-3, atol=1e-4)
    with pytest.raises(errors.InputError, match="expected one image"):
        translation_figure(digits(), x[:2], ["lrp"])


def test_retraining_as_it_comes():
    x, y = digit_samples()

    def train(x, y, seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(15):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimiser.step()
        return model.eval()

    rows = roar(train, (x[:40], y[:40]), (x[40:], y[40:]), ["gradient_times_input", "random"])
    assert len(rows) == 10
    assert all(0 <= row["accuracy"][0] <= 1 for row in rows)
