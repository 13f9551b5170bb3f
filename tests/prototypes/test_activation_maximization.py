"""Searches arrive: the closed forms of the course by default settings, and prototypes that others recognise."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from whence.models.digits import digit_expert, digits
from whence.prototypes.lbfgs import ascend


@pytest.fixture
def linear():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()


def off(images, expected):
    expected = expected.view(images.shape)
    return float(((images - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max())


@pytest.mark.parametrize("strength", [0.01, 0.02, 0.1, 1.0])
def test_l2_by_default(linear, strength):
    p = whence.prototype(linear, range(4), prior=whence.priors.L2(strength), shape=(1, 8, 8))
    assert off(p.images, linear[1].weight.detach() / (2 * strength)) < 1e-5
    assert not p.note


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_a_gaussian_expert_by_default(linear, condition):
    axes = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0]
    spread = torch.logspace(0, -float(torch.tensor(condition).log10()), 64, dtype=torch.float64)
    covariance = ((axes * spread) @ axes.T).float()
    covariance, mean = (covariance + covariance.T) / 2, torch.randn(1, 8, 8)
    p = whence.prototype(linear, range(4), prior=whence.priors.GaussianExpert(mean, covariance))
    assert off(p.images, mean.flatten() + linear[1].weight.detach() @ covariance) < 1e-5


@pytest.mark.parametrize("strength", [0.01, 0.5])
def test_a_linear_decoder_by_default(linear, strength):
    decoder = nn.Sequential(nn.Linear(10, 64), nn.Unflatten(1, (1, 8, 8))).eval()
    p = whence.prototype(linear, range(4), prior=whence.priors.CodeSpace(decoder, strength))
    a, w = decoder[0].weight.detach(), linear[1].weight.detach()
    assert off(p.codes, w @ a / (2 * strength)) < 1e-5
    assert off(p.images, w @ a @ a.T / (2 * strength) + decoder[0].bias.detach()) < 1e-5


def test_several_at_once_arrive_where_one_alone_does(linear):
    net = nn.Sequential(linear, nn.Softplus(), nn.Linear(4, 3)).eval()
    settings = {"prior": whence.priors.L2(0.05), "shape": (1, 8, 8), "n_steps": 64, "progress": False}
    together = whence.prototype(net, [0, 1, 2], **settings)
    for k in range(3):
        alone = whence.prototype(net, k, **settings)
        torch.testing.assert_close(alone.images[0], together.images[k], rtol=1e-4, atol=1e-5)


def test_what_still_rises_is_said(linear):
    class Narrow:
        """A density of which it is not said how a gradient moves its maximum."""

        def __init__(self):
            self.widths = torch.logspace(-3, 5, 64)

        def log_prob(self, x):
            return -(x.flatten(1).square() * self.widths).sum(1)

    with pytest.warns(UserWarning, match="0 had not converged after 64 steps; increase n_steps"):
        p = whence.prototype(linear, 0, prior=Narrow(), shape=(1, 8, 8), n_steps=64, lr=1e-3)
    assert "had not converged" in p.note


def quadratic(n, condition, dtype):
    axes = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
    precision = (axes * torch.logspace(0, float(torch.tensor(condition).log10()), n, dtype=torch.float64)) @ axes.T
    precision, top = precision.to(dtype), torch.randn(3, n, dtype=dtype)

    def evaluate(x):
        slope = (top - x) @ precision
        return -0.5 * ((top - x) * slope).sum(1) + 1, slope

    return evaluate, top, torch.linalg.inv(precision.double()).to(dtype)


def test_newtons_step_ends_a_quadratic():
    evaluate, top, covariance = quadratic(20, 1e3, torch.float64)
    x, rising = ascend(evaluate, torch.zeros(3, 20, dtype=torch.float64), 3, lambda g: g @ covariance)
    assert torch.allclose(x, top, atol=1e-8)
    assert not rising.any()


def test_curvature_is_learnt():
    evaluate, top, _ = quadratic(20, 1e2, torch.float64)
    x, _ = ascend(evaluate, torch.zeros(3, 20, dtype=torch.float64), 200)
    assert torch.allclose(x, top, atol=1e-4)
    few, still = ascend(evaluate, torch.zeros(3, 20, dtype=torch.float64), 3)
    assert still.all()
    assert not torch.allclose(few, top, atol=1e-2)


def test_each_is_as_if_alone():
    evaluate, top, _ = quadratic(20, 1e2, torch.float64)

    def one(k):
        def at(x):
            f, g = evaluate(x.expand(3, -1))
            return f[k : k + 1], g[k : k + 1]

        return at

    together, _ = ascend(evaluate, torch.zeros(3, 20, dtype=torch.float64), 15)
    for k in range(3):
        alone, _ = ascend(one(k), torch.zeros(1, 20, dtype=torch.float64), 15)
        assert torch.allclose(alone[0], together[k], rtol=1e-9)
    assert len(top) == 3


def test_nowhere_finite_to_go_is_where_it_stays():
    x = torch.ones(2, 3)
    found, rising = ascend(lambda x: (torch.where(x.sum(1) == 3, 0.0, torch.nan), torch.ones_like(x)), x, 5)
    assert torch.equal(found, x)
    assert not rising.any()


@pytest.mark.slow
def test_ten_digits_by_the_expert_are_read_right_by_their_nearest_real_digits(data):
    import numpy as np

    test = np.load(data / "mnist_test.npz")
    real, labels = torch.tensor(test["images"]).float().flatten(1) / 255, torch.tensor(test["labels"].astype(np.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = whence.prototype(digits(), range(10), prior=digit_expert(), strength=0.3, progress=False)
    centred = [F.normalize(t - t.mean(1, keepdim=True), dim=1) for t in (p.images.flatten(1), real)]
    assert labels[(centred[0] @ centred[1].T).argmax(1)].tolist() == list(range(10))


def test_an_expert_draws_digits():
    drawn = digit_expert().draws(20, torch.Generator().manual_seed(0))
    assert drawn.shape == (20, 1, 28, 28)
    assert digits()(drawn).softmax(1).amax(1).median() > 0.7
    again = digit_expert().draws(20, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


def test_draws_of_a_gaussian_have_its_moments():
    a = torch.randn(6, 6)
    expert = whence.priors.GaussianExpert(torch.randn(2, 3), a @ a.T + torch.eye(6))
    drawn = expert.draws(20000, torch.Generator().manual_seed(0)).flatten(1)
    assert torch.allclose(drawn.mean(0), expert.mean.flatten(), atol=0.1)
    assert torch.allclose(torch.cov(drawn.T), expert.covariance, atol=0.4)
