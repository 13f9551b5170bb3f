"""Methods that stack altered copies of the samples: targets with one value, and models whose rows interact."""

import pytest
import torch
from torch import nn

import whence

METHODS = {
    "integrated_gradients": whence.IntegratedGradients(n_steps=20),
    "smoothgrad": whence.SmoothGrad(n_samples=8),
    "occlusion": whence.Occlusion((3, 4, 4), strides=4),
    "feature_ablation": whence.FeatureAblation(feature_mask=whence.patches(torch.zeros(1, 3, 16, 16), 4)),
    "shapley": whence.Shapley(feature_mask=whence.patches(torch.zeros(1, 3, 16, 16), 8)),
    "rise": whence.RISE(n_samples=40),
    "expected_gradients": whence.ExpectedGradients(torch.zeros(2, 3, 16, 16), n_samples=8),
    "lrp": None,
}
TARGETS = {
    "a pixel": (lambda out: out[0, 2, 8, 8][None], lambda out: out[:, 2, 8, 8]),
    "a sum over the batch": (lambda out: out[:, 1].sum()[None], lambda out: out[:, 1].sum((1, 2))),
    "the first sample": (lambda out: out[:1, 0, 3, 3], lambda out: out[:, 0, 3, 3]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("named", [False, True])
def test_a_target_with_one_value_is_that_of_each_copy(method, target, named):
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval(),
        torch.rand(1, 3, 16, 16),
    )
    model = (lambda x: {"map": net(x), "scale": torch.ones(2)}) if named else net
    one, each = ((lambda out, f=f: f(out["map"])) if named else f for f in TARGETS[target])
    found, expected = (whence.explain(model, x, f, method=METHODS[method], progress=False) for f in (one, each))
    assert torch.allclose(found.output, expected.output)
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-4, atol=1e-5)


def test_outputs_whose_rows_cannot_be_told_apart_are_computed_one_copy_at_a_time():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval(), torch.rand(1, 12)
    method = whence.FeatureAblation()
    found = whence.explain(lambda x: [net(x).sum(0)], x, lambda out: out[0][1][None], method=method, progress=False)
    assert torch.allclose(found.relevance, whence.explain(net, x, 1, method=method, progress=False).relevance, atol=1e-6)


class Normalised(nn.Module):
    """Normalises by the batch itself, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 2)
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)


class TimeFirst(nn.Module):
    """Takes the first dimension for the time."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Connected(nn.Module):
    """A graph network with an adjacency of four nodes, which any other number of rows does not fit."""

    def __init__(self):
        super().__init__()
        self.adjacency, self.layer = torch.rand(4, 4), nn.Linear(6, 2)

    def forward(self, x):
        return self.layer(self.adjacency @ x)


class Quantised(nn.Module):
    """Quantises activations by the range of the whole batch."""

    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
        self.net = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("make", [whence.FeatureAblation, whence.Shapley])
@pytest.mark.filterwarnings("ignore")
def test_models_quantised_by_the_batch_are_run_one_round_at_a_time(make):
    torch.manual_seed(0)
    model, x = Quantised().eval(), torch.randn(4, 6)
    few, many = (whence.explain(model, x, 1, method=make(batch_size=size), progress=False) for size in (1, 5000))
    assert torch.equal(few.relevance, many.relevance)


@pytest.mark.parametrize("model", [Normalised, TimeFirst, Connected])
@pytest.mark.parametrize(
    "make",
    [
        lambda size: whence.IntegratedGradients(n_steps=10, batch_size=size),
        lambda size: whence.SmoothGrad(n_samples=6, batch_size=size),
        lambda size: whence.FeatureAblation(batch_size=size),
        lambda size: whence.Shapley(batch_size=size),
    ],
)
@pytest.mark.filterwarnings("ignore:integrated gradients do not add up")  # BatchNorm of a batch of zeros
def test_models_whose_rows_interact_are_run_one_round_at_a_time(model, make):
    torch.manual_seed(0)
    model, x = model().eval(), torch.randn(4, 6)
    few, many = (whence.explain(model, x, 1, method=make(size), progress=False) for size in (1, 5000))
    assert torch.allclose(few.relevance, many.relevance, rtol=1e-4, atol=1e-6)
    assert torch.allclose(few.output, model(x)[:, 1])


def test_shapley_values_of_rows_that_interact_replace_features_in_the_whole_batch():
    torch.manual_seed(0)
    model, x = Normalised().eval(), torch.randn(4, 6)
    x[1, 2:] = 0  # its other features are not played by themselves
    method = whence.Shapley(estimator="exact")
    e = whence.explain(model, x, 1, method=method, progress=False)
    with_all = whence.explain(model, x, lambda out: out[:, 1], method=method, progress=False)
    assert torch.allclose(e.relevance, with_all.relevance, atol=1e-6)
    assert torch.allclose(e.relevance.sum(1), model(x)[:, 1] - model(torch.zeros_like(x))[:, 1], atol=1e-5)


ONE_VALUE = [
    whence.FeatureAblation(), whence.Occlusion((1, 1)), whence.Shapley(), whence.IntegratedGradients(), whence.LRP(),
]  # fmt: skip


@pytest.mark.parametrize("method", ONE_VALUE, ids=lambda method: method.name)
@pytest.mark.parametrize("as_dict", [False, True])
def test_one_value_of_all_rows_is_explained_as_that_of_one_sample(method, as_dict):
    """A node of a graph, and a node of a graph given as a dict: linear, so that every method finds the same."""
    torch.manual_seed(0)
    adjacency, layer, nodes = torch.rand(4, 4), nn.Linear(6, 2), torch.randn(4, 6)
    expected = adjacency[2][:, None] * layer.weight[1] * nodes
    if as_dict:
        model, x = lambda nodes, mask: layer(adjacency @ nodes) * mask[:, None], {"nodes": nodes, "mask": torch.ones(4)}
    else:
        model, x = lambda nodes: layer(adjacency @ nodes), nodes
    e = whence.explain(model, x, lambda out: out[2, 1][None], method=method, progress=False)
    assert torch.allclose(e.relevance["nodes"] if as_dict else e.relevance, expected, atol=1e-5)
    assert e.output.shape == (1,)


@pytest.mark.parametrize("method", ONE_VALUE, ids=lambda method: method.name)
def test_one_value_of_a_vector_is_explained_by_its_entries(method):
    weights, factors = torch.rand(8), torch.arange(8.0)
    method = whence.Occlusion() if isinstance(method, whence.Occlusion) else method
    e = whence.explain(lambda w: (w * factors).sum()[None], weights, lambda out: out, method=method, progress=False)
    assert torch.allclose(e.relevance, weights * factors, atol=1e-5)
