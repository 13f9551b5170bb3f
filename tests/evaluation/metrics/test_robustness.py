"""evaluate(): each metric against a slow literal transcription, what peers got wrong, what comes in, what comes out."""

import pytest
import torch
from torch import nn

import whence
from whence import errors, metrics
from whence.core.inputs import Inputs
from whence.evaluation.evaluation_batch import EvaluationBatch
from whence.evaluation.metrics.robustness import uniform_noise
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


def test_continuity_of_a_linear_model_is_known():
    """R = w ⊙ x: moving x by d moves R by w ⊙ d."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 1, bias=False)).eval()
    x = torch.rand(2, 1, 3, 3)
    found = scores(model, x, "gradient_times_input", metrics.Continuity(relative=False))
    w = model[1].weight.detach().view(3, 3)
    for i in range(2):
        ratios = []
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            places = (torch.arange(3) - step).clamp(0, 2)
            moved = x[i, 0].index_select(axis, places)
            ratios.append(float((w * (moved - x[i, 0])).abs().sum() / (moved - x[i, 0]).norm()))
        assert float(found[i]) == pytest.approx(max(ratios), rel=1e-5)


def test_max_sensitivity_of_a_linear_model_stays_below_its_bound():
    model, x = linear(), torch.randn(5, 12)
    found = scores(model, x, "gradient_times_input", metrics.MaxSensitivity(radius=0.1))
    w = model[0].weight[model(x).argmax(1)].detach()
    bound = 0.1 * w.norm(dim=1) / (w * x).norm(dim=1)
    assert (found < bound).all()
    assert (found > 0.3 * bound).all()
    assert scores(model, x, given_map(torch.ones(5, 12)), metrics.MaxSensitivity()).max() == 0


@pytest.mark.filterwarnings("ignore")
def test_captum_agrees_on_max_sensitivity():
    import captum.metrics
    from captum.attr import Saliency

    model, x = cnn(), torch.rand(3, 2, SIDE, SIDE)
    target = model(x).argmax(1)
    ours = scores(
        model, x, lambda m, x, t: Saliency(m).attribute(x.requires_grad_(), t, abs=False), metrics.MaxSensitivity(n_samples=60)
    )
    theirs = captum.metrics.sensitivity_max(Saliency(model).attribute, x, target=target, n_perturb_samples=60, abs=False)
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.35, atol=1e-3)  # both are random searches


@pytest.mark.parametrize("kind", [metrics.RelativeInputStability, metrics.RelativeOutputStability])
def test_relative_stability_by_hand(kind):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).eval(), torch.rand(3, 5) + 0.5
    metric = kind(radius=0.05, n_samples=4)
    found = whence.evaluate(model, x, ["gradient_times_input"], [metric], progress=False).values["gradient_times_input"][
        metric.name
    ]
    batch = EvaluationBatch.of(PreparedModel(model), Inputs.of(x), None)
    noise = uniform_noise(batch, {0: x}, 4, "stability")[0]
    for i in range(3):
        here, expected = whence.explain(model, x[i : i + 1], method="gradient_times_input"), float("nan")
        for k in range(4):
            moved = (x[i] + (2 * noise[k, i] - 1) * 0.05)[None]
            if model(moved).argmax() != model(x[i : i + 1]).argmax():
                continue
            there = whence.explain(model, moved, here.target, method="gradient_times_input")
            change = ((there.relevance - here.relevance) / here.relevance.abs().clamp(min=1e-3)).norm()
            if kind is metrics.RelativeInputStability:
                far = ((moved - x[i]) / x[i].abs().clamp(min=1e-3)).norm()
            else:
                far = (model(moved) - model(x[i : i + 1])).detach().norm()
            ratio = float(change / far.clamp(min=1e-3))
            expected = ratio if expected != expected else max(expected, ratio)
        assert float(found[i]) == pytest.approx(expected, rel=1e-3, nan_ok=True)
    with pytest.raises(errors.RuleError, match="expected a positive radius"):
        kind(radius=0)
