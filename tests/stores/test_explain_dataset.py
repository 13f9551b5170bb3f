"""explain_dataset(): what is stored, resumed after kill −9, refused, and shared among machines."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

import whence
import whence.stores.store as store_module
from whence import errors
from whence.models.digits import digit_samples, digits
from whence.stores.explain_dataset import pending_shards
from whence.stores.store import Shard

SIDE = 6


def cnn(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 5)).eval()


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.rand(23, 2, SIDE, SIDE), torch.randint(5, (23,))


def stored(store):
    return {path.name: path.read_bytes() for path in sorted(store.iterdir()) if path.name.startswith("shard")}


def test_a_store_holds_what_explain_gives(data, tmp_path):
    model, (x, y) = cnn(), data
    store = whence.explain_dataset(model, data, tmp_path / "s", layers=["0"], shard_size=10, batch_size=4, progress=False)
    assert len(store) == 23
    assert store.manifest.shards == 3
    e = whence.explain(model, x, layers=["0"])
    maps = e.relevance.sum(1)
    torch.testing.assert_close(store.relevance[:], maps, atol=2e-3 * float(maps.abs().max()), rtol=1e-3)
    torch.testing.assert_close(store.relevance[5:12], store.relevance[:][5:12])
    torch.testing.assert_close(store.relevance[[20, 3]], store.relevance[:][[20, 3]])
    torch.testing.assert_close(store[17]["relevance"], store.relevance[17])
    torch.testing.assert_close(store.channels("0"), e.layers["0"].sum((2, 3)), atol=1e-5, rtol=1e-4)
    assert torch.equal(store.column("prediction"), model(x).argmax(1))
    assert torch.equal(store.column("label"), y)
    torch.testing.assert_close(store.column("output"), e.output)
    torch.testing.assert_close(store.column("confidence"), model(x).softmax(1).amax(1).detach())
    assert np.asarray(store.relevance).shape == (23, SIDE, SIDE)
    assert store.relevance.shape == (23, SIDE, SIDE)
    assert len(list(store)) == 23
    assert "23 of 23 samples" in repr(whence.open_store(tmp_path / "s"))


def test_small_relevance_survives_half_precision(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3, bias=False)).eval()
    x = torch.rand(4, 2, SIDE, SIDE) * 1e-9
    store = whence.explain_dataset(model, x, tmp_path / "s", progress=False)
    maps = whence.explain(model, x).relevance.sum(1)
    torch.testing.assert_close(store.relevance[:] / maps.abs().max(), maps / maps.abs().max(), atol=1e-3, rtol=0)


def test_full_relevance_labels_and_texts(data, tmp_path):
    model, (x, y) = cnn(), data
    full = whence.explain_dataset(model, data, tmp_path / "f", reduce="none", target="label", progress=False)
    torch.testing.assert_close(full.relevance[:], whence.explain(model, x, y).relevance)
    assert torch.equal(full.column("target"), y)
    each = whence.explain_dataset(model, x, tmp_path / "e", target=y.tolist(), progress=False)
    assert torch.equal(each.column("target"), y)
    assert (each.column("label") == -1).all()
    with pytest.raises(errors.RuleError, match="needs labels"):
        whence.explain_dataset(model, x, tmp_path / "n", target="label", progress=False)


def test_a_rerun_does_only_what_is_missing(data, tmp_path):
    model, asked = cnn(), []

    class Watched(torch.utils.data.Dataset):
        def __len__(self):
            return 23

        def __getitem__(self, i):
            asked.append(i)
            return data[0][i], int(data[1][i])

    store = whence.explain_dataset(model, Watched(), tmp_path / "s", shard_size=10, batch_size=4, progress=False)
    before = stored(tmp_path / "s")
    asked.clear()
    whence.explain_dataset(model, Watched(), tmp_path / "s", shard_size=10, batch_size=4, progress=False)
    assert len(asked) <= 9  # what tells the data apart, and its shape
    store.path(1).unlink()
    store.path(2).write_bytes(store.path(2).read_bytes()[:-10])  # torn
    asked.clear()
    again = whence.explain_dataset(model, Watched(), tmp_path / "s", shard_size=10, batch_size=4, progress=False)
    assert set(asked[9:]) == set(range(10, 23))
    assert stored(tmp_path / "s") == before
    assert torch.equal(again.index, torch.arange(23))


def test_other_settings_are_refused_by_name(data, tmp_path):
    model = cnn()
    whence.explain_dataset(model, data, tmp_path / "s", progress=False)
    for given, named in [
        ({"model": cnn(1)}, "model"),
        ({"method": "sensitivity"}, "method"),
        ({"inputs": (data[0] + 1, data[1])}, "data"),
        ({"target": 3}, "target"),
        ({"reduce": "none"}, "reduce"),
        ({"layers": ["0"]}, "layers"),
        ({"shard_size": 7}, "shard_size"),
    ]:
        settings = {"model": model, "inputs": data, "store": tmp_path / "s", "progress": False} | given
        with pytest.raises(errors.StoreError, match=rf"different settings: .*{named} \("):
            whence.explain_dataset(**settings)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep me")
    with pytest.raises(errors.StoreError, match="neither empty nor a store"):
        whence.explain_dataset(model, data, tmp_path / "other")


def test_foreign_and_damaged_shards_are_found(data, tmp_path):
    model = cnn()
    one = whence.explain_dataset(model, data, tmp_path / "a", shard_size=10, progress=False)
    two = whence.explain_dataset(model, (data[0] * 2, data[1]), tmp_path / "b", shard_size=10, progress=False)
    two.path(0).write_bytes(one.path(0).read_bytes())
    with pytest.raises(errors.StoreError, match="belongs to another store"):
        whence.open_store(tmp_path / "b").column("output")
    raw = bytearray(one.path(1).read_bytes())
    raw[-3] ^= 255
    one.path(1).write_bytes(raw)
    with pytest.raises(errors.StoreError, match="checksum"):
        whence.open_store(tmp_path / "a").column("output")
    assert pending_shards(whence.open_store(tmp_path / "a"), range(3)) == [1]
    with pytest.raises(errors.LoadError, match="nowhere does not exist"):
        whence.open_store(tmp_path / "nowhere")
    with pytest.raises(errors.LoadError, match="is not a store"):
        whence.open_store(tmp_path)
    with pytest.raises(errors.StoreError, match="no relevance of layer 'x'"):
        whence.explain_dataset(model, data, tmp_path / "d", progress=False).channels("x")
    with pytest.raises(errors.StoreError, match="no column 'colour'; it has confidence"):
        whence.explain_dataset(model, data, tmp_path / "c", progress=False).column("colour")


def test_parts_of_array_jobs_make_the_whole(data, tmp_path):
    model = cnn()
    whence.explain_dataset(model, data, tmp_path / "whole", shard_size=4, progress=False)
    for i in range(3):
        part = whence.explain_dataset(model, data, tmp_path / "parts", shard_size=4, shard=f"{i}/3", progress=False)
    assert not part.missing
    assert stored(tmp_path / "parts") == stored(tmp_path / "whole")
    for wrong in ("3/3", "a/b", "1"):
        with pytest.raises(errors.RuleError, match="shard="):
            whence.explain_dataset(model, data, tmp_path / "parts", shard_size=4, shard=wrong)


def test_samples_that_fail_are_named(data, tmp_path):
    x = data[0]

    class Torn(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            if i == 4:
                raise OSError("image file is truncated")
            return torch.rand(2, 5, 5) if i == 7 else x[i].clone().fill_(torch.nan) if i == 9 else x[i]

    store = whence.explain_dataset(cnn(), Torn(), tmp_path / "s", shard_size=5, batch_size=5, progress=False)
    assert [f["index"] for f in store.failures] == [4, 7, 9]
    assert "truncated" in store.failures[0]["message"]
    assert "resize them to one shape" in store.failures[1]["message"]
    assert "NaN" in store.failures[2]["message"]
    assert store.index.tolist() == [0, 1, 2, 3, 5, 6, 8, 10, 11]
    assert "3 failed" in repr(store)
    torch.testing.assert_close(store[4]["relevance"], store.relevance[4])


def test_what_is_no_data_set_is_refused(tmp_path):
    for data, message in [(iter([1]), "no __len__"), ((torch.zeros(0, 2, SIDE, SIDE), None), "empty"), ([], "empty")]:
        with pytest.raises(errors.InputError, match=message):
            whence.explain_dataset(cnn(), data, tmp_path / "s")
    with pytest.raises(errors.RuleError, match="choose from channels"):
        whence.explain_dataset(cnn(), torch.rand(3, 2, SIDE, SIDE), tmp_path / "s", reduce="sum")
    with pytest.raises(errors.RuleError, match="choose from local, ray"):
        whence.explain_dataset(cnn(), torch.rand(3, 2, SIDE, SIDE), tmp_path / "s", engine="spark")


def test_rows_of_other_kinds(tmp_path):
    x, y = digit_samples()
    rows = [{"image": x[i], "label": int(y[i])} for i in range(6)]
    store = whence.explain_dataset(
        digits(), rows, tmp_path / "s", read=lambda row: (row["image"], row["label"]), progress=False
    )
    assert store.column("label").tolist() == y[:6].tolist()
    assert store.column("picture").shape == (6, 1, 28, 28)
    torch.testing.assert_close(store.column("picture").float() / 255, x[:6], atol=3e-3, rtol=0)


PROGRAM = """
import sys, torch, whence
from whence.models.digits import digits, digit_samples
x, y = digit_samples()
x, y = x.repeat(40, 1, 1, 1), y.repeat(40)
torch.manual_seed(0)
x = (x + 0.1 * torch.rand_like(x)).clamp(0, 1)
whence.explain_dataset(digits(), (x, y), sys.argv[1], shard_size=100, batch_size=50, progress=False)
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_undisturbed(tmp_path):
    run = [sys.executable, "-c", PROGRAM]
    start = time.monotonic()
    subprocess.run([*run, tmp_path / "whole"], check=True)
    took = time.monotonic() - start
    rolls = random.Random(0)
    for _ in range(6):
        process = subprocess.Popen([*run, tmp_path / "killed"])
        try:
            process.wait(took * (0.3 + 0.5 * rolls.random()))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    subprocess.run([*run, tmp_path / "killed"], check=True)
    assert stored(tmp_path / "killed") == stored(tmp_path / "whole")
    store = whence.open_store(tmp_path / "killed")
    assert store.index.tolist() == list(range(2000))


def test_a_shard_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(path, tensors, about):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "write_safetensors", full)
    with pytest.raises(errors.StoreError, match="No space left"):
        whence.explain_dataset(cnn(), torch.rand(3, 2, SIDE, SIDE), tmp_path / "s", progress=False)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["manifest.json"]
    monkeypatch.undo()
    assert len(whence.explain_dataset(cnn(), torch.rand(3, 2, SIDE, SIDE) * 0 + 1, tmp_path / "t", progress=False)) == 3


def test_shards_say_what_they_are(tmp_path):
    Shard({"index": torch.arange(2)}).write(tmp_path / "x.safetensors", "mine")
    assert Shard.read(tmp_path / "x.safetensors", "mine", range(2)).tensors["index"].tolist() == [0, 1]
    with pytest.raises(store_module.DamagedShardError, match="is another shard than"):
        Shard.read(tmp_path / "x.safetensors", "mine", range(2, 4))
    with pytest.raises(errors.StoreError, match="another store; move it") as foreign:
        Shard.read(tmp_path / "x.safetensors", "yours", range(2))
    assert not isinstance(foreign.value, store_module.DamagedShardError)  # whose file would be replaced


def test_a_shard_under_another_number_is_computed_again_and_an_unreadable_one_is_not_touched(data, tmp_path, monkeypatch):
    model, folder = cnn(), tmp_path / "s"
    whole = whence.explain_dataset(model, data, folder, shard_size=4, progress=False)
    first, second = (whole.path(i) for i in (0, 1))
    right = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(errors.StoreError, match="is another shard than"):
        whence.open_store(folder).column("index")
    again = whence.explain_dataset(model, data, folder, shard_size=4, progress=False)
    assert again.column("index").tolist() == list(range(len(again)))
    assert second.read_bytes() == right

    opened = type(first).open

    def refused(path, *args, **kwargs):
        if path.name.startswith("shard"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(type(first), "open", refused)
    with pytest.raises(errors.StoreError, match="cannot be read: Permission denied"):
        whence.explain_dataset(model, data, folder, shard_size=4, progress=False)
    monkeypatch.undo()
    assert second.read_bytes() == right


def test_a_cluster_that_does_not_answer(data, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(errors.WhenceError, match="no answer from 127"):
        whence.explain_dataset(cnn(), data, tmp_path / "s", engine="ray", address="127.0.0.1:9", progress=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_makes_the_same_store(data, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    model = cnn()
    whence.explain_dataset(model, data, tmp_path / "local", shard_size=4, progress=False)
    try:
        store = whence.explain_dataset(model, data, tmp_path / "ray", shard_size=4, engine="ray", progress=False)
    finally:
        ray.shutdown()
    assert len(store) == 23
    assert stored(tmp_path / "ray") == stored(tmp_path / "local")


def test_stores_go_out_in_the_formats_of_others(data, tmp_path):
    from whence.stores.exporters import export_store

    h5py, parquet = pytest.importorskip("h5py"), pytest.importorskip("pyarrow.parquet")
    store = whence.explain_dataset(digits(), digit_samples(), tmp_path / "s", shard_size=20, progress=False)
    attributions, inputs = export_store(store, tmp_path / "e.h5")
    with h5py.File(attributions) as file:
        assert file["attribution"].shape == (50, 1, 28, 28)
        assert file["prediction"][:].tolist() == store.column("prediction").tolist()
    with h5py.File(inputs) as file:
        assert file["data"].shape == (50, 1, 28, 28)
    (table,) = export_store(store, tmp_path / "e.parquet")
    read = parquet.read_table(table)
    assert read.num_rows == 50
    np.testing.assert_allclose(read["relevance"][7].as_py(), store[7]["relevance"].flatten().numpy(), rtol=1e-6)
    with pytest.raises(errors.StoreError, match="choose"):
        export_store(store, tmp_path / "e.zarr")
