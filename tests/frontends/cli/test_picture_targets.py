"""`whence explain` of a detected box, all boxes, and a region of a segmentation."""

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import whence
from whence import errors
from whence.frontends.cli import app

MODELS = """
import torch
from torch import nn

import whence
from whence import errors


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 7, 8, 8)

    def forward(self, x):
        found = self.body(x).flatten(2)
        return torch.cat([12 + found[:, :2], 8 + found[:, 2:4], found[:, 4:].sigmoid()], 1)


def loaded(model):
    return whence.LoadedModel(type(model).__name__, model.eval(), whence.Preprocessing(None), ["cat", "dog", "cow"])


def detector():
    return loaded(Detector())


def segmenter():
    torch.manual_seed(1)
    return loaded(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    pixels = torch.randint(0, 256, (24, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "photo.png")
    return tmp_path


def command(*options, model="detector"):
    return CliRunner().invoke(app, ["explain", "photo.png", "--model", f"models.py:{model}", *options])


def run(*options, model="detector"):
    found = command("--json", *options, model=model)
    assert found.exit_code == 0, repr(found.exception)
    return json.loads(found.stdout)


def same(options, target, model="detector"):
    """Whether the command explains what Python explains."""
    report, loaded = run(*options, model=model), whence.load_model(f"models.py:{model}")
    e = whence.explain(loaded, loaded.preprocessing.read("photo.png"), target)
    assert report["target"][0]["name"] == e.target_names()[0]
    assert report["output"] == pytest.approx(e.output.tolist(), rel=1e-4)


def test_detections(folder):
    same(["--detection", "0", "--score", "0"], whence.Detection())
    same(["--detection", "2", "--score", "0"], whence.Detection(2))
    labels = [row["label"] for row in run("--detection", "all", "--score", "0")["boxes"]]
    label = max(set(labels), key=labels.count)
    same(["--detection", label, "--score", "0"], whence.Detection(0, label))
    same(["--detection", f"{label}:1", "--score", "0"], whence.Detection(1, label))
    assert (folder / "heat.png").is_file()


def test_all_boxes_as_a_table(folder):
    report = run("--detection", "all", "--score", "0.3", "--out", "boxes.csv")
    assert all(row["score"] >= 0.3 for row in report["boxes"])
    assert (folder / "boxes.csv").read_text().startswith("box,label,score,left,top,right,bottom,output,relevance")
    found = command("--detection", "all", "--score", "0")
    assert found.exit_code == 0, repr(found.exception)
    assert "boxes by Detector" in found.output


def test_regions(folder):
    same(["--region", "dog", "--box", "4,4,20,16"], whence.Region("dog", box=(4, 4, 20, 16)), "segmenter")
    same(["--point", "10,8"], whence.Region(point=(10, 8)), "segmenter")
    same(["--region", "predicted"], whence.Region(), "segmenter")
    same(["--region", "1", "--box", "0,0,32,24"], whence.Region(1, box=(0, 0, 32, 24)), "segmenter")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detection", "0", "--region", "cat"], "cannot be combined with --region"),
        (["--detection", "0", "--target", "cat"], "name the class in --detection or --region"),
        (["--region", "0", "--box", "1,2,3"], "--box 1,2,3: expected 4 numbers of pixels, separated by commas"),
        (["--point", "a,b"], "--point a,b: expected 2 numbers"),
        (["--detection", "horse"], "has no class 'horse'"),
        (["--detection", "0", "--score", "1"], "no box 0; lower score="),
        (["--detection", "all", "--score", "1"], "finds no box with a score of at least 1"),
        (["--detection", "all", "--score", "0", "--out", "e.npz"], "cannot save all boxes as 'e.npz'"),
        (["--region", "0"], "for boxes pass whence.Detection()"),
    ],
)
def test_bad_options(folder, options, message):
    found = command(*options)
    assert isinstance(found.exception, errors.WhenceError)
    assert message in str(found.exception)
