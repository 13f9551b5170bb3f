"""Stores of many samples: late layers, maps of a chosen resolution, object stores, and workers with GPUs."""

from uuid import uuid4

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import whence
from whence import errors
from whence.core.inputs import Inputs
from whence.data.sharding import ClusterError, _worker_count
from whence.models.digits import digit_samples, digits
from whence.stores.late_layers import late_layers
from whence.stores.shard_worker import sum_over_cells


def residual():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3, padding=1)
            self.one = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
            self.two = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
            self.three = nn.Sequential(nn.Conv2d(12, 16, 3, 1, 1), nn.ReLU())
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

        def forward(self, x):
            return self.head(self.three(self.two(self.one(self.stem(x).relu()))))

    torch.manual_seed(0)
    return Net().eval()


def test_late_layers_of_convolutional_networks_are_stored_by_default(tmp_path):
    x, _ = digit_samples()
    store = whence.explain_dataset(residual(), x[:20], tmp_path / "s", progress=False)
    assert store.manifest.layers == ["two", "three"]
    assert store.channels("three").shape == (20, 16)
    named = whence.explain_dataset(residual(), x[:20], tmp_path / "n", layers=["two"], progress=False)
    assert torch.equal(named.channels("two"), store.channels("two"))
    assert whence.explain_dataset(residual(), x[:20], tmp_path / "e", layers=(), progress=False).manifest.layers == []


def test_a_store_is_resumed_with_its_own_layers(tmp_path):
    x, _ = digit_samples()
    first = whence.explain_dataset(residual(), x, tmp_path / "s", layers=["one"], shard_size=10, shard="0/2", progress=False)
    assert first.missing
    store = whence.explain_dataset(residual(), x, tmp_path / "s", shard_size=10, progress=False)
    assert store.manifest.layers == ["one"]
    assert not store.missing


@pytest.mark.parametrize(
    ("model", "x", "settings"),
    [
        (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), torch.rand(6, 5), {}),
        (digits(), digit_samples()[0][:6], {"method": "integrated_gradients"}),
        (lambda x: digits()(x), digit_samples()[0][:6], {}),
        (nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3)), torch.randint(9, (6, 5)), {}),
    ],
)
def test_other_models_and_methods_have_no_late_layers(model, x, settings, tmp_path):
    if isinstance(model, nn.Module):
        model.eval()
    store = whence.explain_dataset(model, x, tmp_path / "s", progress=False, **settings)
    assert store.manifest.layers == []
    assert len(store) == 6
    assert not store.failures


def test_late_layers_of_series_have_their_channels(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 6, 5, padding=2), nn.ReLU(), nn.Conv1d(6, 9, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(4),
        nn.Flatten(), nn.Linear(36, 3),
    ).eval()  # fmt: skip
    x = torch.randn(10, 2, 32)
    assert late_layers(model, Inputs.of(x[:1])) == ("4",)
    store = whence.explain_dataset(model, x, tmp_path / "s", progress=False)
    assert store.channels("4").shape == (10, 9)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_cells_sum_up_to_the_same_relevance(h, w, side):
    maps = torch.rand(3, h, w, dtype=torch.float64) - 0.3
    cells = sum_over_cells(maps, side)
    assert cells.shape == (3, min(h, side), min(w, side))
    torch.testing.assert_close(cells.sum((1, 2)), maps.float().sum((1, 2)), rtol=1e-5, atol=1e-5)


def test_maps_are_stored_at_a_chosen_resolution(tmp_path):
    x, _ = digit_samples()
    fine = whence.explain_dataset(digits(), x, tmp_path / "f", progress=False)
    coarse = whence.explain_dataset(digits(), x, tmp_path / "c", map_size=7, progress=False)
    assert coarse.relevance.shape == (50, 7, 7)
    expected = fine.relevance[:].unflatten(1, (7, 4)).unflatten(3, (7, 4)).sum((2, 4))
    torch.testing.assert_close(coarse.relevance[:], expected, rtol=0, atol=0.05)
    with pytest.raises(errors.StoreError, match="map_size"):
        whence.explain_dataset(digits(), x, tmp_path / "c", progress=False)
    with pytest.raises(errors.RuleError, match="map_size=0"):
        whence.explain_dataset(digits(), x, tmp_path / "z", map_size=0)
    with pytest.raises(errors.RuleError, match="reduce='channels'"):
        whence.explain_dataset(digits(), x, tmp_path / "z", map_size=7, reduce="none")


def test_stores_on_object_stores_are_the_same_and_resume(tmp_path):
    """fsspec's memory file system stands for S3."""
    pytest.importorskip("upath")
    x, y = (t.repeat(3, *[1] * (t.dim() - 1)) for t in digit_samples())
    url = f"memory://{uuid4()}/explanations"
    local = whence.explain_dataset(digits(), (x, y), tmp_path / "s", shard_size=60, progress=False)
    part = whence.explain_dataset(digits(), (x, y), url, shard_size=60, shard="1/2", progress=False)
    assert part.present == [1]
    computed = []
    store = whence.explain_dataset(digits(), (x, y), url, shard_size=60, progress=lambda done, total: computed.append(total))
    assert computed[-1] == 90  # without the shard that is there
    assert store.present == [0, 1, 2]
    assert all(torch.equal(store.column(name), local.column(name)) for name in local.names)
    again = whence.open_store(url)
    assert torch.equal(again.relevance[:], local.relevance[:])
    with pytest.raises(errors.StoreError, match="different settings"):
        whence.explain_dataset(digits(), (x, y), url, shard_size=60, target=3, progress=False)
    found, wanted = (whence.audit(each, progress=False) for each in (again, local))
    assert [c.excess for c in found.clusters] == [c.excess for c in wanted.clusters]
    path = again.path(0)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(errors.StoreError, match="damaged"):
        whence.open_store(url).column("output")
    assert not whence.explain_dataset(digits(), (x, y), url, shard_size=60, progress=False).missing


def test_unknown_urls_say_what_is_missing():
    pytest.importorskip("upath")
    with pytest.raises(errors.WhenceError, match="nosuch"):
        whence.open_store("nosuch://bucket/store")
    with pytest.raises(errors.LoadError, match="does not exist"):
        whence.open_store(f"memory://{uuid4()}/store")


def test_workers_are_as_many_as_the_gpus_suffice_for(tmp_path):
    cluster = {"CPU": 16.0, "GPU": 4.0}
    assert _worker_count(cluster, 100, 0) == 16
    assert _worker_count(cluster, 100, 1) == 4
    assert _worker_count(cluster, 100, 0.5) == 8
    assert _worker_count(cluster, 3, 0.5) == 3
    with pytest.raises(ClusterError, match="the cluster has 0 GPUs"):
        _worker_count({"CPU": 2}, 5, 1)
    with pytest.raises(errors.RuleError, match="engine='ray'"):
        whence.explain_dataset(digits(), digit_samples()[0], tmp_path / "s", num_gpus=1)
