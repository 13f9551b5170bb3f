"""What the function mode sees, refuses and keeps right: the situations other libraries get wrong in silence."""

import pytest
import torch
from torch import nn

import whence
from whence import LRP

pytestmark = pytest.mark.usefixtures("float64")


def first(y):
    return y[:, 0]


def sums(e):
    return e.relevance.flatten(1).sum(1)


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()


BATTERY = [
    LRP(),
    LRP(whence.presets.epsilon_plus()),
    LRP(whence.presets.epsilon_gamma_box(-5, 5)),
    "gradient_times_input",
    "sensitivity",
    "integrated_gradients",
    whence.ExpectedGradients(torch.linspace(-1, 1, 3 * 36).view(3, 1, 6, 6), n_samples=20),
    "smooth_grad",
    whence.SmoothGrad(LRP(), n_samples=4, kind="vargrad"),
    "guided_backprop",
    "deconvnet",
    "grad_cam",
    "layer_cam",
    "grad_cam_plus_plus",
    "hires_cam",
    "xgrad_cam",
    "eigen_cam",
    "score_cam",
    "ablation_cam",
    "full_grad",
    "simple_taylor",
    whence.SimpleTaylor("origin"),
    "occlusion",
    "feature_ablation",
    whence.RISE(n_samples=30),
    whence.Shapley(feature_mask=whence.patches(torch.zeros(1, 1, 6, 6), 2), interactions="sii"),
    whence.Shapley(budget=100),
    whence.Shapley(budget=200, estimator="permutation"),
]


@pytest.mark.parametrize("method", BATTERY, ids=[f"{i}-{m if isinstance(m, str) else m.name}" for i, m in enumerate(BATTERY)])
def test_battery(method):
    model, x = net(), torch.randn(4, 1, 6, 6).clamp(-4, 4)
    e = whence.explain(model, x, [0, 1, 2, 1], method=method)
    assert e.relevance.shape == x.shape
    assert e.relevance.dtype == x.dtype
    assert not e.relevance.requires_grad
    again = whence.explain(model, x, [0, 1, 2, 1], method=method)
    assert torch.equal(e.relevance, again.relevance)
    for i in range(4):  # each sample by itself
        alone = whence.explain(model, x[i : i + 1], [[0, 1, 2, 1][i]], method=method)
        assert torch.allclose(alone.relevance, e[i].relevance, rtol=1e-9, atol=1e-12)
        assert torch.allclose(alone.conservation.relevance, e[i].conservation.relevance, rtol=1e-9)
    single = whence.explain(model.float(), x.float(), [0, 1, 2, 1], method=method)
    assert single.relevance.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(whence.explain(model, x.float(), [0, 1, 2, 1], method=method).relevance, single.relevance)


def test_a_single_sample_without_batch_inside_the_model():
    convolution = nn.Conv2d(1, 2, 3, bias=False)
    e = whence.explain(lambda x: torch.stack([convolution(v) for v in x]).flatten(1), torch.randn(2, 1, 5, 5), first)
    assert torch.allclose(sums(e), e.output, rtol=1e-4)
    assert e.conservation.error.max() < 1e-9


def test_the_callers_grad_mode_is_left_alone():
    model, x = net(), torch.randn(1, 1, 6, 6)
    with torch.no_grad():
        for e in whence.explain_targets(model, x, [0, 1]):
            assert not torch.is_grad_enabled()
            assert not e.relevance.requires_grad


def test_inference_mode_and_its_tensors():
    model, x = net(), torch.randn(1, 1, 6, 6)
    expected = whence.explain(model, x, 1).relevance
    with torch.inference_mode():
        made_here = x.clone()
        assert torch.equal(whence.explain(model, made_here, 1).relevance, expected)
    assert torch.equal(whence.explain(model, made_here, 1).relevance, expected)
