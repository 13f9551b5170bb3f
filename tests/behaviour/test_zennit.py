"""zennit as an oracle where it has the rule: float64, networks of conv, ReLU, pooling and dense layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence

pytestmark = pytest.mark.usefixtures("float64")


zennit_rules = pytest.importorskip("zennit.rules")


CONVOLUTIONS = {
    whence.Epsilon(0.1): lambda: zennit_rules.Epsilon(0.1),
    whence.Gamma(0.25): lambda: zennit_rules.Gamma(0.25, stabilizer=1e-15),
    whence.AlphaBeta(2, 1): lambda: zennit_rules.AlphaBeta(2, 1, stabilizer=1e-15),
    whence.ZPlus(): lambda: zennit_rules.ZPlus(stabilizer=1e-15),
}


FIRST = {
    whence.Flat(): lambda: zennit_rules.Flat(stabilizer=1e-15),
    whence.WSquare(): lambda: zennit_rules.WSquare(stabilizer=1e-15),
    whence.ZBox(-3.0, 3.0): lambda: zennit_rules.ZBox(-3.0, 3.0, stabilizer=1e-15),
    whence.Gamma(0.1): lambda: zennit_rules.Gamma(0.1, stabilizer=1e-15),
}


def network(first_bias: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=first_bias), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 5),
    ).eval()  # fmt: skip


def by_zennit(model, x, target, first, convolution):
    from zennit.core import Composite

    def module_map(ctx, name, module):
        if name == "0":
            return first
        if isinstance(module, nn.Conv2d):
            return convolution
        if isinstance(module, nn.ReLU):
            return zennit_rules.Pass()
        return zennit_rules.Epsilon(1e-6) if isinstance(module, nn.Linear) else None

    x = x.clone().requires_grad_()
    with Composite(module_map).context(model) as hooked:
        out = hooked(x)
        (relevance,) = torch.autograd.grad(out, x, torch.eye(5)[target] * out.detach())
    return relevance


@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=repr)
@pytest.mark.parametrize("first", FIRST, ids=repr)
def test_a_network_by_zennit(first, convolution):
    model = network(first_bias=first != whence.WSquare())  # zennit's w² counts the squared bias, which leaks
    x = torch.randn(3, 3, 12, 12).clamp(-2.9, 2.9)
    target = torch.tensor([0, 3, 4])
    rules = {"0": first, F.conv2d: convolution, F.linear: whence.Epsilon(1e-6)}
    ours = whence.explain(model, x, target, method=whence.LRP(rules)).relevance
    theirs = by_zennit(model, x, target, FIRST[first](), CONVOLUTIONS[convolution]())
    assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()


def test_resnet_as_zennit_with_its_canonizer():
    from torchvision.models import resnet18
    from zennit.composites import EpsilonPlus
    from zennit.torchvision import ResNetCanonizer

    model = resnet18(num_classes=5).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.2)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 0.0  # zennit leaves its ε in the merged norm
    x = torch.randn(2, 3, 64, 64)
    target = torch.tensor([1, 2])
    ours = whence.explain(model, x, target, method=whence.LRP(whence.presets.epsilon_plus())).relevance
    leaf = x.clone().requires_grad_()
    with EpsilonPlus(stabilizer=1e-15, canonizers=[ResNetCanonizer()]).context(model) as hooked:
        out = hooked(leaf)
        (theirs,) = torch.autograd.grad(out, leaf, torch.eye(5)[target] * out.detach())
    assert torch.nn.functional.cosine_similarity(ours.flatten(1), theirs.flatten(1)).min() > 0.999999
