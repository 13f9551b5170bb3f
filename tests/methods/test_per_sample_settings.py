"""Baselines and feature masks with one row per sample belong to their sample, however a call splits or repeats the samples."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import whence
from whence import errors
from whence.methods.per_sample_settings import method_of_samples

N = 6


@pytest.fixture
def data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    return model, torch.randn(N, 4), torch.randn(N, 4)


METHODS = {
    "lrp": lambda baseline: whence.LRP(baseline=baseline),
    "integrated gradients": lambda baseline: whence.IntegratedGradients(baselines=baseline),
    "ablation": lambda baseline: whence.FeatureAblation(baselines=baseline),
    "ablation of groups": lambda baseline: whence.FeatureAblation(0, feature_mask=(baseline > 0).long().cumsum(1).clamp(max=0)),
    "smooth grad": lambda baseline: whence.SmoothGrad(whence.IntegratedGradients(baselines=baseline), n_samples=3),
    "tuple": lambda baseline: whence.IntegratedGradients(baselines=(baseline,)),
    "array": lambda baseline: whence.IntegratedGradients(baselines=baseline.numpy()),
}


@pytest.mark.parametrize("kind", METHODS)
def test_batches_do_not_change_what_a_sample_is_compared_with(data, kind, tmp_path):
    model, x, baseline = data
    alone = torch.cat([
        whence.explain(model, x[i : i + 1], 0, method=METHODS[kind](baseline[i : i + 1]), progress=False).relevance
        for i in range(N)
    ])  # fmt: skip
    together = whence.explain(model, x, 0, method=METHODS[kind](baseline), progress=False)
    torch.testing.assert_close(together.relevance, alone, atol=1e-5, rtol=1e-4)
    store = whence.explain_dataset(
        model, TensorDataset(x), tmp_path / "store", target=0, method=METHODS[kind](baseline), batch_size=2, reduce="none"
    )
    torch.testing.assert_close(store.relevance[:].float(), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6])
def test_evaluations_do_not_depend_on_the_batch_size(data, batch_size):
    model, x, baseline = data
    methods = {kind: METHODS[kind](baseline) for kind in ("lrp", "integrated gradients")}
    measured = ["sparseness", "max_sensitivity"]
    found = whence.evaluate(model, x, methods, measured, target=0, batch_size=batch_size, progress=False)
    for kind in methods:
        for i in range(N):
            method = {kind: METHODS[kind](baseline[i : i + 1])}
            one = whence.evaluate(model, x[i : i + 1], method, ["sparseness"], target=0, progress=False)
            torch.testing.assert_close(
                found.values[kind]["sparseness"][i], one.values[kind]["sparseness"][0], rtol=1e-5, atol=1e-5
            )
    assert not found.failures


def test_rows_that_match_no_samples_raise(data):
    model, x, baseline = data
    for given in (x, TensorDataset(x)):
        with pytest.raises(errors.InputError, match=r"LRP\(baseline=…\) has 3 rows for 6 samples; give one per sample"):
            whence.evaluate(model, given, whence.LRP(baseline=baseline[:3]), ["sparseness"], batch_size=3, progress=False)
    shuffled = DataLoader(TensorDataset(x), batch_size=2, shuffle=True)
    with pytest.raises(errors.InputError, match="baselines of single samples cannot be matched to a loader that shuffles"):
        whence.evaluate(model, shuffled, whence.LRP(baseline=baseline), ["sparseness"], progress=False)


def test_settings_for_all_samples_leave_the_method_itself():
    for method in (whence.LRP(), whence.LRP(baseline=torch.rand(1, 4)), whence.IntegratedGradients(0.5), "lrp", len):
        assert method_of_samples(method, [1, 2], 5) is method


def test_rows_of_frames_and_dicts(data):
    frame = pd.DataFrame(np.arange(12.0).reshape(6, 2), columns=["a", "b"])
    method = method_of_samples(whence.IntegratedGradients({"x": frame, "y": 0.5}), [4, 1, 1], 6)
    assert method.baselines["x"]["a"].tolist() == [8.0, 2.0, 2.0]
    assert method.baselines["y"] == 0.5


def test_methods_with_baselines_can_be_compared():
    one, two = torch.ones(1, 4), torch.zeros(1, 4)
    assert whence.LRP(baseline=one) == whence.LRP(baseline=one.clone())
    assert whence.LRP(baseline=one) != whence.LRP(baseline=two)
    assert whence.LRP(baseline=one) != whence.LRP()
    assert len({whence.LRP(), whence.LRP(), whence.LRP(baseline=one)}) == 2


@pytest.mark.parametrize("baseline", [np.float32(0.5), np.full((1, 4), 0.5, np.float32), 0.5])
def test_numbers_of_numpy_are_baselines(data, baseline):
    model, x, _ = data
    found = whence.explain(model, x, 0, method=whence.LRP(baseline=baseline)).relevance
    torch.testing.assert_close(
        found, whence.explain(model, x, 0, method=whence.LRP(baseline=torch.full((1, 4), 0.5))).relevance
    )
