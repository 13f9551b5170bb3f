"""Attacks by their papers and beside foolbox; robust features in closed form; explanations under attack."""

import json
import math
import warnings
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import whence
from whence.frontends.cli import app
from whence.methods.registry import METHODS
from whence.models.digits import digit_samples, digits, robust_digits
from whence.robustness.attacked_batch import predicted
from whence.robustness.robust_features import _FeatureExtractor

UNBOUNDED = whence.attacks.Box.unbounded()


@pytest.fixture(scope="module")
def mnist(request):
    """Two hundred test digits."""
    folder = request.getfixturevalue("data")
    test = np.load(folder / "mnist_test.npz")
    return torch.as_tensor(test["images"][:200, None] / 255.0).float(), torch.as_tensor(test["labels"][:200]).long()


@pytest.fixture
def bundled():
    return digits(), *digit_samples()


def small(classes=4, features=6, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, classes)).double().eval()


def accuracy(model, x, y):
    return (predicted(model, x) == y).double().mean().item()


# by the papers ------------------------------------------------------------------------------------------------------------


def test_fgsm_is_a_step_along_the_sign_of_the_gradient():
    model, x, y = small(), torch.rand(5, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    assert torch.equal(whence.attacks.fgsm(model, x, y, epsilon=0.1), (x + 0.1 * g.sign()).clamp(0, 1))
    towards = torch.tensor([1, 2, 3, 0, 1])
    (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), towards), leaf)
    assert torch.equal(whence.attacks.fgsm(model, x, y, epsilon=0.1, target_classes=towards), (x - 0.1 * g.sign()).clamp(0, 1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_pgd_is_projected_gradient_ascent(norm, momentum):
    """Against the loop as it is written down, sample by sample."""
    model, x, y = small(), torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    found = whence.attacks.PGD(0.3, 7, 0.1, norm, random_start=False, momentum=momentum)(model, x, y)
    for sample, label, twin in zip(x, y, found, strict=True):
        at, g = sample, torch.zeros(6, dtype=torch.float64)
        for _ in range(7):
            leaf = at.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf[None]), label[None]), leaf)
            g = momentum * g + gradient / gradient.abs().sum() if momentum else gradient
            step = g.sign() if norm == "linf" else g / g.norm()
            away = at + 0.1 * step - sample
            away = away.clamp(-0.3, 0.3) if norm == "linf" else away * min(1.0, 0.3 / away.norm().item())
            at = (sample + away).clamp(0, 1)
        torch.testing.assert_close(twin, at, rtol=1e-12, atol=1e-12)


def test_mi_fgsm_is_pgd_with_momentum_and_steps_of_epsilon_over_t():
    model, x = small(), torch.rand(4, 6, dtype=torch.float64)
    expected = whence.attacks.PGD(0.2, 5, 0.04, momentum=1.0, random_start=False)(model, x, 1)
    assert torch.equal(whence.attacks.MIFGSM(0.2, n_steps=5)(model, x, 1), expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_of_a_linear_classifier_is_the_nearest_boundary(norm):
    torch.manual_seed(1)
    model = nn.Linear(5, 4).double().eval()
    x = torch.randn(20, 5, dtype=torch.float64)
    y = model(x).argmax(1)
    twins = whence.attacks.DeepFool(overshoot=0.0, norm=norm, box=UNBOUNDED)(model, x, y)
    order = torch.inf if norm == "linf" else 2
    for sample, label, twin in zip(x, y, twins, strict=True):
        f, w = model(sample), model.weight
        dual = [(w[k] - w[label]).norm(1 if norm == "linf" else 2).item() for k in range(4)]
        nearest = min((f[label] - f[k]).item() / dual[k] for k in range(4) if k != label)
        assert (twin - sample).norm(order).item() == pytest.approx(nearest, abs=2e-4)
        assert model(twin).argmax() != label


# what holds for all -------------------------------------------------------------------------------------------------------

ATTACKS = [
    whence.attacks.FGSM(0.1),
    whence.attacks.FGSM(0.5, norm="l2"),
    whence.attacks.PGD(0.1, 5),
    whence.attacks.PGD(0.5, 5, norm="l2", restarts=2),
    whence.attacks.PGD(0.1, 8, stop_early=True),
    whence.attacks.MIFGSM(0.1, 4),
    whence.attacks.DeepFool(n_steps=5),
    whence.attacks.DeepFool(n_steps=5, norm="linf", candidates=3),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_nothing_stays_and_runs_repeat(bundled, attack):
    model, x, y = bundled
    x, y = x[:6], y[:6]
    given, weights = x.clone(), {n: p.clone() for n, p in model.named_parameters()}
    twins = attack(model, x, y)
    assert twins.shape == x.shape
    assert twins.dtype == x.dtype
    assert not twins.requires_grad
    assert torch.equal(x, given)
    assert all(p.grad is None and torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert torch.equal(attack(model, x, y), twins)
    with torch.no_grad():
        assert torch.equal(attack(model, x, y), twins)
    with torch.inference_mode():
        assert torch.equal(attack(model, x, y), twins)


@given(st.sampled_from(["linf", "l2"]), st.floats(0, 2), st.integers(1, 6), st.booleans(), st.integers(0, 2**31), st.booleans())
def test_twins_lie_within_the_ball_and_the_box(norm, epsilon, steps, stop_early, seed, normalised):
    torch.manual_seed(seed % 1000)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double().eval()
    box = (
        whence.attacks.Box(-1.0, 2.0, mean=(0.3, -0.2, 0.1), std=(0.5, 2.0, 0.1))
        if normalised
        else whence.attacks.Box(-1.0, 2.0)
    )
    pixels = torch.rand(4, 3, 2, 2, dtype=torch.float64) * 3 - 1
    attack = whence.attacks.PGD(epsilon, steps, norm=norm, stop_early=stop_early, seed=seed, box=box)
    x = box.inputs(pixels)
    found = whence.attack(model, x, None, attack)
    assert (found.distances(torch.inf if norm == "linf" else 2) <= epsilon + 1e-6).all()
    after = box.pixels(found.inputs)
    assert after.min() >= -1 - 1e-12
    assert after.max() <= 2 + 1e-12


@given(st.sampled_from([whence.attacks.FGSM, whence.attacks.MIFGSM]), st.floats(0, 1), st.integers(0, 1000))
def test_twins_of_other_attacks_lie_within_ball_and_box_too(kind, epsilon, seed):
    torch.manual_seed(seed)
    model, x = nn.Linear(5, 3).eval(), torch.rand(4, 5)
    found = whence.attack(model, x, None, kind(epsilon))
    assert (found.distances() <= epsilon + 1e-6).all()
    fooled = whence.attacks.DeepFool(n_steps=3)(model, x)
    for twins in (found.inputs, fooled):
        assert twins.min() >= 0
        assert twins.max() <= 1


def test_how_sure_a_network_is_changes_nothing(bundled):
    """Gradients of a sure network's loss are tiny, and normalised."""
    model, x, y = bundled
    attack = whence.attacks.PGD(1.5, norm="l2", random_start=False)
    plain = whence.attack(model, x, y, attack)
    sure = whence.attack(lambda x: 10 * model(x), x, y, attack)
    assert abs(sure.robust_accuracy - plain.robust_accuracy) < 0.1


def test_restarts_and_early_stops_cost_no_success(mnist):
    x, y = mnist
    model = digits()
    attacks = {
        "once": whence.attacks.PGD(0.08, 10, seed=1),
        "thrice": whence.attacks.PGD(0.08, 10, restarts=3, seed=1),
        "early": whence.attacks.PGD(0.08, 10, stop_early=True, seed=1),
    }
    with_success = {name: whence.attack(model, x, y, a).success for name, a in attacks.items()}
    assert 0 < with_success["once"].sum() < len(x)
    assert (with_success["thrice"] >= with_success["once"]).all()
    assert with_success["thrice"].sum() > with_success["once"].sum()
    assert (with_success["early"] >= with_success["once"]).all()


def test_of_several_runs_the_one_of_largest_loss_is_kept(bundled):
    model, x, y = robust_digits(), *bundled[1:]
    losses = [
        F.cross_entropy(model(whence.attacks.PGD(0.1, 2, restarts=n)(model, x, y)), y, reduction="none") for n in (1, 2, 4)
    ]
    assert (losses[1] >= losses[0]).all()
    assert (losses[2] >= losses[1]).all()
    assert (losses[2] > losses[0]).any()


def test_targets_are_reached(bundled):
    model, x, y = bundled
    x, y = x[:10], y[:10]
    targets = (y + 3) % 10
    found = whence.attack(model, x, y, whence.attacks.PGD(0.3, 40, target_classes=targets))
    assert found.success.double().mean() > 0.8
    assert torch.equal(found.success, found.after == targets)
    assert whence.attack(model, x[:2], None, whence.attacks.PGD(0.3, 40, target_classes=7)).targets.tolist() == [7, 7]


def test_early_stops_wait_for_the_target(bundled):
    model, x, y = bundled
    targets = (y[:10] + 3) % 10
    found = whence.attack(model, x[:10], y[:10], whence.attacks.PGD(0.3, 40, target_classes=targets, stop_early=True))
    assert found.success.double().mean() > 0.8
    assert torch.equal(found.after[found.success], targets[found.success])


def test_what_was_wrong_before_is_no_success(bundled):
    model, x, y = bundled
    wrong = y[:4].clone()
    wrong[0] = 7  # it is a zero
    to_nines = lambda model, inputs, labels: torch.cat([x[9:10]] * 3 + [inputs[3:]])  # noqa: E731 - but for the last
    found = whence.attack(model, x[:4], wrong, to_nines)
    assert found.success.tolist() == [False, True, True, False]
    assert found.accuracy == 0.75
    assert found.robust_accuracy == 0.25
    right_by_luck = whence.attack(model, x[:1], 9, lambda model, x, y: digit_samples()[0][9:10])
    assert right_by_luck.after.tolist() == [9]
    assert right_by_luck.robust_accuracy == 0


def test_without_labels_the_models_own_are_taken(bundled):
    model, x, y = bundled
    assert torch.equal(
        whence.attacks.pgd(model, x[:5], epsilon=0.1, n_steps=3),
        whence.attacks.pgd(model, x[:5], y[:5], epsilon=0.1, n_steps=3),
    )


def test_any_callable_is_an_attack(bundled):
    model, x, y = bundled
    found = whence.attack(model, x[:10], y[:10], lambda model, x, y: (x + 0.3 * torch.rand_like(x)).clamp(0, 1))
    assert found.inputs.shape == x[:10].shape
    assert "upper bound" in repr(found)
    assert found.accuracy == 1


def test_other_libraries_attacks_are_told_bounds_and_targets_here(bundled):
    model, x, y = bundled
    box = whence.attacks.Box(mean=torch.tensor([0.1307]), std=0.3081)
    z, targets = box.inputs(x[:5]), (y[:5] + 1) % 10
    wrapped = lambda model, z, y: whence.attacks.pgd(model, z, y, epsilon=0.3, n_steps=40, box=box, target_classes=targets)  # noqa: E731
    net = lambda z: model(box.pixels(z))  # noqa: E731
    found = whence.attack(net, z, y[:5], wrapped, box=box, target_classes=targets)
    assert found.distances().max().item() == pytest.approx(0.3, abs=1e-5)
    assert torch.equal(found.success, found.after == targets)
    assert "taken for their targets" in repr(found)
    assert (
        whence.explain_attack(net, z, y[:5], wrapped, box=box, target_classes=targets).attacked.distances().max() <= 0.3 + 1e-5
    )


def test_what_other_libraries_attacks_leave_is_cleared_away(bundled):
    model, x, y = bundled
    given = x.clone()

    def careless(model, x, y):
        x += 0.01
        x.requires_grad_()
        F.cross_entropy(model(x), y).backward()
        y.zero_()
        return x.detach().clamp_(0, 1)

    kept = torch.ones_like(model[0].weight)
    model[0].weight.grad = kept.clone()
    found = whence.attack(model, x, y, careless)
    assert torch.equal(x, given)
    assert not x.requires_grad
    assert found.accuracy == 1
    assert found.distances().max() > 0.009
    assert torch.equal(model[0].weight.grad, kept)
    assert all(p.grad is None for name, p in model.named_parameters() if name != "0.weight")


def test_the_report_says_that_it_is_an_upper_bound(bundled):
    found = whence.attack(*bundled, whence.attacks.PGD(0.1))
    assert "at most" in repr(found)
    assert "PGD(epsilon=0.1)" in repr(found)
    assert "AutoAttack" in repr(found)
    assert found.robust_accuracy == ((found.before == found.labels) & (found.after == found.labels)).double().mean()
    assert found.robust_accuracy < found.accuracy


def test_normalised_inputs_are_attacked_in_units_of_pixels(bundled):
    """The same twins, whether the network normalises or the data are normalised."""
    model, x, y = bundled
    x, y = x[:5].double(), y[:5]
    model = model.double()
    box = whence.attacks.Box(mean=(0.1307,), std=(0.3081,))
    plain = whence.attacks.PGD(0.1, 5)(lambda pixels: model(box.inputs(pixels)), x, y)
    normalised = whence.attacks.PGD(0.1, 5, box=box)(model, box.inputs(x), y)
    torch.testing.assert_close(box.pixels(normalised), plain, rtol=1e-9, atol=1e-9)


def test_parts_change_nothing(bundled, monkeypatch):
    from whence.robustness import attacked_batch

    model, x, y = bundled
    for attack in (whence.attacks.FGSM(0.1), whence.attacks.DeepFool(n_steps=3)):
        whole = attack(model, x[:7], y[:7])
        with monkeypatch.context() as patch:
            patch.setattr(attacked_batch, "automatic_batch_size", lambda inputs: 2)
            torch.testing.assert_close(attack(model, x[:7], y[:7]), whole)


# beside foolbox -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [False, True])
def test_success_rates_are_foolboxes(mnist, robust):
    foolbox = pytest.importorskip("foolbox")
    x, y = mnist
    model = robust_digits() if robust else digits()
    theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    few, linf, two = slice(0, 60), (0.25 if robust else 0.06), (2.5 if robust else 1.0)
    pairs = [
        (whence.attacks.FGSM(linf), foolbox.attacks.FGSM(), linf, slice(None)),
        (whence.attacks.PGD(linf, 20, linf / 8), foolbox.attacks.LinfPGD(steps=20, abs_stepsize=linf / 8), linf, slice(None)),
        (
            whence.attacks.PGD(two, 20, two / 8, "l2", random_start=False),
            foolbox.attacks.L2PGD(steps=20, abs_stepsize=two / 8, random_start=False),
            two,
            slice(None),
        ),
        (
            whence.attacks.MIFGSM(linf, 10),
            foolbox.attacks.MIFGSM(momentum=1.0, n_steps=10, abs_stepsize=linf / 10),
            linf,
            slice(None),
        ),
        (whence.attacks.DeepFool(), foolbox.attacks.L2DeepFoolAttack(), None, few),
        (whence.attacks.DeepFool(norm="linf"), foolbox.attacks.LinfDeepFoolAttack(), None, few),
    ]
    for ours, peer, epsilon, some in pairs:
        torch.manual_seed(0)
        _, twins, _ = peer(theirs, x[some], y[some], epsilons=epsilon)
        model.zero_grad(set_to_none=True)  # foolbox leaves gradients on the weights
        found = whence.attack(model, x[some], y[some], ours)
        assert abs(accuracy(model, twins, y[some]) - accuracy(model, found.inputs, y[some])) <= 0.02 + 1e-9, ours
        if epsilon is None:
            distance = (twins - x[some]).flatten(1).norm(torch.inf if ours.norm == "linf" else 2, dim=1)
            mine = found.distances(torch.inf if ours.norm == "linf" else 2)
            assert mine.median().item() == pytest.approx(distance.median().item(), rel=0.02)
        if isinstance(ours, whence.attacks.FGSM):
            torch.testing.assert_close(found.inputs, twins)


# the bundled networks -----------------------------------------------------------------------------------------------------


def test_adversarial_training_pays(mnist):
    x, y = mnist
    attack = whence.attacks.PGD(0.2, 20)
    standard, robust = (whence.attack(model, x, y, attack) for model in (digits(), robust_digits()))
    assert standard.accuracy > 0.98
    assert robust.accuracy > 0.95
    assert robust.robust_accuracy - standard.robust_accuracy >= 0.6


def test_the_weights_say_how_they_were_measured():
    from importlib import resources

    from safetensors import safe_open

    weights = resources.files("whence.models").joinpath("weights", "digits_robust.safetensors")
    with resources.as_file(weights) as path, safe_open(path, "pt") as file:
        notes = file.metadata()
    assert float(notes["pgd20_at_0.2"]) > 0.8
    assert float(notes["test_accuracy"]) > 0.98
    assert float(notes["pgd20_at_0.2"]) - float(notes["standard_pgd20_at_0.2"]) > 0.6


def test_gradients_of_the_robust_network_look_like_the_digit(bundled):
    """Input gradients differ visibly: the standard network's are noise along the strokes, the robust one's the strokes."""
    _, x, y = bundled
    likeness = {}
    for name, model in (("standard", digits()), ("robust", robust_digits())):
        gradient = whence.explain(model, x, y, method=whence.Sensitivity("signed")).relevance
        likeness[name] = F.cosine_similarity(gradient.flatten(1), x.flatten(1)).mean()
    assert likeness["standard"] < 0.3
    assert likeness["robust"] > likeness["standard"] + 0.2


def test_heatmaps_of_both_networks_differ(bundled):
    from whence.robustness.explanation_attacks import relevance_shift

    _, x, y = bundled
    standard, robust = (whence.explain(model, x, y).relevance for model in (digits(), robust_digits()))
    assert relevance_shift(standard, robust).mean() > 0.25


# explanations under attack ------------------------------------------------------------------------------------------------


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


# exercise I ---------------------------------------------------------------------------------------------------------------


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


# the command line ---------------------------------------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(app, ["attack", *map(str, arguments)])


def test_attack_with_no_argument_takes_a_bundled_digit(tmp_path):
    done = invoke("--epsilon", 0.15, "--sample", 3, "--out", tmp_path / "a.png")
    assert done.exit_code == 0, done.output
    assert "relevance moved" in done.output
    assert (tmp_path / "a.png").stat().st_size > 10_000


@pytest.mark.parametrize("by", ["pgd", "fgsm", "mi-fgsm", "deepfool"])
def test_attack_reports_to_scripts(tmp_path, by):
    done = invoke("--attack", by, "--model", "digits-robust", "--json", "--out", tmp_path / "a.png")
    report = json.loads(done.output)
    assert report["model"] == "digits-robust"
    assert report["success"] == [report["samples"][0]["before"] != report["samples"][0]["after"]]


def test_a_label_that_the_model_never_said_is_told(tmp_path):
    done = invoke("--label", 5, "--sample", 0, "--out", tmp_path / "a.png")
    assert "another class than --label from the start" in done.output


ROWS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Linear(5, 3).eval()
"""


def test_rows_of_a_model_that_states_no_bounds_have_none(tmp_path):
    (tmp_path / "rows.py").write_text(ROWS)
    np.save(tmp_path / "rows.npy", 10 * np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32))
    done = invoke(
        tmp_path / "rows.npy", "--model", f"{tmp_path / 'rows.py'}:net", "--epsilon", 9, "--json", "--out", tmp_path / "a.png"
    )
    assert done.exit_code == 0, done.output
    assert [row["largest_change"] for row in json.loads(done.output)["samples"]] == pytest.approx([9, 9], rel=1e-5)


def test_experiment_on_the_command_line(tmp_path):
    done = invoke("--experiment", "robust-features", "--out", tmp_path / "e.png")
    assert done.exit_code == 0, done.output
    assert "99.87%" in done.output
    assert (tmp_path / "e.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack", "foo"], "no attack 'foo'"),
        (["--epsilon", "-1"], "a finite number that is not negative"),
        (["--attack", "deepfool", "--epsilon", "0.1"], "--epsilon: DeepFool goes to the nearest class"),
        (["--experiment", "robust-features", "--label", "3", "--n-steps", "2"], "leave --label, --n-steps out"),
        (["--model", "nowhere.py:net"], "no file"),
        (["--label", "12"], "label 12 is out of range"),
        (["--sample", "3", "--target", "3"], "is its label"),
        (["--experiment", "foo"], "no experiment 'foo'"),
        (["x.png", "--experiment", "robust-features"], "makes its own data"),
        (["--attack", "fgsm", "--n-steps", "3"], "FGSM takes one"),
        (["--attack", "deepfool", "--target", "3"], "nearest class"),
        (["--out", "a.npz"], "npz"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    done = invoke(*arguments)
    assert isinstance(done.exception, whence.errors.WhenceError)
    assert message in str(done.exception)


# bad input ----------------------------------------------------------------------------------------------------------------


def test_bad_settings_are_refused():
    for make, message in (
        (lambda: whence.attacks.PGD(-0.1), "epsilon=-0.1"),
        (lambda: whence.attacks.FGSM(-1), "epsilon=-1"),
        (lambda: whence.attacks.MIFGSM(-1), "epsilon=-1"),
        (lambda: whence.attacks.PGD(float("nan")), "epsilon=nan"),
        (lambda: whence.attacks.PGD(0.1, 0), "steps=0"),
        (lambda: whence.attacks.MIFGSM(0.1, 0), "steps=0"),
        (lambda: whence.attacks.PGD(0.1, norm="l1"), "norm='l1'"),
        (lambda: whence.attacks.PGD(0.1, random_start=False, restarts=2), "without random_start"),
        (lambda: whence.attacks.DeepFool(candidates=1), "candidates=1"),
        (lambda: whence.attacks.Box(1, 0), "low must be below high"),
        (lambda: whence.attacks.Box(mean=(0.5,), std=(0.0,)), "positive std"),
        (lambda: whence.experiments.RobustFeatures(p=2), "p a probability"),
        (lambda: whence.experiments.RobustFeatures().accuracy("f1"), "no classifier 'f1'"),
        (lambda: whence.attack_explanation(small(), torch.rand(1, 6), epsilon=-1), "epsilon=-1"),
        (lambda: whence.attacks.feature_scores(small(), torch.rand(2, 6), [0, 1], epsilon="a"), "epsilon='a'"),
        (lambda: whence.attacks.PGD(math.inf), "epsilon=inf"),
        (lambda: whence.attacks.PGD(0.1, n_steps=2.0), "steps=2.0"),
        (lambda: whence.experiments.RobustFeatures(d=2.5), "d must be a whole number"),
        (lambda: whence.experiments.RobustFeatures().accuracy("weak", -1), "epsilon=-1"),
    ):
        with pytest.raises(whence.errors.RuleError, match=message):
            make()


def test_bad_inputs_and_labels_are_refused(bundled):
    model, x, y = bundled
    attack = whence.attacks.PGD(0.1, 2)
    for make, error, message in (
        (lambda: attack(model, x * 2, y), whence.errors.InputError, r"values from 0 to 2, outside its bounds.*mean="),
        (lambda: attack(model, x, y[:3]), whence.errors.TargetError, r"label has shape \(3,\); give one class"),
        (lambda: attack(model, x, y.float()), whence.errors.TargetError, "a label must be a class index, not torch.float32"),
        (lambda: attack(model, x, y + 5), whence.errors.TargetError, "label 10 is out of range"),
        (lambda: attack(model, x, y - 5), whence.errors.TargetError, "label -5 is out of range"),
        (
            lambda: whence.attacks.PGD(0.1, target_classes=3)(model, x, y),
            whence.errors.TargetError,
            "target of sample 3 is its label",
        ),
        (
            lambda: whence.attacks.PGD(0.1, target_classes=12)(model, x, y),
            whence.errors.TargetError,
            "target 12 is out of range",
        ),
        (lambda: attack(lambda x: x.flatten(1).sum(1), x, y), whence.errors.ModelError, r"\(50, 1\)"),
        (lambda: attack(lambda x: x.flatten(1)[:, :1], x, y * 0), whence.errors.ModelError, "two classes or more"),
        (lambda: attack(lambda x: torch.ones(len(x), 3), x, y * 0), whence.errors.ModelError, "does not depend"),
        (lambda: attack(model.train(), x, y), whence.errors.TrainingModeError, "eval"),
        (lambda: attack(model.eval(), (x, x), y), whence.errors.InputError, "one floating-point tensor"),
        (lambda: whence.attack(model, x, y, "pgd"), whence.errors.InputError, "callable of model"),
        (
            lambda: whence.attack(model, x, y, whence.attacks.PGD),
            whence.errors.InputError,
            r"such as whence.attacks.PGD\(0.2\), not <class",
        ),
        (lambda: whence.attack(model, x.numpy(), y, attack), whence.errors.InputError, "inputs must be a tensor, not ndarray"),
        (lambda: whence.attack(model, x, y + 20, attack), whence.errors.TargetError, "out of range"),
        (lambda: whence.attack(model, x, y, lambda m, x, y: x * math.nan), whence.errors.InputError, "finite twins"),
        (lambda: whence.attack(model, x, y, lambda m, x, y: x + 2), whence.errors.InputError, "outside its bounds"),
        (lambda: attack(lambda x: model(x) + math.nan, x, y), whence.errors.ModelError, "output is NaN or infinite"),
        (
            lambda: attack(lambda x: model(x) + (x * 0).sqrt().flatten(1).sum(1, True), x, y),
            whence.errors.ModelError,
            "gradient of the loss is NaN",
        ),
        (lambda: attack(lambda x: (model(x),), x, y), whence.errors.TargetError, r"wrap it, as in lambda x: model\(x\)\[0\]"),
        (lambda: whence.attack(model, x, y, lambda m, x, y: x[:1]), whence.errors.InputError, "twins like the inputs"),
        (lambda: whence.attacks.feature_scores(model, x, 1, epsilon=0.1), whence.errors.InputError, "all the same"),
        (
            lambda: whence.attacks.PGD(0.1, box=whence.attacks.Box(mean=(0, 0), std=(1, 1)))(model, x, y),
            whence.errors.InputError,
            "2 channels got an input of shape",
        ),
    ):
        with pytest.raises(error, match=message):
            make()


def test_masked_gradients_are_warned_of():
    """A network so sure of itself that the gradient of its loss underflows: that nothing fools it is no robustness."""
    model = nn.Linear(2, 2, bias=False).eval()
    model.weight.data = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    x = torch.tensor([[1.0, 0.0]])
    for attack in (whence.attacks.PGD(0.6, random_start=False), whence.attacks.FGSM(0.6)):
        with pytest.warns(whence.errors.MaskedGradientWarning, match="zero at 1 of 1 samples"):
            attack(model, x, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert whence.attack(model, x, 0, whence.attacks.DeepFool()).success.all()


@pytest.mark.parametrize(
    "by",
    [
        whence.attacks.FGSM(0.1),
        whence.attacks.PGD(0.1, n_steps=3),
        whence.attacks.MIFGSM(0.1, n_steps=3),
        whence.attacks.DeepFool(n_steps=3),
    ],
)
def test_a_box_given_to_attack_is_that_of_the_attack(by):
    (x, y), box = digit_samples(), whence.attacks.Box(mean=(0.5,), std=(0.25,))
    model = nn.Sequential(Denormalised(), digits()).eval()
    given = whence.attack(model, box.inputs(x[:3]), y[:3], by, box=box)
    own = whence.attack(model, box.inputs(x[:3]), y[:3], replace(by, box=box))
    assert torch.equal(given.inputs, own.inputs)
    assert given.attack.box == box


class Denormalised(nn.Module):
    def forward(self, x):
        return x * 0.25 + 0.5


def test_targets_given_to_attack_are_those_of_the_attack():
    x, y = digit_samples()
    found = whence.attack(digits(), x[:3], y[:3], whence.attacks.PGD(0.3), target_classes=[5, 5, 5])
    assert torch.equal(
        found.inputs, whence.attack(digits(), x[:3], y[:3], whence.attacks.PGD(0.3, target_classes=[5, 5, 5])).inputs
    )


def test_deepfool_has_no_targets():
    x, y = digit_samples()
    with pytest.raises(whence.errors.RuleError, match="DeepFool goes to the nearest class"):
        whence.attack(digits(), x[:3], y[:3], whence.attacks.DeepFool(), target_classes=5)


def test_what_is_no_box():
    x, y = digit_samples()
    for call in (
        lambda: whence.attack(digits(), x[:1], y[:1], whence.attacks.PGD(0.1, box=(0, 1))),
        lambda: whence.attacks.fgsm(digits(), x[:1], y[:1], epsilon=0.1, box=(0, 1)),
    ):
        with pytest.raises(whence.errors.InputError, match=r"box=\(0, 1\) is no box; give whence.attacks.Box\(low, high\)"):
            call()
