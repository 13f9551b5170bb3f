"""Methods that stack altered copies of the samples: targets with one value."""

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
    "smoothgrad around integrated_gradients": whence.SmoothGrad(whence.IntegratedGradients(n_steps=5), n_samples=3),
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


def test_outputs_whose_rows_cannot_be_told_apart_are_refused_by_name():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval(), torch.rand(1, 12)
    with pytest.raises(whence.errors.TargetError, match="cannot be told apart"):
        whence.explain(
            lambda x: [net(x).sum(0)], x, lambda out: out[0][1][None], method=whence.FeatureAblation(), progress=False
        )
