"""Prototypes: exercise A and further closed forms, priors, objectives, images, batches that equal single runs, bad input."""

import pytest
import torch
from torch import nn

from whence import Logit, errors, prototype
from whence.objectives import Channel, Neuron
from whence.priors import L2
from whence.prototypes.objectives import parse_objectives

pytestmark = pytest.mark.usefixtures("float64")


def deep():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 14 * 14, 4),
    ).eval()  # fmt: skip


def test_prototypes_are_saved_and_drawn(tmp_path):
    p = prototype(deep(), ["3:0", "3:1"], shape=(3, 34, 34), n_steps=2)
    for name in ("grid.png", "grid.pdf", "p.npz", "p.safetensors"):
        assert p.save(tmp_path / name).stat().st_size > 500
    assert p.beside(torch.rand(2, 3, 3, 34, 34)).save(tmp_path / "beside.png").is_file()
    assert p._repr_png_().startswith(b"\x89PNG")
    assert "3:1" in repr(p)
    assert len(list(p)) == 2
    assert set(p.numbers()) == {"images", "activation", "history.activation", "history.log_prob"}
    bars = prototype(nn.Linear(5, 2).eval(), [0, 1], prior=L2(1.0), n_steps=2)
    bars.save(tmp_path / "bars.png")
    with pytest.raises(errors.WhenceError, match="cannot save"):
        p.save(tmp_path / "p.html")
    with pytest.raises(errors.InputError, match="samples of shape"):
        p.beside(torch.rand(1, 3, 3, 34, 34))


def test_concepts_are_read():
    assert [str(o) for o in parse_objectives(["features.10:0-2", 7, Logit(3)])][:4] == [
        "features.10:0",
        "features.10:1",
        "features.10:2",
        "7",
    ]
    assert str(Channel("a", 1) - 2 * Neuron("b", 3)) == "a:1 − 2 b:3 in the middle"
    assert [str(o) for o in parse_objectives(range(2))] == ["0", "1"]
    for wrong in ("a:b", ":3", "a:1-x"):
        with pytest.raises(errors.SelectorError, match="invalid target"):
            parse_objectives(wrong)
    for wrong in (3.5, True, [None], []):
        with pytest.raises(errors.TargetError):
            parse_objectives(wrong)
