"""Attacks by their papers and beside foolbox; robust features in closed form; explanations under attack."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import whence
from whence.models.digits import digit_samples, digits


@pytest.fixture
def bundled():
    return digits(), *digit_samples()


def small(classes=4, features=6, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, classes)).double().eval()


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
        (lambda: whence.experiments.RobustFeatures(p=2), "expected an int d of at least"),
        (lambda: whence.experiments.RobustFeatures().accuracy("f1"), "kind='f1'"),
        (lambda: whence.attack_explanation(small(), torch.rand(1, 6), epsilon=-1), "epsilon=-1"),
        (lambda: whence.attacks.feature_scores(small(), torch.rand(2, 6), [0, 1], epsilon="a"), "epsilon='a'"),
        (lambda: whence.attacks.PGD(math.inf), "epsilon=inf"),
        (lambda: whence.attacks.PGD(0.1, n_steps=2.0), "steps=2.0"),
        (lambda: whence.experiments.RobustFeatures(d=2.5), "an int d of at least 1"),
        (lambda: whence.experiments.RobustFeatures().accuracy("weak", -1), "epsilon=-1"),
    ):
        with pytest.raises(whence.errors.RuleError, match=message):
            make()


def test_bad_inputs_and_labels_are_refused(bundled):
    model, x, y = bundled
    attack = whence.attacks.PGD(0.1, 2)
    for make, error, message in (
        (lambda: attack(model, x * 2, y), whence.errors.InputError, r"values from 0 to 2, outside its bounds.*mean="),
        (lambda: attack(model, x, y[:3]), whence.errors.TargetError, r"label has shape \(3,\); expected one class"),
        (
            lambda: attack(model, x, y.float()),
            whence.errors.TargetError,
            "a label must be an integer class index, got torch.float32",
        ),
        (lambda: attack(model, x, y + 5), whence.errors.TargetError, "label 10 is out of range"),
        (lambda: attack(model, x, y - 5), whence.errors.TargetError, "label -5 is out of range"),
        (
            lambda: whence.attacks.PGD(0.1, target_classes=3)(model, x, y),
            whence.errors.TargetError,
            "is its label; choose another class",
        ),
        (
            lambda: whence.attacks.PGD(0.1, target_classes=12)(model, x, y),
            whence.errors.TargetError,
            "target 12 is out of range",
        ),
        (lambda: attack(lambda x: x.flatten(1).sum(1), x, y), whence.errors.ModelError, r"\(50, 1\)"),
        (lambda: attack(lambda x: x.flatten(1)[:, :1], x, y * 0), whence.errors.ModelError, "at least two classes"),
        (lambda: attack(lambda x: torch.ones(len(x), 3), x, y * 0), whence.errors.ModelError, "does not depend"),
        (lambda: attack(nn.Sequential(model, nn.Dropout()).train(), x, y), whence.errors.TrainingModeError, "eval"),
        (lambda: attack(model.eval(), (x, x), y), whence.errors.InputError, "one floating-point tensor"),
        (lambda: whence.attack(model, x, y, "pgd"), whence.errors.InputError, "callable of model"),
        (
            lambda: whence.attack(model, x, y, whence.attacks.PGD),
            whence.errors.InputError,
            r"such as whence.attacks.PGD\(0.2\), got <class",
        ),
        (lambda: whence.attack(model, x.numpy(), y, attack), whence.errors.InputError, "inputs must be a tensor, got ndarray"),
        (lambda: whence.attack(model, x, y + 20, attack), whence.errors.TargetError, "out of range"),
        (
            lambda: whence.attack(model, x, y, lambda m, x, y: x * math.nan),
            whence.errors.InputError,
            "finite adversarial examples",
        ),
        (lambda: whence.attack(model, x, y, lambda m, x, y: x + 2), whence.errors.InputError, "outside its bounds"),
        (lambda: attack(lambda x: model(x) + math.nan, x, y), whence.errors.ModelError, "output is NaN or infinite"),
        (
            lambda: attack(lambda x: model(x) + (x * 0).sqrt().flatten(1).sum(1, True), x, y),
            whence.errors.ModelError,
            "gradient of the loss is NaN",
        ),
        (lambda: attack(lambda x: (model(x),), x, y), whence.errors.TargetError, r"wrap it, as in lambda x: model\(x\)\[0\]"),
        (
            lambda: whence.attack(model, x, y, lambda m, x, y: x[:1]),
            whence.errors.InputError,
            "adversarial examples like the inputs",
        ),
        (lambda: whence.attacks.feature_scores(model, x, 1, epsilon=0.1), whence.errors.InputError, "all labels are equal"),
        (
            lambda: whence.attacks.PGD(0.1, box=whence.attacks.Box(mean=(0, 0), std=(1, 1)))(model, x, y),
            whence.errors.InputError,
            "the Box has 2 channels, the input has shape",
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
    with pytest.raises(whence.errors.RuleError, match="DeepFool is untargeted; for target"):
        whence.attack(digits(), x[:3], y[:3], whence.attacks.DeepFool(), target_classes=5)


def test_what_is_no_box():
    x, y = digit_samples()
    for call in (
        lambda: whence.attack(digits(), x[:1], y[:1], whence.attacks.PGD(0.1, box=(0, 1))),
        lambda: whence.attacks.fgsm(digits(), x[:1], y[:1], epsilon=0.1, box=(0, 1)),
    ):
        with pytest.raises(
            whence.errors.InputError,
            match=r"box=\(0, 1\): expected a Box; pass "
            r"whence.attacks.Box\(low, high\)",
        ):
            call()
