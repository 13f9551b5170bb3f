"""Methods made of gradients: closed forms, captum's portable truths and captum itself, completeness."""

import pytest
import torch
from torch.nn import functional as F

import whence
from support.comparisons import relevance
from support.small_language_model import Language
from whence import (
    ExpectedGradients,
    GradientTimesInput,
    IntegratedGradients,
    SmoothGrad,
    errors,
)

pytestmark = pytest.mark.usefixtures("float64")


def ids():
    return torch.tensor([[1, 5, 2, 9], [3, 3, 7, 1]])


@pytest.mark.parametrize("start", [None, 0])
def test_integrated_gradients_of_token_ids(start):
    model = Language()
    method = IntegratedGradients(None if start is None else {"input_ids": start}, n_steps=30, batch_size=7)
    e = whence.explain(model, {"input_ids": ids(), "attention_mask": torch.ones(2, 4).long()}, 4, method=method)
    assert e.relevance["input_ids"].shape == (2, 4)
    assert e.conservation.error.max() < 1e-6
    vectors = model.table(ids()).detach()
    begin = torch.zeros_like(vectors) if start is None else model.table.weight[start].detach().expand_as(vectors)

    def on_vectors(v):  # the same from the vectors on
        x = v
        mask = torch.ones(4, 4, dtype=torch.bool).tril()
        return model.head(x + F.scaled_dot_product_attention(model.q(x), model.k(x), model.v(x), mask))[:, -1]

    oracle = whence.explain(on_vectors, vectors, 4, method=IntegratedGradients(begin, n_steps=30))
    torch.testing.assert_close(e.relevance["input_ids"], oracle.relevance.sum(-1))


def test_expected_gradients_and_smoothgrad_of_token_ids():
    model = Language()
    e = whence.explain(model, ids(), 4, method=ExpectedGradients(torch.randint(11, (7, 4)), n_samples=300))
    assert e.conservation.gap.abs().max() < 0.2
    plain = relevance(model, ids(), GradientTimesInput(), 4)
    near = relevance(model, ids(), SmoothGrad(GradientTimesInput(), n_samples=30, stdevs=1e-4), 4)
    torch.testing.assert_close(near, plain, rtol=1e-2, atol=1e-3)
    noisy = [relevance(model, ids(), SmoothGrad(n_samples=6, batch_size=b), 4) for b in (None, 2)]
    torch.testing.assert_close(*noisy)
    assert not torch.allclose(noisy[0], plain)
    with pytest.raises(errors.RuleError, match="cannot be nested"):
        whence.explain(model, ids(), 4, method=SmoothGrad(IntegratedGradients()))
