"""Functions that are met in the wild: what each does to relevance, and what a model may do beside its output."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from whence import LRP

pytestmark = pytest.mark.usefixtures("float64")


def total(y):
    return y.flatten(1).sum(1)


@pytest.fixture
def layer():
    return nn.Linear(4, 4, bias=False).eval()


@pytest.fixture
def x():
    return torch.randn(3, 4)


def conserved(f, x, absorbed=None, **method):
    """The value is the model's own, to the last bit, and the account balances; nothing is absorbed where nothing can be."""
    e = whence.explain(f, x, total, method=LRP(**method))
    assert torch.equal(e.output, total(f(x.clone())).detach())
    assert e.conservation.error.max() < 1e-10
    if absorbed is not None:
        assert torch.allclose(e.conservation.absorbed, torch.as_tensor(absorbed).expand(len(x)), atol=1e-12)
    return e


def test_addcmul(layer, x):
    c, d = torch.randn(4), torch.randn(4)
    e = conserved(lambda x: torch.addcmul(x, layer(x), x.exp() - 1, value=0.5), x)
    parts = conserved(lambda x: x + layer(x) * (x.exp() - 1) * 0.5, x)
    assert torch.allclose(e.relevance, parts.relevance, rtol=1e-10)
    conserved(lambda x: torch.addcmul(c, d, x), x, absorbed=c.sum())
    conserved(lambda x: torch.addcmul(x, c, d, value=2), x, absorbed=2 * (c * d).sum())
    conserved(lambda x: (x * 1).addcmul_(layer(x), x), x)


def test_addcdiv(layer, x):
    c = torch.randn(4)
    e = conserved(lambda x: torch.addcdiv(x, layer(x), x.abs() + 1, value=0.5), x, absorbed=0.0)
    parts = conserved(lambda x: x + 0.5 * layer(x) / (x.abs() + 1), x)
    assert torch.allclose(e.relevance, parts.relevance, rtol=1e-10)
    conserved(lambda x: torch.addcdiv(c, x, c.abs()), x, absorbed=c.sum())


def test_lerp(layer, x):
    c, w = torch.randn(4), torch.rand(4)
    e = conserved(lambda x: torch.lerp(x, layer(x), w), x, absorbed=0.0)
    assert torch.allclose(e.relevance, conserved(lambda x: x + w * (layer(x) - x), x).relevance, rtol=1e-10)
    conserved(lambda x: torch.lerp(c, layer(x), 0.25), x, absorbed=0.75 * c.sum())
    gated = conserved(lambda x: torch.lerp(x, layer(x), x.sigmoid()), x)
    parts = conserved(lambda x: x + x.sigmoid() * (layer(x) - x), x)
    assert torch.allclose(gated.relevance, parts.relevance, rtol=1e-10)


def test_a_difference_from_a_constant(x):
    c = torch.randn(4)
    conserved(lambda x: torch.rsub(x, c, alpha=2), x, absorbed=c.sum())
    conserved(lambda x: torch.rsub(c, x, alpha=2), x, absorbed=-2 * c.sum())
    conserved(lambda x: 1 - x, x, absorbed=4.0)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample_is_linear_in_the_values_and_its_places_are_a_statistic(layer, x, mode):
    theta = torch.tensor([[0.9, 0.2, 0.1], [-0.1, 0.8, 0.2]])

    def transformed(x):
        moved = theta + 0.1 * layer(x).tanh().mean((1,)).view(-1, 1, 1)
        places = F.affine_grid(moved, [len(x), 1, 2, 2], align_corners=False)
        return F.grid_sample(x.view(-1, 1, 2, 2), places, mode, align_corners=False)

    e = conserved(transformed, x, absorbed=0.0)
    places = F.affine_grid(theta + 0.1 * layer(x).tanh().mean(1).view(-1, 1, 1), [3, 1, 2, 2], align_corners=False).detach()
    held = conserved(lambda x: F.grid_sample(x.view(-1, 1, 2, 2), places, mode, align_corners=False), x)
    assert torch.allclose(e.relevance, held.relevance, rtol=1e-10)


def test_cosine_similarity_and_distance(layer, x):
    prototypes = torch.randn(5, 4)
    e = conserved(lambda x: F.cosine_similarity(layer(x)[:, None], prototypes, dim=-1), x, absorbed=0.0)
    parts = conserved(lambda x: F.normalize(layer(x)) @ F.normalize(prototypes).T, x)
    assert torch.allclose(e.relevance, parts.relevance, rtol=1e-10)
    conserved(lambda x: F.cosine_similarity(x, layer(x))[:, None], x, absorbed=0.0)
    conserved(lambda x: F.pairwise_distance(x, layer(x))[:, None], x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: torch.log(y.abs() + 1),
        lambda x, y: torch.log2(y.abs() + 1),
        lambda x, y: torch.log10(y.abs() + 1),
        torch.atan2,
        lambda x, y: torch.cdist(x[:, None], y[:, None]),
    ],
)
def test_own_gradients(layer, x, function):
    conserved(lambda x: function(x, layer(x)), x)


def test_log_sigmoid_is_a_gate(layer, x):
    e = conserved(lambda x: x * F.logsigmoid(layer(x)), x, absorbed=0.0)
    assert torch.allclose(e.relevance, x * F.logsigmoid(layer(x)))
