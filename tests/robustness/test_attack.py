"""Attacks by their papers and beside foolbox; robust features in closed form; explanations under attack."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import whence
from whence.models.digits import digit_samples, digits, robust_digits


@pytest.fixture(scope="module")
def mnist(request):
    """Two hundred test digits."""
    folder = request.getfixturevalue("data")
    test = np.load(folder / "mnist_test.npz")
    return torch.as_tensor(test["images"][:200, None] / 255.0).float(), torch.as_tensor(test["labels"][:200]).long()


@pytest.fixture
def bundled():
    return digits(), *digit_samples()


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
