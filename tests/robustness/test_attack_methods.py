"""Attacks by their papers and beside foolbox; robust features in closed form; explanations under attack."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional as F

import whence
from whence.models.digits import digit_samples, digits, robust_digits
from whence.robustness.attacked_batch import predicted

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
    assert whence.attack(model, x[:2], None, whence.attacks.PGD(0.3, 40, target_classes=7)).target_classes.tolist() == [7, 7]


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
    assert "classified as their targets" in repr(found)
    assert whence.explain_attack(net, z, y[:5], wrapped, box=box, target_classes=targets).result.distances().max() <= 0.3 + 1e-5


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


@pytest.mark.slow
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
            foolbox.attacks.MIFGSM(momentum=1.0, steps=10, abs_stepsize=linf / 10),
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
