"""Every torchvision classification CNN, unmodified: random weights and batch-norm statistics, float64, small input."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from support.selection import in_turn
from whence import LRP, Epsilon, presets

models = pytest.importorskip("torchvision.models")


pytestmark = pytest.mark.usefixtures("float64")


FAMILIES = ("alexnet", "vgg", "resnet", "resnext", "wide_resnet", "densenet", "squeezenet", "googlenet", "inception_v3",
            "mobilenet", "mnasnet", "shufflenet", "regnet", "efficientnet", "convnext")  # fmt: skip


NAMES = [name for name in models.list_models(module=models) if name.startswith(FAMILIES)]


EVERY_DAY = ["alexnet", "vgg11_bn", "resnet18", "densenet121", "squeezenet1_0", "googlenet", "inception_v3", "mobilenet_v2",
             "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_x_400mf", "regnet_y_400mf", "efficientnet_b0",
             "convnext_tiny"]  # fmt: skip


TODAY = EVERY_DAY + in_turn([name for name in NAMES if name not in EVERY_DAY], 18)


PRESETS = {
    "epsilon_gamma": presets.epsilon_gamma(),
    "epsilon_plus": presets.epsilon_plus(),
    "epsilon_plus_flat": presets.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": presets.epsilon_alpha2_beta1(),
    "epsilon_gamma_box": presets.epsilon_gamma_box(-4.0, 4.0),
    "deep_taylor": presets.deep_taylor(-4.0, 4.0),
}


def network(name: str, biases: bool) -> nn.Module:
    """Built without its own (slow) initialisation: He weights, random norms, biases and batch-norm shifts on or off."""
    extra = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    device = "cpu" if name.startswith("regnet") else "meta"  # regnets compute with tensors while they are built
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.get_model(name, weights=None, num_classes=10, **extra)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for key, t in [*model.named_parameters(), *model.named_buffers()]:
            if key.endswith("num_batches_tracked"):
                t.zero_()
            elif key.endswith(("bias", "running_mean")):
                t.normal_(0, 0.1) if biases else t.zero_()
            elif t.dim() > 1 and not key.endswith("layer_scale"):
                t.normal_(0, (2 / t[0].numel()) ** 0.5)
            else:  # scales and variances
                t.uniform_(0.5, 1.5)
    return model


def picture(name: str) -> torch.Tensor:
    side = 75 if name == "inception_v3" else 64
    return torch.randn(2, 3, side, side).clamp(-3.9, 3.9)


@pytest.mark.parametrize("name", TODAY)
def test_without_biases_relevance_is_the_output(name):
    model, x = network(name, biases=False), picture(name)
    rules = {(F.conv2d, F.linear): Epsilon(0)}
    with torch.no_grad():
        plain = model(x)
    e = whence.explain(model, x, method=LRP(rules))
    assert torch.equal(e.output, plain.max(1).values)
    assert ((e.relevance.flatten(1).sum(1) - e.output).abs() <= 1e-6 * e.output.abs()).all()


@pytest.mark.parametrize("name", TODAY)
def test_with_biases_relevance_and_what_was_absorbed_is_the_output(name):
    model, x = network(name, biases=True), picture(name)[:1]
    with torch.no_grad():
        plain = model(x)
    for label, rules in PRESETS.items() if name in EVERY_DAY else in_turn(list(PRESETS.items()), 3):
        e = whence.explain(model, x, method=LRP(rules))
        assert torch.equal(e.output, plain.max(1).values)
        assert e.conservation.error.max() <= 1e-6, f"{label}: {e.conservation}"


RELU_NETWORKS = ["alexnet", "vgg11_bn", "resnet18", "densenet121", "squeezenet1_0", "googlenet", "inception_v3", "mnasnet0_5",
                 "shufflenet_v2_x0_5", "resnext50_32x4d", "regnet_x_400mf"]  # fmt: skip


@pytest.mark.parametrize("name", RELU_NETWORKS)
def test_epsilon_zero_is_gradient_times_input_in_relu_networks(name):
    """Map by map, not sum by sum: a reused module or a lost branch can leave the sum right."""
    model, x = network(name, biases=True), picture(name)[:1]
    rules = {(F.conv2d, F.linear): Epsilon(0)}
    ours = whence.explain(model, x, method=LRP(rules)).relevance
    plain = whence.explain(model, x, method="gradient_times_input").relevance
    assert (ours - plain).abs().max() <= 1e-9 * plain.abs().max()
