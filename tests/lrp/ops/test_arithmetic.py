"""What the function mode sees, refuses and keeps right: the situations other libraries get wrong in silence."""

import pytest
import torch
from torch.nn import functional as F

import whence

pytestmark = pytest.mark.usefixtures("float64")


def first(y):
    return y[:, 0]


def sums(e):
    return e.relevance.flatten(1).sum(1)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x * x.roll(1, 1), lambda x: x**3, lambda x: x.square(), lambda x: x / (1 + x.abs()), lambda x: F.normalize(x),
        lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5), lambda x: F.rms_norm(x, (3,)),
        lambda x: torch.einsum("ni,nj->nij", x, x).sum(2), lambda x: torch.maximum(x, x.roll(1, 1)), lambda x: x.amax(1, True),
        lambda x: x.sort(1).values, lambda x: torch.stack(x.unbind(1), 1), lambda x: x.clamp(-1, 1), lambda x: F.hardtanh(x),
        lambda x: torch.where(x > 0, x, 2 * x), lambda x: x - x.mean(1, keepdim=True), lambda x: F.layer_norm(x, (3,)),
        lambda x: x.norm(dim=1, keepdim=True), lambda x: sum(t for t in x.split(1, 1)), lambda x: F.softsign(x),
    ],
)  # fmt: skip
def test_functions_that_conserve(model):
    e = whence.explain(model, torch.randn(3, 3), first)
    assert torch.allclose(sums(e), e.output, rtol=1e-9)
    assert torch.allclose(e.conservation.error, torch.zeros(3), atol=1e-9)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x + 1, lambda x: 2 - x, lambda x: torch.cat([x, torch.ones(3, 2)], 1), lambda x: F.pad(x, (1, 1), value=2.0),
        lambda x: x.masked_fill(x > 0.5, 3.0), lambda x: torch.where(x > 0, x, torch.tensor(0.7)),
        lambda x: torch.clamp(x, min=0.5),
        lambda x: torch.maximum(x, torch.tensor(0.3)), lambda x: F.layer_norm(x, (3,), None, torch.ones(3)),
        lambda x: x.softmax(1),
        lambda x: x.index_fill(1, torch.tensor([0]), 5.0), lambda x: torch.log_softmax(x, 1), lambda x: x.clamp_min(0.2),
    ],
)  # fmt: skip
def test_what_constants_and_softmax_take_is_measured(model):
    e = whence.explain(model, torch.randn(3, 3), first)
    assert torch.allclose(sums(e) + e.conservation.absorbed, e.output, rtol=1e-9)
