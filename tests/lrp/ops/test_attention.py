"""Functions that are met in the wild: what each does to relevance, and what a model may do beside its output."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def x():
    return torch.randn(3, 4)


@pytest.mark.filterwarnings("ignore::whence.errors.ConservationWarning")  # written out, such rows pass on what is 0
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["lrp", "gradient_times_input"])
@pytest.mark.parametrize("of_values", [False, True])
def test_rows_of_attention_that_a_mask_leaves_nothing_of(dtype, method, of_values):
    """There torch's own backward on a CPU is wrong, where the mask is the least finite number."""
    q, k, v = (nn.Linear(8, 8, bias=False, dtype=dtype) for _ in range(3))
    x, mask = torch.randn(2, 5, 8, dtype=dtype), torch.zeros(5, 5, dtype=dtype)
    mask[2], mask[:, 4] = torch.finfo(dtype).min, torch.finfo(dtype).min
    fixed = torch.randn(2, 1, 5, 8, dtype=dtype)

    def operands(x):
        return (fixed, fixed, v(x)[:, None]) if of_values else (q(x)[:, None], k(x)[:, None], v(x)[:, None])

    def fused(x):
        return F.scaled_dot_product_attention(*operands(x), attn_mask=mask)[:, 0]

    def written_out(x):
        a, b, c = operands(x)
        return (((a @ b.mT) * 8**-0.5 + mask).softmax(-1) @ c)[:, 0]

    e, expected = (whence.explain(f, x, lambda y: y[:, 2, 0] + y[:, 1, 1], method=method) for f in (fused, written_out))
    assert torch.allclose(e.output, expected.output, rtol=1e-5)
    assert torch.allclose(e.relevance, expected.relevance, rtol=1e-3, atol=1e-6)
    if method == "lrp":
        assert e.conservation.error.max() < 1e-4
        assert torch.equal(e.output, fused(x)[:, 2, 0] + fused(x)[:, 1, 1])
