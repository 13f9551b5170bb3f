"""The shell blocks of the docs and the README: `whence` commands have options that exist, and run in a folder of stand-ins.

Published weights cannot be downloaded here, so that models are replaced by small networks for the same kind of input.
"""

import re
import shlex
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from whence.frontends.cli import app
from whence.models.digits import digit_samples

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*/*.md")), ROOT / "docs" / "index.md"]
OTHERS = ("pip install", "make ", "cmake ", "build/", "torchrun ", "ray start", "#")  # programs that are not whence's
SERVERS = ("serve",)  # do not end
LONG = ("whence bench", "whence attack --experiment robust-features")  # minutes, and have tests of their own
CLUSTER = ("--shard", "--engine")  # need a cluster, and have tests of their own
NETS = """
import collections

import torch
from torch import nn

import whence

NAMES = ["cat", "dog", "ape", "bee"]


def pictures():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
    parts = {"features": body, "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "classifier": nn.Linear(8, 1000)}
    net = nn.Sequential(collections.OrderedDict(parts))
    return whence.LoadedModel("pictures", net, whence.Preprocessing((64, 64)), [*NAMES, *map(str, range(996))])


class Boxes(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 4, 8, 8)

    def forward(self, x):
        scores = self.body(x).flatten(2)
        rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        centres = (torch.stack([columns.flatten(), rows.flatten()]) * 8 + 4.0).expand(len(x), -1, -1)
        return torch.cat([centres, torch.full_like(centres, 6.0), (4 * scores).sigmoid()], 1)


def boxes():
    return whence.LoadedModel("boxes", Boxes().eval(), whence.Preprocessing((64, 64)), NAMES)


def maps():
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    return whence.LoadedModel("maps", body.eval(), whence.Preprocessing((256, 256)), NAMES)


def make_net():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4))
    return whence.LoadedModel("mine", net, whence.Preprocessing((64, 64)), NAMES)


def make_forest():
    import pandas as pd
    from sklearn.ensemble import RandomForestClassifier

    frame = pd.DataFrame({"age": range(20, 60), "debt": [5, 1] * 20})
    forest = RandomForestClassifier(5, random_state=0).fit(frame, frame.age > 40)
    return whence.LoadedModel("forest", forest, table=whence.TableReader(frame))


def threes():
    net = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 1))
    return whence.LoadedModel("threes", net, whence.Preprocessing((28, 28), channels=1))
"""
STAND_INS = {
    r"--model torchvision:retinanet\w+": "--model nets.py:boxes",
    r"--model torchvision:deeplab\w+": "--model nets.py:maps",
    r"--model torchvision:\w+": "--model nets.py:pictures",
    r"--rules vgg16_falling_gamma": "--rules epsilon_plus",  # which names the layers of VGG-16
    r"--layer layer4": "--layer features.3",
    r"outliers.py:threes": "nets.py:threes",
    r"--weights (DEFAULT|\S+\.npz)": "",
    r"hf:FOLDER --target her --rather-than his": "reviews --target negative --rather-than positive",
    r"hf:FOLDER": "reviews",
}


def commands(block):
    """The commands of a block; lines that end in a backslash go on."""
    for line in block.replace("\\\n", " ").splitlines():
        command = re.sub(r"\s+#\s.*$", "", line).strip()
        if command:
            yield command


def every_block():
    for page in PAGES:
        for i, block in enumerate(re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
            yield pytest.param(block, id=f"{page.stem}-{i}")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path
    (folder / "nets.py").write_text(NETS)
    noise = Image.effect_noise((300, 220), 80).convert("RGB")
    for name in ("photo.png", "photo.jpg", "castle.jpg", "street.jpg", "cat.jpg"):
        noise.save(folder / name)
    for name in ("digit.png", "five.png"):
        Image.fromarray((digit_samples()[0][5, 0] * 255).byte().numpy()).save(folder / name)
    for kind in ("cat", "dog"):
        (folder / "photos" / kind).mkdir(parents=True)
        for i in range(14):
            Image.effect_noise((80, 70), 40 + 5 * i).convert("RGB").save(folder / "photos" / kind / f"{i}.png")
    (folder / "rows.csv").write_text("age,debt\n55,5\n")
    (folder / "notes").mkdir()
    (folder / "notes" / "ball.txt").write_text("Tom has a red ball.")
    return folder


@pytest.mark.parametrize("block", list(every_block()))
def test_the_commands_of_a_block_run_as_written(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for command in commands(block):
        if not command.startswith((*OTHERS, "whence --install-completion")):  # which edits the files of the shell
            run(command)


def run(command):
    words = shlex.split(command)
    assert words[0] == "whence", f"{command}: neither of whence nor one of {OTHERS}"
    group = typer.main.get_command(app)
    group.commands[words[1]].make_context(words[1], words[2:])  # raises for options that do not exist
    if words[1] in SERVERS or command in LONG or any(word in words for word in CLUSTER):
        return
    for real, stand_in in STAND_INS.items():
        command = re.sub(real, stand_in, command)
    ran = CliRunner().invoke(app, shlex.split(command)[1:])
    assert ran.exit_code == 0, f"{command}\n{ran.output}\n{ran.exception}"
