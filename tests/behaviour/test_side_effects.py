"""Functions that are met in the wild: what each does to relevance, and what a model may do beside its output."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from support.opaque_function import Hidden
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


@pytest.mark.parametrize(
    "beside",
    [
        lambda x: F.mse_loss(x, torch.ones(3, 4)),
        lambda x: F.cross_entropy(x, torch.zeros(3, dtype=torch.long)),
        lambda x: torch.special.erfinv(x.tanh()),
        lambda x: torch.linalg.svd(x),
        lambda x: Hidden.apply(x) + 1,
    ],
)
def test_what_never_reaches_the_output_is_not_refused(layer, x, beside):
    def model(x):
        kept.append(beside(x))
        return layer(x)

    kept = []
    conserved(model, x, absorbed=0.0)


def test_what_does_is_refused_by_names_that_exist(x):
    with pytest.raises(errors.UnknownFunctionError, match=r"torch\.special\.erfinv: whence"):
        whence.explain(lambda x: torch.special.erfinv(x.tanh()), x, total)
    with pytest.raises(errors.UnknownFunctionError, match=r"torch\.nn\.functional\.mse_loss: whence"):
        whence.explain(lambda x: x * F.mse_loss(x, torch.zeros(3, 4)), x, total)
    with pytest.raises(errors.OpaqueError, match="HiddenBackward"):
        whence.explain(lambda x: Hidden.apply(x) + 1, x, total)


def test_every_hint_names_what_can_be_found(x):
    from whence.lrp.ops.function_facts import selector_name

    for function in (F.relu, torch.special.erfinv, torch.linalg.svd, torch.sparse.mm, torch.Tensor.lgamma_, F.grid_sample):
        named = selector_name(function)
        assert named is None or callable(eval(named))
    assert selector_name(torch.autograd.grad) is None or "functional" not in selector_name(torch.autograd.grad)


def test_a_leaf_made_in_the_likeness_of_data_absorbs(layer, x):
    conserved(lambda x: layer(x) + torch.zeros_like(x, requires_grad=True) + 1, x, absorbed=4.0)
    conserved(lambda x: x + (torch.zeros_like(x).requires_grad_() + 1) * 1, x, absorbed=4.0)
