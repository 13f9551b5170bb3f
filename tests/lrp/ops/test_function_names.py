"""Linear functions of spectra: short-time transforms, real and imaginary parts, magnitudes."""

import pytest
import torch
from torch import nn

import whence

pytestmark = pytest.mark.usefixtures("float64")

WINDOW = torch.hann_window(16, dtype=torch.float64)


def spectrum(x):
    return torch.stft(x, 16, return_complex=True, window=WINDOW)


def back(s):
    return torch.istft(s, 16, window=WINDOW)[:, 8:13]


HEADS = {
    "magnitude": lambda x: spectrum(x).abs().mean(2),
    "real": lambda x: spectrum(x).real.mean(2),
    "imaginary": lambda x: spectrum(x).imag.mean(2),
    "power": lambda x: (spectrum(x).abs() ** 2).mean(2),
    "product with conjugate": lambda x: (spectrum(x) * spectrum(x).conj()).real.mean(2),
    "as real": lambda x: torch.view_as_real(spectrum(x)).pow(2).sum(-1).sqrt().mean(2),
    "log magnitude": lambda x: torch.log1p(spectrum(x).abs()).mean(2),
    "inverse": lambda x: back(0.5 * spectrum(x)),
    "masked": lambda x: back(spectrum(x) * torch.sigmoid(spectrum(x).abs())),
    "fft": lambda x: torch.fft.rfft(x, 16).abs(),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("count", [1, 3])
def test_spectra_within_a_network_conserve_relevance(head, count):
    torch.manual_seed(0)
    x = torch.randn(count, 64)
    width = HEADS[head](x).shape[1]
    layer = nn.Linear(width, 2, bias=False).eval()
    e = whence.explain(lambda x: layer(HEADS[head](x)), x, 0)
    assert e.conservation.error.max() < 1e-9
    assert e.relevance.abs().sum() > 1e-3
    if head in ("magnitude", "real", "imaginary", "inverse", "fft"):  # homogeneous: R = x · gradient, nothing absorbed
        given = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(layer(HEADS[head](given))[:, 0].sum(), given)
        assert torch.allclose(e.relevance, x * g, rtol=1e-5, atol=1e-7)
