"""Functions that are met in the wild: what each does to relevance, and what a model may do beside its output."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from whence import LRP, Epsilon, Gamma, errors

pytestmark = pytest.mark.usefixtures("float64")


def total(y):
    return y.flatten(1).sum(1)


@pytest.fixture
def layer():
    return nn.Linear(4, 4, bias=False).eval()


@pytest.fixture
def x():
    return torch.randn(3, 4)


@pytest.mark.parametrize(
    ("vmapped", "plain"),
    [
        (lambda f, x: torch.vmap(f)(x), lambda f, x: f(x)),
        (lambda f, x: torch.vmap(f, in_dims=1, out_dims=1)(x.T).T, lambda f, x: f(x)),
        (lambda f, x: torch.vmap(lambda a, b: f(a) + b, in_dims=(0, None))(x, torch.ones(4)), lambda f, x: f(x) + 1),
        (lambda f, x: torch.vmap(lambda a: (f(a), a * 2), out_dims=(0, 0))(x)[0], lambda f, x: f(x)),
        (lambda f, x: torch.vmap(lambda a: (f(a), torch.ones(1)), out_dims=(0, None))(x)[0], lambda f, x: f(x)),
        (lambda f, x: torch.vmap(lambda a: ((f(a), a),), out_dims=(0,))(x)[0][0], lambda f, x: f(x)),
        (lambda f, x: torch.vmap(torch.vmap(lambda a: a.tanh() * 2))(x) + f(x), lambda f, x: x.tanh() * 2 + f(x)),
    ],
)
@pytest.mark.parametrize("rule", [Epsilon(0), Gamma(0.5)], ids=repr)
def test_what_is_vmapped_is_seen_sample_by_sample(layer, x, vmapped, plain, rule):
    f = lambda x: F.relu(layer(x))  # noqa: E731
    rules = LRP({F.linear: rule})
    e = whence.explain(lambda x: vmapped(f, x), x, total, method=rules)
    expected = whence.explain(lambda x: plain(f, x), x, total, method=rules)
    assert torch.allclose(e.output, expected.output)
    assert torch.allclose(e.relevance, expected.relevance, atol=1e-10)
    assert e.conservation.error.max() < 1e-9


def test_vmap_is_left_as_it_was(layer, x):
    from torch._functorch import apis

    before = apis.vmap_impl
    with pytest.raises(errors.TargetError):
        whence.explain(lambda x: torch.vmap(layer)(x), x, 99)
    assert apis.vmap_impl is before
