"""Functions that are met in the wild: what each does to relevance, and what a model may do beside its output."""

import pytest
import torch
from torch import nn

import whence
from whence import LRP, errors

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


def test_a_model_that_differentiates_at_a_leaf_of_its_own_keeps_its_output(layer, x):
    def descends(x):
        y = x.detach().requires_grad_()
        energy = (layer(y).relu() ** 2).sum() + y.exp().sum()
        return layer(x) - 0.1 * torch.autograd.grad(energy, y)[0]

    e = conserved(descends, x)
    assert torch.allclose(e.relevance, whence.explain(layer, x, total).relevance)


@pytest.mark.parametrize("method", ["gradient_times_input", "sensitivity"])
def test_other_methods_keep_it_too(layer, x, method):
    def descends(x):
        y = x.detach().requires_grad_()
        return layer(x) - torch.autograd.grad(layer(y).square().sum(), y)[0]

    e = whence.explain(descends, x, total, method=method)
    assert torch.equal(e.output, total(descends(x)).detach())


def test_one_that_differentiates_by_its_input_is_refused(layer, x):
    with pytest.raises(errors.ModelError, match="on a tensor that depends on the input; the rules would chang"):
        whence.explain(lambda x: layer(x) - torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0], x, total)


@pytest.mark.parametrize("method", ["lrp", "gradient_times_input"])
def test_a_hook_by_which_a_model_scales_its_gradient_only_looks(layer, x, method):
    seen = []

    def scaled(x):
        y = layer(x)
        y.register_hook(lambda g: seen.append(g) or g * 0.1)
        return y * 1

    e = whence.explain(scaled, x, total, method=method)
    assert torch.allclose(e.relevance, whence.explain(layer, x, total, method=method).relevance)
    assert len(seen) == 1


def test_hooks_within_relevance_rules_are_the_users_own(layer, x):
    x.requires_grad_()
    with whence.relevance_rules(None, {}):
        y = layer(x)
        y.register_hook(lambda g: g * 0.5)
        out = (y * 1).sum()
    (g,) = torch.autograd.grad(out, x)
    with whence.relevance_rules(None, {}):
        whole = layer(x).sum()
    assert torch.allclose(2 * g, torch.autograd.grad(whole, x)[0])


@pytest.mark.parametrize(
    "method", ["integrated_gradients", "gradient_times_input", "occlusion", "feature_ablation", "shapley", whence.SmoothGrad()]
)
@pytest.mark.parametrize("count", [1, 3])
def test_forces_are_explained_by_methods_that_need_no_gradients_of_their_own(method, count):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).eval()

    def force(x):
        x = x if x.requires_grad else x.clone().requires_grad_()
        return -torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]

    x = torch.randn(count, 2)
    method = whence.Occlusion((1,)) if method == "occlusion" else method
    e = whence.explain(force, x, 1, method=method, progress=False)
    assert torch.allclose(e.output, force(x)[:, 1].detach())
    assert e.relevance.isfinite().all()
    assert e.relevance.any()
    assert not e.relevance.requires_grad
