"""What the function mode sees, refuses and keeps right: the situations other libraries get wrong in silence."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from whence import LRP, Epsilon, Gamma, ZBox

pytestmark = pytest.mark.usefixtures("float64")


def first(y):
    return y[:, 0]


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()


def test_relevance_at_inner_layers_adds_up():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(inplace=True),
                          nn.Conv2d(4, 4, 3, bias=False), nn.ReLU(inplace=True),
                          nn.Flatten(), nn.Linear(16, 3, bias=False)).eval()  # fmt: skip
    x = torch.randn(2, 1, 6, 6)
    without = whence.explain(model, x, method=LRP({nn.Conv2d: Gamma(0.5), nn.Linear: Epsilon(0)}))
    e = whence.explain(model, x, method=LRP({nn.Conv2d: Gamma(0.5), nn.Linear: Epsilon(0)}), layers=["0", "1", "2", "3"])
    assert torch.allclose(e.relevance, without.relevance, rtol=1e-9, atol=1e-12)
    for name, channels in (("0", 4), ("1", 4), ("2", 4), ("3", 4)):
        assert e.layers[name].shape[1] == channels
        assert torch.allclose(e.layers[name].flatten(1).sum(1), e.output, rtol=1e-9)
    assert torch.allclose(e.layers["0"], e.layers["1"], atol=1e-12)  # a ReLU passes relevance on


def test_a_layer_that_runs_twice_gives_both():
    layer = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    e = whence.explain(model, torch.randn(2, 3), layers=["0"], method=LRP({nn.Linear: Epsilon(0)}))
    assert len(e.layers["0"]) == 2
    assert all(torch.allclose(r.sum(1), e.output, rtol=1e-9) for r in e.layers["0"])


def test_several_targets_share_one_forward():
    calls = []
    model = net()
    x = torch.randn(2, 1, 6, 6)
    counted = lambda v: calls.append(1) or model(v)  # noqa: E731
    targets = [0, 1, [2, 0], None, first]
    together = list(whence.explain_targets(counted, x, targets, method=LRP({F.conv2d: Gamma()})))
    assert len(calls) == 1
    for e, target in zip(together, targets, strict=True):
        alone = whence.explain(model, x, target, method=LRP({F.conv2d: Gamma()}))
        assert torch.allclose(e.relevance, alone.relevance, rtol=1e-12)
        assert torch.allclose(e.conservation.absorbed, alone.conservation.absorbed, rtol=1e-9)


def test_relevance_rules_in_ones_own_loop():
    model, x = net(), torch.randn(2, 1, 6, 6, requires_grad=True)
    with whence.relevance_rules(model, {nn.Conv2d: Gamma(0.25)}):
        logits = model(x)
    (g,) = torch.autograd.grad(logits[:, 1].sum(), x)
    e = whence.explain(model, x, 1, method=LRP({nn.Conv2d: Gamma(0.25)}))
    assert torch.allclose(x * g, e.relevance, rtol=1e-12)
    with whence.relevance_rules(model, {nn.Conv2d: Gamma(0.25)}):
        (inside,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert torch.equal(inside, g)
    (plain,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert not torch.allclose(plain, g)


def test_relevance_rules_refuse_what_they_cannot_say():
    with pytest.raises(whence.errors.RuleError, match="gradient"), whence.relevance_rules(None, {F.conv2d: ZBox(0, 1)}):
        pass
    with pytest.raises(whence.errors.RuleError, match="pass the model"), whence.relevance_rules(None, {"0": Gamma()}):
        pass
    with pytest.raises(whence.errors.SelectorError, match="matched no"), whence.relevance_rules(None, {F.conv2d: Gamma()}):
        pass
