"""explain_dataset(): what is stored, resumed after kill −9, refused, and shared among machines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.models.digits import digit_samples, digits

SIDE = 6


def cnn(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 5)).eval()


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.rand(23, 2, SIDE, SIDE), torch.randint(5, (23,))


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion", "smooth_grad", "rise", "lrp"])
def test_predictions_are_of_the_inputs_themselves(method, tmp_path):
    x, _ = digit_samples()
    kind = whence.RISE(n_samples=20) if method == "rise" else method
    store = whence.explain_dataset(digits(), x[:12], tmp_path / "s", method=kind, progress=False)
    logits = digits()(x[:12]).detach()
    assert torch.equal(store.column("prediction"), logits.argmax(1))
    torch.testing.assert_close(store.column("confidence"), logits.softmax(1).amax(1), rtol=1e-4, atol=1e-5)


def test_functions_with_other_constants_are_other_settings(data, tmp_path):
    whence.explain_dataset(cnn(), data[0], tmp_path / "s", target=lambda out: out[:, 3], progress=False)
    with pytest.raises(errors.StoreError, match="target"):
        whence.explain_dataset(cnn(), data[0], tmp_path / "s", target=lambda out: out[:, 4], progress=False)


def test_a_failed_shard_and_samples_of_other_sizes_leave_the_rest_readable(data, tmp_path):
    rows = [("no", 0)] * 5 + [(torch.rand(2, SIDE, SIDE), 1)] * 10 + [(torch.rand(2, 9, 9), 2)] * 5
    store = whence.explain_dataset(cnn(), rows, tmp_path / "s", shard_size=5, progress=False)
    assert len(store) == 10
    assert len(store.failures) == 10
    usable = [(torch.rand(2, SIDE, SIDE), 1)] * 10 + [(torch.rand(2, 9, 9), 2)] * 5
    store = whence.explain_dataset(cnn(), usable, tmp_path / "t", shard_size=5, progress=False)
    assert store.column("prediction").shape == (10,)
    assert store.relevance[:].shape == (10, SIDE, SIDE)
    assert store.relevance[:0].shape == (0, SIDE, SIDE)
    assert store.relevance[np.int64(3)].shape == (SIDE, SIDE)
    assert len(store.failures) == 5


def test_settings_that_cannot_work_are_refused_before_a_folder_is_claimed(data, tmp_path):
    for given, error in [
        ({"layers": ["nope"]}, errors.SelectorError),
        ({"target": 17}, errors.TargetError),
        ({"target": [1, 2]}, errors.TargetError),
        ({"target": "label"}, errors.RuleError),
        ({"read": lambda row: row}, errors.InputError),
    ]:
        with pytest.raises(error):
            whence.explain_dataset(cnn(), data[0], tmp_path / "s", progress=False, **given)
        assert not (tmp_path / "s").exists()
    x = torch.rand(6, 72)
    with pytest.raises(errors.InputError):
        whence.explain_dataset(lambda a, b: a + b, (x, x), tmp_path / "s", progress=False)


def test_regression_and_series(tmp_path):
    line = nn.Sequential(nn.Flatten(), nn.Linear(72, 1)).eval()
    assert len(whence.explain_dataset(line, torch.rand(5, 2, SIDE, SIDE), tmp_path / "r", progress=False)) == 5
    net = nn.Sequential(nn.Conv1d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(90, 2)).eval()
    store = whence.explain_dataset(net, torch.randn(8, 2, 20), tmp_path / "c", layers=["0"], progress=False)
    assert store.channels("0").shape == (8, 5)


def test_targets_for_each_sample_are_of_their_sample(tmp_path):
    x, y = digit_samples()
    wanted = (y + 1) % 10
    store = whence.explain_dataset(digits(), x, tmp_path / "s", target=whence.Logit(wanted), batch_size=7, progress=False)
    torch.testing.assert_close(store.column("output"), digits()(x).detach().gather(1, wanted[:, None])[:, 0])


def test_of_two_jobs_that_start_at_once_one_owns_the_store(tmp_path, monkeypatch):
    model, data = cnn(), (torch.rand(4, 2, SIDE, SIDE), torch.zeros(4, dtype=torch.long))
    first = whence.explain_dataset(model, data, tmp_path / "s", progress=False)
    written, is_file = (tmp_path / "s" / "manifest.json").read_bytes(), Path.is_file
    for path in first.folder.glob("shard*"):
        path.unlink()
    monkeypatch.setattr(Path, "is_file", lambda path: path.name != "manifest.json" and is_file(path))  # not yet there
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(()))
    with pytest.raises(errors.StoreError, match="was written with different settings"):
        whence.explain_dataset(model, data, tmp_path / "s", method="gradient_times_input", progress=False)
    assert (tmp_path / "s" / "manifest.json").read_bytes() == written


def test_folders_that_cannot_be_made_are_errors_of_the_store(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        with pytest.raises(errors.StoreError, match="cannot be used as a store"):
            whence.explain_dataset(cnn(), (torch.rand(2, 2, SIDE, SIDE), torch.zeros(2).long()), folder, progress=False)


@pytest.mark.parametrize("about", ["[]", "null", "3", '{"failures": 1}', "[" * 100_000])
def test_shards_with_other_metadata_are_damaged(tmp_path, about):
    from safetensors.torch import save_file

    store = whence.explain_dataset(cnn(), (torch.rand(2, 2, SIDE, SIDE), torch.zeros(2).long()), tmp_path / "s", progress=False)
    save_file({"index": torch.zeros(2)}, store.path(0), {"about": about})
    with pytest.raises(errors.StoreError, match="is damaged"):
        whence.open_store(tmp_path / "s").column("output")
