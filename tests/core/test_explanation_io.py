"""Names: of features, classes, words, methods and settings; data of NumPy and data frames; explanations read back."""

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import errors

NAMES = ["age", "income", "debt", "years"]


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("several", [False, True])
def test_an_explanation_is_read_back(net, tmp_path, suffix, several):
    x = torch.randn(2, 4)
    if several:
        e = whence.explain(
            lambda x, y, n: net(x + n * y), (x, x * 2, 3), whence.Logit(1, rather_than=0), feature_names={"1": NAMES}
        )
    else:
        e = whence.explain(net, x, 1, layers=["0"], feature_names=NAMES, class_names=["no", "yes", "perhaps"])
    read = whence.load(e.save(tmp_path / f"e.{suffix}"))
    assert repr(read) == repr(e)
    assert read.target_names() == e.target_names()
    assert read.feature_names == e.feature_names
    first, second = (e.relevance[1], read.relevance[1]) if several else (e.relevance, read.relevance)
    assert torch.equal(first, second)
    assert torch.equal(read.conservation.absorbed, e.conservation.absorbed)
    assert read.conservation.by_layer.keys() == e.conservation.by_layer.keys()
    if not several:
        assert torch.equal(read.layers["0"], e.layers["0"])
        assert read.save(tmp_path / "again.png").read_bytes() == e.save(tmp_path / "first.png").read_bytes()


def test_other_files_are_no_explanations(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    (tmp_path / "y.npz").write_text("no")
    for name in ("x.npz", "y.npz", "z.npz", "z.png"):
        with pytest.raises(errors.LoadError):
            whence.load(tmp_path / name)


@pytest.mark.parametrize("change", [(b"dog", b"cog"), (b'\\"checksum', b'\\"checksun'), (b"true", b"null")])
def test_changed_names_and_checks_are_noticed(tmp_path, change):
    e = whence.Explainer(torch.nn.Linear(3, 2).eval(), class_names=["dog", "cat"])(torch.rand(1, 3), 0)
    e.save(tmp_path / "e.safetensors")
    raw = (tmp_path / "e.safetensors").read_bytes()
    assert change[0] in raw
    (tmp_path / "e.safetensors").write_bytes(raw.replace(*change))
    with pytest.raises(errors.LoadError, match="checksum does not match"):
        whence.load(tmp_path / "e.safetensors")
