"""Methods made of gradients: closed forms, captum's portable truths and captum itself, completeness."""

import pytest
import torch
from torch import nn

import whence
from support.comparisons import close, cnn, relevance
from whence import (
    Sensitivity,
    SmoothGrad,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_smoothgrad_and_its_variants_by_hand():
    model, x = cnn(act=nn.Tanh), torch.randn(2, 3, 12, 12)
    method = Sensitivity("signed")
    draws = []

    def noisy(x):
        draws.append(x.detach())
        return model(x)

    smooth = whence.explain(noisy, x, 1, method=SmoothGrad(method, n_samples=5, stdevs=0.3, batch_size=2))
    copies = torch.cat(draws[1:])
    assert copies.shape[0] == 10
    noise = copies.view(5, 2, 3, 12, 12) - x
    torch.testing.assert_close(noise[:, 0], noise[:, 1])  # the same for every sample
    assert 0.28 < noise[:, 0].std() < 0.32
    each = torch.stack([relevance(model, x + n, method, 1) for n in noise])
    torch.testing.assert_close(smooth.relevance, each.mean(0))
    for kind, expected in (("smoothgrad_sq", each.square().mean(0)), ("vargrad", each.var(0))):
        torch.testing.assert_close(relevance(model, x, SmoothGrad(method, 5, 0.3, kind), 1), expected)


def test_the_noise_is_a_share_of_each_samples_range():
    x = torch.stack([torch.linspace(0, 1, 50), torch.linspace(0, 10, 50)])
    seen = []
    whence.explain(lambda x: (seen.append(x), x)[1], x, 0, method=SmoothGrad(n_samples=200))
    noisy = torch.cat(seen[4:]).detach()  # after the output and the check that rows are independent
    spread = (noisy.view(200, 2, 50) - x).std((0, 2))
    close(spread, [0.15, 1.5], rtol=0.05, atol=0)


def test_smoothgrad_explains_the_target_of_the_input_itself():
    x = torch.tensor([[0.1, 0.0]])
    e = whence.explain(lambda x: x, x, None, method=SmoothGrad(n_samples=50, stdevs=5.0))
    assert e.target.tolist() == [0]
    close(e.relevance, [[1.0, 0.0]])
