"""Bundled and named models, and the command line on them."""

import json
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import whence
from support.command_line import command
from whence.models.digits import digit_samples, digits
from whence.models.registry import available_models, load_model
from whence.models.weight_files import load_weights

WEIGHTS = Path(str(resources.files("whence.models"))) / "weights"


def test_the_bundled_digits():
    images, labels = digit_samples()
    assert images.shape == (50, 1, 28, 28)
    assert labels[:10].tolist() == list(range(10))
    assert (WEIGHTS / "digits.safetensors").stat().st_size <= 500_000
    with torch.no_grad():
        assert (digits()(images).argmax(1) == labels).double().mean() >= 0.98


def test_the_stated_accuracy_is_the_measured_one(data):
    test = np.load(data / "mnist_test.npz")
    images = torch.from_numpy(test["images"])[:, None].float() / 255
    with torch.no_grad():
        accuracy = (torch.cat([digits()(part).argmax(1) for part in images.split(1000)]).numpy() == test["labels"]).mean()
    with safe_open(WEIGHTS / "digits.safetensors", "pt") as file:
        assert float(file.metadata()["test_accuracy"]) == pytest.approx(accuracy, abs=2e-4)
    assert accuracy >= 0.99


def test_digit_heatmaps_add_up():
    images, labels = digit_samples()
    e = whence.explain(digits(), images, labels)
    assert torch.allclose(e.relevance.flatten(1).sum(1), e.output, rtol=1e-4)
    assert e.conservation.error.max() < 1e-5


def test_the_real_squeezenet_knows_coffee_and_cat(data, tmp_path):
    skimage = pytest.importorskip("skimage")
    loaded = load_model("torchvision:squeezenet1_0", data / "squeezenet1_0_torchvision.npz")
    assert loaded.trained
    for name, expected in (("coffee", "espresso"), ("chelsea", "Egyptian cat")):
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / "photo.png")
        x = loaded.preprocessing.read(tmp_path / "photo.png")
        rules = whence.presets.epsilon_gamma_box(*loaded.preprocessing.bounds)
        e = whence.explain(loaded.model, x, method=whence.LRP(rules))
        assert loaded.class_names[int(e.target[0])] == expected
        assert e.conservation.error.max() < 1e-3


def test_models_by_name():
    known = available_models()
    assert "resnet50" in known["torchvision"]
    assert known["timm"]
    loaded = load_model("timm:resnet10t")
    e = whence.explain(loaded.model, torch.randn(1, 3, 64, 64))
    assert e.conservation.error.max() < 1e-3
    assert not load_model("torchvision:googlenet").model.training


def test_preprocessing_resizes_crops_and_normalises(tmp_path):
    Image.new("RGB", (300, 200), (255, 0, 0)).save(tmp_path / "red.png")
    preprocessing = load_model("torchvision:squeezenet1_0").preprocessing
    x = preprocessing.read(tmp_path / "red.png")
    low, high = preprocessing.bounds
    assert x.shape == (1, 3, 224, 224)
    assert torch.allclose(x[0, :, 0, 0], torch.stack([high[0], low[1], low[2]]).flatten())


def test_explain_without_arguments(tmp_path):
    done = command("explain", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["target"] == [{"index": 0, "name": "0"}]
    assert report["error"][0] < 1e-5
    assert report["relevance"][0] == pytest.approx(report["output"][0], rel=1e-4)
    assert (tmp_path / "heat.png").is_file()


def test_explain_prints_what_a_person_reads(tmp_path):
    done = command("explain", "--method", "sensitivity", "--out", "s.html", cwd=tmp_path)
    assert "target" in done.stdout
    assert "absorbed" not in done.stdout
    assert "s.html" in done.stdout
    assert "output = relevance" not in done.stdout


def test_explain_a_picture_and_a_table_by_ones_own_model(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def image(): return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3))\n"
        "def table(): return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))\n"
    )
    Image.new("RGB", (40, 30), (200, 30, 90)).save(tmp_path / "photo.jpg")
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32))
    torch.save(
        torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).state_dict(), tmp_path / "w.pt"
    )
    for args in (
        ("photo.jpg", "--model", "mine.py:image"),
        ("rows.npy", "--model", "mine.py:table", "--weights", "w.pt", "--target", "1"),
    ):
        done = command("explain", *args, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert max(json.loads(done.stdout)["error"]) < 1e-3


def test_models_are_listed(tmp_path):
    done = command("models", cwd=tmp_path)
    assert done.returncode == 0
    assert "digits" in done.stdout
    assert "FILE.py:FACTORY" in done.stdout


NETS = """
from __future__ import annotations

from dataclasses import dataclass

import torch
from blocks.act import Act
from layers import block


@dataclass
class Sizes:
    classes: int = 4


def make():
    return torch.nn.Sequential(block(3, 8), Act(), torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 8, Sizes().classes))
"""


def test_a_file_imports_its_neighbours_and_leaves_nothing(tmp_path):
    sys.modules["layers"] = others = ModuleType("layers")  # of somebody else
    before, path = set(sys.modules), list(sys.path)
    for folder, activation in (("one", "ReLU"), ("other", "Tanh")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(NETS)
        (tmp_path / folder / "layers.py").write_text(
            "import torch\n\ndef block(i, o):\n"
            f"    return torch.nn.Sequential(torch.nn.Conv2d(i, o, 3, padding=1), torch.nn.{activation}())\n"
        )
        (tmp_path / folder / "blocks").mkdir()
        (tmp_path / folder / "blocks" / "act.py").write_text(f"from torch.nn import {activation} as Act\n")
        loaded = whence.load_model(f"{tmp_path / folder / 'nets.py'}:make", size=8)
        assert type(loaded.model[0][1]).__name__ == activation
        assert type(loaded.model[1]).__name__ == activation
        assert loaded.preprocessing.size == (8, 8)
        assert not loaded.model.training
    assert sys.path == path
    assert not {"nets", "blocks", "blocks.act"} & (set(sys.modules) - before)
    assert sys.modules.pop("layers") is others


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "", "_orig_mod.module.", "model._orig_mod."])
@pytest.mark.parametrize("holder", [None, "state_dict", "model_state_dict", "model"])
def test_weights_as_training_scripts_leave_them(tmp_path, prefix, holder):
    trained, fresh = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    state = {f"{prefix}{name}": t for name, t in trained.state_dict().items()}
    torch.save(state if holder is None else {"epoch": 3, holder: state}, tmp_path / "weights.pt")
    load_weights(fresh, tmp_path / "weights.pt")
    assert torch.equal(fresh.weight, trained.weight)


def test_what_is_said_of_names_of_models(tmp_path):
    (tmp_path / "nets.py").write_text("def make():\n    return 3\n")
    for name, message in (
        ("nets.py", "name the function"),
        ("nets.py:mak", "did you mean 'make'"),
        ("nets.py:make", "make returned int, expected a model"),
    ):
        with pytest.raises(whence.errors.LoadError, match=message):
            whence.load_model(str(tmp_path / name))
    with pytest.raises(whence.errors.LoadError, match="digits cannot run on nowhere"):
        whence.load_model("digits", device="nowhere")
    with pytest.raises(whence.errors.LoadError, match="digits has a fixed input size"):
        whence.load_model("digits", size=64)


def test_a_picture_is_cropped_or_squeezed(tmp_path):
    picture = Image.effect_noise((40, 20), 80).convert("RGB")
    picture.save(tmp_path / "photo.png")
    cropped = whence.Preprocessing((10, 10)).read(tmp_path / "photo.png")
    squeezed = whence.Preprocessing((10, 10), crop=False, mean=(0.5,) * 3, std=(0.25,) * 3)

    def pixels(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255

    whole = pixels(picture.resize((10, 10), Image.Resampling.BILINEAR))
    assert torch.allclose(cropped, pixels(picture.resize((20, 10), Image.Resampling.BILINEAR).crop((5, 0, 15, 10))))
    assert torch.allclose(squeezed.read(tmp_path / "photo.png"), (whole - 0.5) / 0.25)
    assert torch.allclose(squeezed.box.pixels(squeezed.read(tmp_path / "photo.png")), whole, atol=1e-6)
