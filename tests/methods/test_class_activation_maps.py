"""Methods made of gradients: closed forms, captum's portable truths and captum itself, completeness."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from support.comparisons import cnn
from whence import (
    GradCAM,
    IntegratedGradients,
    LayerCAM,
    SmoothGrad,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_layer_cam_by_hand():
    model, x = cnn(), torch.randn(2, 3, 12, 12)
    a = model[:2](x).detach().requires_grad_()
    (g,) = torch.autograd.grad(model[2:](a)[:, 2].sum(), a)
    expected = (g.clamp(min=0) * a).sum(1, keepdim=True).clamp(min=0).detach()
    e = whence.explain(model, x, 2, method=LayerCAM("1"))
    torch.testing.assert_close(e.layers["1"], expected)
    sized = F.interpolate(expected, (12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(e.relevance.sum(1, keepdim=True), sized)


def test_the_last_spatial_layer_is_found():
    model, x = cnn(), torch.randn(2, 3, 12, 12)
    found, named = (whence.explain(model, x, 2, method=GradCAM(layer)) for layer in (None, "4"))
    assert list(found.layers) == ["4"]
    torch.testing.assert_close(found.relevance, named.relevance)
    pooled = nn.Sequential(model[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    assert list(whence.explain(pooled, x, 2, method=GradCAM()).layers) == ["0.4"]
    series = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7, 3)).eval()
    assert whence.explain(series, torch.randn(2, 2, 9), 1, method=GradCAM()).relevance.shape == (2, 2, 9)


def test_several_targets_share_what_can_be_shared():
    calls = []
    model, x = cnn(), torch.randn(2, 3, 12, 12)

    def counted(x):
        calls.append(len(x))
        return model(x)

    for method in (IntegratedGradients(n_steps=5), SmoothGrad(n_samples=5), whence.Occlusion((3, 6, 6))):
        calls.clear()
        one, two = whence.explain_targets(counted, x, [1, 2], method=method)
        together = sum(calls)
        calls.clear()
        alone = whence.explain(counted, x, 2, method=method)
        assert together == sum(calls)
        torch.testing.assert_close(two.relevance, alone.relevance)
        assert not torch.allclose(one.relevance, two.relevance)
