"""Each first error of a user: one clear line of the library's own hierarchy that says what to do."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from whence import errors
from whence.models import registry
from whence.models.preprocessing import Preprocessing
from whence.models.weight_files import load_weights


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()


def test_weights_that_do_not_fit_name_the_first_keys(tmp_path):
    torch.save(
        {**{f"layer{i}.weight": torch.zeros(1) for i in range(5)}, "0.weight": torch.zeros(2, 1, 5, 5)}, tmp_path / "w.pt"
    )
    with pytest.raises(
        errors.LoadError,
        match=r"missing 0.bias.*unexpected layer0.weight, .* and 2 more.*\[2, 1, 5, 5\] for \[2, 1, 3, 3\]",
    ):
        load_weights(net(), tmp_path / "w.pt")


class Sneaky:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", pickle.dumps(Sneaky()), "not a weights-only file|no readable"),
        ("w.pt", b"nonsense", "not a weights-only file|no readable"),
        ("w.npz", b"nonsense", "is not a readable .npz file"),
        ("w.safetensors", b"nonsense", "safetensors is not a readable safetensors file"),
        ("w.h5", b"", "must be .safetensors"),
    ],
)
def test_unreadable_weights(tmp_path, name, content, message, capsys):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.LoadError, match=message):
        load_weights(net(), tmp_path / name)
    assert "run" not in capsys.readouterr().out


def test_a_pickled_module_is_refused_and_a_list_is_no_state(tmp_path):
    torch.save(net(), tmp_path / "module.pt")
    with pytest.raises(errors.LoadError, match="could run code"):
        load_weights(net(), tmp_path / "module.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(errors.LoadError, match="pt does not contain a state dict; save model"):
        load_weights(net(), tmp_path / "list.pt")
    with pytest.raises(errors.LoadError, match="no weights file"):
        load_weights(net(), tmp_path / "none.pt")


def test_every_weights_format_is_read(tmp_path):
    from safetensors.torch import save_file

    state = net().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    np.savez(tmp_path / "w.npz", **{k: v.numpy() for k, v in state.items()})
    for name in ("w.safetensors", "w.pt", "checkpoint.pth", "w.npz"):
        model = net()
        load_weights(model, tmp_path / name)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_images(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(errors.LoadError, match="not an image"):
        Preprocessing.imagenet().read(tmp_path / "text.jpg")
    with pytest.raises(errors.LoadError, match="no file"):
        Preprocessing.imagenet().read(tmp_path / "none.jpg")

    Image.new("RGB", (40, 30)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    with pytest.raises(errors.LoadError, match="cut"):
        Preprocessing.imagenet().read(tmp_path / "cut.png")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "unknown model 'resnet'; choose from digits"),
        ("torchvision:resnet5", "did you mean 'resnet50'"),
        ("none.py:net", "no file none.py"),
        ("hf:bert", "transformers cannot load 'bert'"),
    ],
)
def test_models_that_are_not_there(name, message):
    with pytest.raises(errors.LoadError, match=message):
        registry.load_model(name)


def test_model_files(tmp_path):
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found")
    (tmp_path / "fine.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 2)\ndef wrong(): return 3")
    with pytest.raises(errors.LoadError, match="cannot be run: ModuleNotFoundError"):
        registry.load_model(f"{tmp_path}/broken.py:net")
    with pytest.raises(errors.LoadError, match="no function 'mak'; did you mean 'make'"):
        registry.load_model(f"{tmp_path}/fine.py:mak")
    with pytest.raises(errors.LoadError, match="wrong returned int, expected a model"):
        registry.load_model(f"{tmp_path}/fine.py:wrong")
    assert not registry.load_model(f"{tmp_path}/fine.py:make").model.training


def test_a_missing_package_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(errors.MissingPackageError, match="pip install 'timm'"):
        registry.load_model("timm:resnet18")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to_sparse(), r"0\.weight is sparse \(torch\.sparse_coo\); save tensor\.to_dense\(\)"),
        (lambda w: w.to(torch.complex64), r"0\.weight is torch\.complex64, but the model's is torch\.float32"),
        (lambda w: w.mul(10).int(), r"0\.weight is torch\.int32, but the model's is torch\.float32"),
        (lambda w: w.to("meta"), r"0\.weight has a shape but no values"),
        (lambda w: w * float("nan"), r"0\.weight contains NaN"),
        (lambda w: w / 0, r"0\.weight contains (NaN|infinite values)"),
        (lambda w: w.double() * 1e300, r"0\.weight contains infinite values"),
    ],
    ids=["sparse", "complex", "integers", "meta", "nan", "infinite", "too large"],
)
def test_weights_that_would_be_converted_silently_are_refused(tmp_path, change, message):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    torch.save(before | {"0.weight": change(before["0.weight"])}, tmp_path / "net.pt")
    with pytest.raises(errors.LoadError, match=message):
        load_weights(model, tmp_path / "net.pt")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_weights_of_other_float_types_and_infinite_masks_are_loaded(tmp_path):
    model = nn.Linear(3, 2)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    state = model.state_dict() | {"weight": model.weight.detach().bfloat16()}
    torch.save(state, tmp_path / "net.pt")
    load_weights(model, tmp_path / "net.pt")
    assert torch.equal(model.weight, state["weight"].float())


def lightning_checkpoint(model, **others):
    return {
        "epoch": 3,
        "hyper_parameters": {"rate": 0.1},
        "state_dict": {f"net.{k}": v for k, v in model.state_dict().items()} | others,
    }


def test_a_checkpoint_of_lightning_is_read_whatever_the_network_is_called_in_it(tmp_path):
    model, given = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    torch.save(lightning_checkpoint(given), tmp_path / "last.ckpt")
    load_weights(model, tmp_path / "last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), given.parameters(), strict=True))
    torch.save(lightning_checkpoint(given, **{"loss.weight": torch.ones(2)}), tmp_path / "more.ckpt")
    with pytest.raises(errors.LoadError, match=r"unexpected loss\.weight"):
        load_weights(model, tmp_path / "more.ckpt")


@pytest.mark.parametrize("index", [True, False])
def test_weights_in_several_files_are_read_together(tmp_path, index):
    model, given = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    state = given.state_dict()
    parts = {"a.safetensors": [k for k in state if k.startswith("0")], "b.safetensors": [k for k in state if k.startswith("1")]}
    for file, names in parts.items():
        save_file({name: state[name] for name in names}, tmp_path / file)
    if index:
        where = {name: file for file, names in parts.items() for name in names}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        save_file({"stray": torch.ones(1)}, tmp_path / "c.safetensors")
    load_weights(model, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), given.parameters(), strict=True))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(errors.LoadError, match=r"no weights file .*b\.safetensors" if index else r"missing 1\.bias, 1\.weight"):
        load_weights(model, tmp_path)


def test_folders_without_weights_or_with_some_twice_are_refused(tmp_path):
    model = nn.Linear(3, 2)
    with pytest.raises(errors.LoadError, match=r"has no \.safetensors or \.bin files"):
        load_weights(model, tmp_path)
    for name in ("a", "b"):
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    with pytest.raises(errors.LoadError, match=r"b\.safetensors and an earlier file of .* both have bias"):
        load_weights(model, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(errors.LoadError, match=r"model\.safetensors\.index\.json is not an index of weights"):
        load_weights(model, tmp_path)


def test_a_model_with_nan_weights_is_refused_wherever_it_comes_from(tmp_path):
    (tmp_path / "factory.py").write_text(
        "import torch\ndef net():\n    m = torch.nn.Linear(2, 2)\n    m.weight.data[0, 0] = float('nan')\n    return m\n"
    )
    with pytest.raises(errors.LoadError, match="weight contains NaN"):
        registry.load_model(f"{tmp_path / 'factory.py'}:net")
