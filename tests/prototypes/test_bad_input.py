"""Prototypes: exercise A and further closed forms, priors, objectives, images, batches that equal single runs, bad input."""

import math

import pytest
import torch
from torch import nn

from support.comparisons import close
from whence import errors, prototype
from whence.images import MACO, Fourier, Pixels
from whence.objectives import Direction, Inversion, Neuron
from whence.priors import L2, VAE, CodeSpace, GaussianExpert, GaussianRBM

pytestmark = pytest.mark.usefixtures("float64")


def deep():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 14 * 14, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("target", "settings", "error", "message"),
    [
        ("7:0", {}, errors.SelectorError, "no layer '7'"),
        ("3:8", {}, errors.TargetError, "channels 0 to 7"),
        (9, {}, errors.TargetError, "classes 0 to 3"),
        (Neuron("3", 0, (99, 0)), {}, errors.TargetError, "is out of range"),
        (Direction("3", torch.zeros(5)), {}, errors.TargetError, "does not fit layer"),
        (0, {"n_steps": 0}, errors.RuleError, "at least 1"),
        (0, {"prior": GaussianExpert(torch.zeros(4), torch.eye(4))}, errors.InputError, "the prior expects inputs of shape"),
        (0, {"prior": L2(1.0, torch.zeros(5))}, errors.InputError, "center of shape"),
        (0, {"shape": None}, errors.InputError, "pass shape="),
        (0, {"shape": (3, -1, 2)}, errors.InputError, "positive sizes"),
        (0, {"image": Fourier(), "shape": (5,)}, errors.InputError, "expected an image shape"),
        (0, {"transforms": "jitter"}, errors.RuleError, "a callable of images and generators, or None, got"),
        (0, {"start": torch.zeros(1, 3, 3, 3)}, errors.InputError, "start of shape"),
        (0, {"start": torch.zeros(3, 3, 34, 34)}, errors.InputError, "3 inputs for 1 targets"),
        (0, {"image": MACO(), "start": torch.zeros(1, 3, 34, 34)}, errors.RuleError, "cannot start from an input"),
        (0, {"image": MACO(spectrum=torch.ones(3, 4, 4))}, errors.InputError, "spectrum has shape"),
        (0, {"image": Pixels(), "prior": CodeSpace(lambda z: z, size=3)}, errors.RuleError, "leave image out"),
        ("*:0", {}, errors.SelectorError, "matches several layers; name one of them"),
        (0, {"image": "fourier"}, errors.RuleError, "expected an image parameterization such as whence"),
        (0, {"prior": L2}, errors.RuleError, "expected a prior such as whence"),
        (0, {"strength": -1.0}, errors.RuleError, "strength must not be negative and lr must be positive, got s"),
        (0, {"lr": 0.0}, errors.RuleError, "strength must not be negative and lr must be positive, got s"),
        (0, {"seed": 1.5}, errors.RuleError, "seed must be a non-negative int, got"),
        (0, {"shape": 5}, errors.InputError, "positive sizes"),
        (0, {"start": torch.zeros(1, 3, 34, 34).int()}, errors.InputError, "floating-point"),
        (0, {"transforms": lambda x, randoms: None}, errors.InputError, "the transforms returned NoneType for images"),
        (
            0,
            {"start": torch.full((1, 3, 34, 34), 9.0), "image": Fourier()},
            errors.InputError,
            "outside the bounds of the image; pass bounds that include th",
        ),
        (Direction("3", torch.zeros(8), position=(99, 0)), {}, errors.TargetError, "is out of range"),
        ({"a": 1}, {}, errors.TargetError, "as a dict"),
        (
            0,
            {"prior": CodeSpace(lambda z: z @ torch.ones(2, 4).to(z), size=2)},
            errors.InputError,
            "the decoder returned inputs of shape",
        ),
        (
            0,
            {"prior": CodeSpace(lambda z: z @ torch.ones(3, 4).to(z), size=2)},
            errors.InputError,
            "the decoder failed on codes of shape",
        ),
        (Inversion("3", torch.ones(1, 3, 20, 20, dtype=torch.float64)), {}, errors.RuleError, "on the photo; pass shape"),
    ],
)
def test_what_cannot_be_is_refused(target, settings, error, message):
    with pytest.raises(error, match=message):
        prototype(deep(), target, **{"shape": (3, 34, 34), "n_steps": 2} | settings)


def test_models_and_priors_are_checked():
    model = deep()
    with pytest.raises(errors.TrainingModeError):
        prototype(nn.Sequential(model, nn.Dropout()).train(), 0, shape=(3, 34, 34))
    with pytest.raises(errors.RuleError, match="must not be negative"):
        L2(-1.0)
    with pytest.raises(errors.InputError, match="not positive definite"):
        GaussianExpert(torch.zeros(2), torch.zeros(2, 2))
    with pytest.raises(errors.InputError, match="covariance has shape"):
        GaussianExpert(torch.zeros(2), torch.eye(3))
    with pytest.raises(errors.InputError, match="cannot infer the code size"):
        prototype(nn.Linear(3, 1).eval(), 0, prior=CodeSpace(lambda z: z), shape=(3,))
    with pytest.raises(errors.InputError, match="must lie in"):
        VAE((4,), 2, 3).fit(torch.full((5, 4), 2.0))
    with pytest.raises(errors.InputError, match="samples of"):
        GaussianRBM((4,)).fit(torch.zeros(3, 5))

    class Wrong:
        def log_prob(self, x):
            return x

    with pytest.raises(errors.InputError, match="log_prob returned"):
        prototype(nn.Linear(3, 1).eval(), 0, prior=Wrong(), n_steps=2)


def test_one_objective_that_explodes_stops_alone():
    calls = []

    def fading(y):
        calls.append(1)
        return y[:, 0] * (math.nan if len(calls) > 5 else 1.0)

    model = nn.Linear(3, 2).eval()
    with pytest.warns(UserWarning, match="fading is NaN or infinite after 5 steps"):
        p = prototype(model, [1, fading], prior=L2(0.1), n_steps=20)
    close(p.images[0], prototype(model, 1, prior=L2(0.1), n_steps=20).images[0])
    assert torch.isfinite(p.images).all()
    with pytest.raises(errors.ModelError, match="at the start"):
        prototype(model, lambda y: y[:, 0] / 0, n_steps=3)


def test_a_dead_unit_is_named_beside_a_prior_as_well():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, -1
    with pytest.warns(UserWarning, match="the gradient of 1:0 has been zero"):
        prototype(model, "1:0", shape=(1, 6, 6), prior=L2(0.1), n_steps=40)


def test_an_objective_that_explodes_gives_the_last_good_input():
    steps = []

    def fading(y):
        steps.append(1)
        return y[:, 0] * (math.nan if len(steps) > 5 else 1.0)

    with pytest.warns(UserWarning, match="NaN or infinite after 5 steps"):
        p = prototype(nn.Linear(3, 1).eval(), fading, n_steps=20)
    assert torch.isfinite(p.images).all()
    assert len(p.history["activation"]) == 5
    assert "NaN" in repr(p)


def test_what_grows_without_end_is_told():
    with pytest.warns(UserWarning, match="may not have converged"):
        prototype(nn.Linear(3, 1).eval(), 0, n_steps=80)
