"""Prototypes: exercise A and further closed forms, priors, objectives, images, batches that equal single runs, bad input."""

import json

import pytest
import torch
from torch.nn import functional as F

import whence
from support.command_line import command
from whence import prototype
from whence.images import Fourier
from whence.priors import L2, CodeSpace

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.slow
def test_the_command_draws_ten_digits(tmp_path):
    done = command("prototype", "--n-steps", "3", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["prior"] for row in report["prototypes"][::10]] == ["l2", "expert", "decoder"]
    assert (tmp_path / "prototypes.png").stat().st_size > 5000
    grid = command("prototype", "--layer", "5", "--channels", "0-3", "--n-steps", "3", "--out", "c.png", cwd=tmp_path)
    assert grid.returncode == 0, grid.stderr
    assert "5:3" in grid.stdout
    import numpy as np

    np.save(tmp_path / "data.npy", np.random.default_rng(0).random((20, 1, 28, 28), dtype=np.float32))
    options = ("--layer", "5", "--channels", "0, 2", "--beside", "data.npy", "--n-steps", "3", "--out", "beside.npz")
    beside = command("prototype", *options, cwd=tmp_path)
    assert beside.returncode == 0, beside.stderr
    assert np.load(tmp_path / "beside.npz")["samples"].shape == (2, 9, 1, 28, 28)
    layers = command("models", "--layers", "digits", cwd=tmp_path)
    assert "64 × 7 × 7" in layers.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layer", "55"), "no layer '55'"),
        (("--layer", "5", "--channels", "99"), "channels 0 to 63"),
        (("--prior", "vae"), "unknown prior 'vae'"),
        (("--image", "gan"), "unknown image parameterization 'gan'"),
        (("--target", "ten"), "no class 'ten'"),
        (("--target", "3", "--layer", "5"), "mutually exclusive"),
        (("--n-steps", "0"), "at least 1"),
        (("--out", "p.html"), "cannot save"),
        (("--target", "3", "--channels", "0-3"), "--channels needs --layer"),
        (("--prior", "none", "--strength", "2"), "--strength is the strength of a prior"),
    ],
)
def test_the_command_refuses_in_one_line(options, message, tmp_path):
    done = command("prototype", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_real_channels_show_more_than_noise(data):
    """SqueezeNet: prototypes of channels excite them far more than any photo-like noise, at a middle and a late layer."""
    torchvision = pytest.importorskip("torchvision")
    from whence.models.registry import load_model

    torch.set_default_dtype(torch.float32)
    loaded = load_model("torchvision:squeezenet1_0", data / "squeezenet1_0_torchvision.npz")
    assert torchvision
    low, high = loaded.preprocessing.bounds
    p = prototype(loaded.model, ["features.7:0-1", "features.12:0-1"], shape=(3, 96, 96), image=Fourier(low, high), n_steps=60)
    noise = low + (high - low) * torch.rand(40, 3, 96, 96)
    top = whence.top_samples(loaded.model, ["features.7:0-1", "features.12:0-1"], noise, n_samples=1)
    assert (p.activation > 2 * top.values[:, 0]).all()


@pytest.mark.slow
def test_bundled_priors_beat_l2_in_the_eyes_of_a_nearest_neighbour():
    from whence.models.digits import digit_decoder, digit_expert, digit_samples, digits

    torch.set_default_dtype(torch.float32)
    samples, labels = digit_samples()

    def likeness(p):
        flat = [F.normalize(t.flatten(1) - t.flatten(1).mean(1, keepdim=True), dim=1) for t in (p.images, samples)]
        return torch.stack([(flat[0][c] @ flat[1][labels == c].T).max() for c in range(10)]).mean()

    ridge = prototype(digits(), range(10), prior=L2(0.3), shape=(1, 28, 28), n_steps=150)
    expert = prototype(digits(), range(10), prior=digit_expert(), strength=0.3, n_steps=150)
    decoder = prototype(digits(), range(10), prior=CodeSpace(digit_decoder(), 0.1), n_steps=150)
    assert likeness(ridge) < 0.4 < likeness(expert)
    assert likeness(decoder) > 0.6
    assert digits()(decoder.images).argmax(1).tolist() == list(range(10))
