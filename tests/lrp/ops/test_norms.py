"""Functions that are met in the wild: what each does to relevance, and what a model may do beside its output."""

import pytest
import torch
from torch import nn

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


def conserved(f, x, absorbed=None, **method):
    """The value is the model's own, to the last bit, and the account balances; nothing is absorbed where nothing can be."""
    e = whence.explain(f, x, total, method=LRP(**method))
    assert torch.equal(e.output, total(f(x.clone())).detach())
    assert e.conservation.error.max() < 1e-10
    if absorbed is not None:
        assert torch.allclose(e.conservation.absorbed, torch.as_tensor(absorbed).expand(len(x)), atol=1e-12)
    return e


@pytest.mark.parametrize("reduction", ["sum", "mean", "amax", "amin"])
@pytest.mark.parametrize("alone", [True, False])
def test_scatter_reduce(layer, x, reduction, alone):
    groups = torch.tensor([[0, 1, 0, 1]] * 3)
    own = torch.ones(3, 2)
    e = conserved(
        lambda x: own.scatter_reduce(1, groups, layer(x), reduction, include_self=not alone), x, absorbed=0.0 if alone else None
    )
    reduce = {"sum": torch.sum, "mean": torch.mean, "amax": torch.amax, "amin": torch.amin}[reduction]
    if alone:
        parts = conserved(lambda x: torch.stack([reduce(layer(x)[:, i::2], 1) for i in (0, 1)], 1), x)
        assert torch.allclose(e.relevance, parts.relevance, rtol=1e-10)


@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "min"])
def test_segment_reduce(layer, x, reduction):
    conserved(
        lambda x: torch.segment_reduce(layer(x).T.contiguous(), reduction, lengths=torch.tensor([1, 3])).T, x, absorbed=0.0
    )


@pytest.mark.filterwarnings("ignore:index_reduce")
def test_a_product_of_groups_is_refused(x):
    for product in (
        lambda x: torch.ones(3, 2).scatter_reduce(1, torch.tensor([[0, 1, 0, 1]] * 3), x, "prod"),
        lambda x: torch.ones(3, 2).index_reduce(1, torch.tensor([0, 1, 0, 1]), x, reduce="prod"),
    ):
        with pytest.raises(errors.UnknownFunctionError, match="reduce"):
            whence.explain(product, x, total)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("rule", [Epsilon(0), Gamma(0.5)], ids=repr)
@pytest.mark.parametrize(
    "product",
    [lambda a, x: torch.sparse.mm(a, x), lambda a, x: a @ x, lambda a, x: a.to_sparse_csr() @ x, lambda a, x: torch.mm(a, x)],
)
def test_a_constant_sparse_adjacency_is_a_weight(layer, x, product, rule):
    adjacency = torch.tensor([[0, 1.0, 0, -0.5], [1, 0, 2, 0], [0, 2, 0, 0], [1, 0, 0, 1]])
    method = {"rules": {(torch.matmul, torch.mm, torch.sparse.mm): rule}}
    sparse = conserved(lambda x: product(adjacency.to_sparse(), layer(x).T).T, x, **method)
    dense = conserved(lambda x: (adjacency @ layer(x).T).T, x, **method)
    assert torch.allclose(sparse.relevance, dense.relevance, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_an_offset_beside_a_sparse_product_absorbs(layer, x):
    offset = torch.randn(4, 3)
    e = conserved(lambda x: torch.sparse.addmm(offset, torch.eye(4).to_sparse(), layer(x).T).T, x)
    assert torch.allclose(e.conservation.absorbed, offset.sum(0))
