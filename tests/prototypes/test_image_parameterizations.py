"""Prototypes: exercise A and further closed forms, priors, objectives, images, batches that equal single runs, bad input."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from support.comparisons import close
from whence import prototype
from whence.images import CPPN, MACO, Fourier, Jiggle, Pixels
from whence.prototypes import image_parameterizations

pytestmark = pytest.mark.usefixtures("float64")


@given(st.integers(1, 4), st.integers(2, 31), st.integers(2, 31))
def test_fourier_images_round_trip(channels, height, width):
    x = torch.rand(2, channels, height, width) * 1.6 + 0.2
    image, shape = Fourier(0.0, 2.0), (channels, height, width)
    close(image.render(image.written(x), shape), x, atol=1e-10, rtol=0)
    started = image.render(image.start(shape, [torch.Generator().manual_seed(k) for k in range(2)]), shape)
    assert started.shape == (2, *shape)
    assert 0 < started.min() < started.max() < 2


@given(st.integers(1, 3), st.integers(3, 20), st.integers(3, 20))
def test_maco_keeps_its_magnitudes(channels, height, width):
    shape = (channels, height, width)
    spectrum = MACO.spectrum_of(torch.rand(5, *shape))
    image = MACO(0.0, 1.0, spectrum)
    phases = image.start(shape, [torch.Generator().manual_seed(1)])
    found = torch.fft.rfft2(image.picture(phases, shape), norm="ortho").abs()
    close(found[0], spectrum.expand_as(found[0]), atol=1e-6, rtol=1e-5)


IMAGES = [Pixels(), Pixels(-1.0, 1.0), Fourier(), MACO(), CPPN(depth=3, width=6)]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: type(image).__name__)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_every_image_is_optimised(image, channels):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    p = prototype(model, "2:1", shape=(channels, 12, 14), image=image, n_steps=40, transforms=None)
    assert p.images.shape == (1, channels, 12, 14)
    assert p.history["activation"][-1] > p.history["activation"][0]


def test_colours_are_decorrelated_and_back():
    x = torch.rand(2, 3, 4, 4)
    close(image_parameterizations.to_rgb(image_parameterizations.decorrelate(x)), x)
    assert torch.equal(image_parameterizations.to_rgb(x[:, :2]), x[:, :2])


def test_jiggled_copies_differ_by_picture_and_are_near_it():
    x = torch.rand(1, 1, 24, 24).expand(2, -1, -1, -1)
    still = Jiggle(0, 0, 0)(x, [torch.Generator().manual_seed(k) for k in range(2)])
    close(still, x)
    moved = Jiggle(shift=3, scale=0.1, turn=10, crops=3)(x, [torch.Generator().manual_seed(k) for k in range(2)])
    assert moved.shape == (6, 1, 24, 24)
    assert (moved[:, None] - moved[None]).flatten(2).abs().amax(2).add(torch.eye(6)).min() > 0.1
    shifted = Jiggle(shift=3, scale=0, turn=0)(torch.eye(24)[None, None], [torch.Generator().manual_seed(0)])
    assert shifted.shape == (1, 1, 24, 24)
