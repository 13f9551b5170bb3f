"""Score-CAM, Ablation-CAM and FullGrad, maps of several layers, and the numbers of pytorch-grad-cam."""

import pytest
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional as F

import whence
from support.comparisons import cnn
from whence import AblationCAM, FullGrad, ScoreCAM, errors
from whence.methods.feature_maps import to_unit_range

KINDS = ("GradCAM", "GradCAMPlusPlus", "HiResCAM", "XGradCAM", "LayerCAM", "ScoreCAM", "AblationCAM")

float64 = pytest.mark.usefixtures("float64")


def body_and_picture(batch=2):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 36, 4),
    )  # fmt: skip
    x = torch.randn(batch, 3, 12, 12)
    model(x)  # running statistics
    return model.eval(), x


def scaled(maps):
    """The maps as pytorch-grad-cam returns them: from 0 to 1."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax((1, 2), keepdim=True))


@float64
def test_score_cam_by_hand():
    model, x = body_and_picture()
    a = model[:2](x).detach()
    for i in range(len(x)):
        scores = []
        for channel in a[i]:
            mask = F.interpolate(channel[None, None], x.shape[2:], mode="bilinear", align_corners=False)[0]
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            scores.append(model((x[i] * mask)[None])[0, 2])
        weights = torch.stack(scores).softmax(0)
        expected = sum(w * channel for w, channel in zip(weights, a[i], strict=True)).clamp(min=0)
        found = whence.explain(model, x, 2, method=ScoreCAM("1")).layers["1"][i, 0]
        torch.testing.assert_close(found, expected.detach())


@float64
@pytest.mark.parametrize("relu", [True, False])
def test_ablation_cam_by_hand(relu):
    model, x = body_and_picture()
    a, e = model[:2](x).detach(), whence.explain(model, x, 2, method=AblationCAM("1", relu=relu))
    expected = torch.zeros(len(x), *a.shape[2:])
    for i in range(len(x)):
        for channel in range(a.shape[1]):
            without = a[i : i + 1].clone()
            without[:, channel] = 0
            expected[i] += (model(x[i : i + 1])[0, 2] - model[2:](without)[0, 2]).detach() * a[i, channel]
    torch.testing.assert_close(e.layers["1"][:, 0], expected.clamp(min=0) if relu else expected)
    assert not model[1]._forward_hooks


@float64
def test_full_grad_by_hand():
    model, x = body_and_picture(1)
    whole = x.clone().requires_grad_()
    first = model[0](whole)
    second = model[3](model[1:3](first))
    third = model[4](second)
    gradients = torch.autograd.grad(model[5:](third)[0, 2], [whole, first, second, third])
    shift = model[4].bias - model[4].weight * model[4].running_mean / (model[4].running_var + model[4].eps).sqrt()
    parts = [gradients[0] * x] + [
        g * b.view(1, -1, 1, 1) for g, b in zip(gradients[1:], (model[0].bias, model[3].bias, shift), strict=True)
    ]
    expected = torch.zeros(12, 12)
    for part in parts:
        part = part.detach().abs()
        part = (part - part.min()) / (part.max() - part.min())
        expected += F.interpolate(part, (12, 12), mode="bilinear", align_corners=False).sum((0, 1))
    e = whence.explain(model, x, 2, method=FullGrad())
    torch.testing.assert_close(e.relevance[0].sum(0), expected)
    torch.testing.assert_close(e.relevance[0, 0], expected / 3)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("layers", [("5",), ("1", "5")])
def test_maps_are_those_of_pytorch_grad_cam(name, layers):
    model, x = body_and_picture()
    with getattr(pytorch_grad_cam, name)(model=model, target_layers=[model[int(layer)] for layer in layers]) as peer:
        expected = torch.from_numpy(peer(input_tensor=x, targets=[ClassifierOutputTarget(1)] * len(x)))
    found = whence.explain(model, x, 1, method=getattr(whence, name)(layer=layers)).relevance.sum(1)
    atol = 0.02 if name == "ScoreCAM" else 3e-3  # its masks are resized with corners aligned; it adds ε where it divides
    torch.testing.assert_close(scaled(found), expected, atol=atol, rtol=0)
    assert [module for module in model if module._forward_hooks or module._backward_hooks] == []


@float64
def test_several_layers_count_alike():
    model, x = cnn(), torch.randn(2, 3, 12, 12)
    e = whence.explain(model, x, 2, method=whence.GradCAM(layer=[model[1], "4"]))
    unit = [to_unit_range(maps) for maps in e.layers.values()]
    expected = sum(F.interpolate(maps, (12, 12), mode="bilinear", align_corners=False) for maps in unit) / 2
    torch.testing.assert_close(e.relevance.sum(1, keepdim=True), expected)
    signed = whence.explain(model, x, 2, method=whence.HiResCAM(layer=["1", "4"], relu=False))
    assert (signed.relevance.sum(1).amax() <= 1) & (signed.relevance.sum(1).amin() >= -1)
    assert (signed.relevance < 0).any()
    assert list(e.layers) == ["1", "4"]
    assert "'1', '4'" in e.note
    assert e.method.layer == ("1", "4")
    with pytest.raises(errors.SelectorError, match="names no layer"):
        whence.explain(model, x, 2, method=whence.GradCAM(layer=[]))


@pytest.mark.parametrize("method", [ScoreCAM(), AblationCAM(), FullGrad(), ScoreCAM(batch_size=1), AblationCAM(batch_size=3)])
@pytest.mark.parametrize("batch", [1, 3])
def test_defaults_of_a_single_output(method, batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 1)).eval()
    x = torch.randn(batch, 2, 8, 8)
    e = whence.explain(model, x, method=method)
    assert e.relevance.shape == x.shape
    assert e.relevance.any()
    torch.testing.assert_close(e.relevance[:1], whence.explain(model, x[:1], method=method).relevance)
    assert not e.conservation.adds_up


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.mix(self.embed(x).permute(0, 2, 3, 1)).relu().mean((1, 2)))


@pytest.mark.parametrize("kind", [ScoreCAM, AblationCAM])
def test_channels_last(kind):
    torch.manual_seed(0)
    model, x = ChannelsLast().eval(), torch.randn(2, 3, 16, 16)
    first = nn.Sequential(model.embed, nn.Conv2d(6, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head).eval()
    with torch.no_grad():
        first[1].weight.copy_(model.mix.weight[:, :, None, None])
        first[1].bias.copy_(model.mix.bias)
    found, expected = (whence.explain(m, x, 1, method=kind(layer)).relevance for m, layer in ((model, "mix"), (first, "1")))
    torch.testing.assert_close(found, expected)


def test_a_model_whose_rows_interact():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.head((self.body(x) - self.body(x).mean(0)).relu().mean((2, 3)))

    torch.manual_seed(0)
    model, x = Centred().eval(), torch.randn(3, 3, 8, 8)
    with pytest.raises(errors.SelectorError, match="called 2 times"):
        whence.explain(model, x, 1, method=AblationCAM("body"))
    a = model.body(x).detach()
    weights = torch.stack([
        model(x * F.interpolate(s, (8, 8), mode="bilinear", align_corners=False))[:, 1]
        for s in [
            (one - one.amin((2, 3), keepdim=True)) / (one.amax((2, 3), keepdim=True) - one.amin((2, 3), keepdim=True))
            for one in a.split(1, 1)
        ]
    ]).softmax(0)  # fmt: skip
    found = whence.explain(model, x, 1, method=ScoreCAM("body", relu=False)).layers["body"][:, 0]
    torch.testing.assert_close(found, torch.einsum("cn,nchw->nhw", weights, a).detach(), atol=0.05, rtol=0.1)


def test_full_grad_needs_running_statistics():
    model, x = body_and_picture()
    model[4] = nn.BatchNorm2d(5, track_running_stats=False).eval()
    with pytest.raises(errors.ModelError, match="running statistics"):
        whence.explain(model, x, 1, method=FullGrad())


def test_a_compiled_model_is_ablated_as_the_model_itself():
    model, x = body_and_picture()
    compiled = torch.compile(model, backend="eager")
    found, expected = (whence.explain(m, x, 1, method=AblationCAM("5", relu=False)).relevance for m in (compiled, model))
    torch.testing.assert_close(found, expected)
    assert found.any()


class Keyed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return {0: self.conv(x).relu(), 1: x}


def test_a_layer_that_returns_a_dict():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = Keyed(), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(x)[0].mean((2, 3)))

    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    a = net.body(x)[0].detach()
    weights = net.head.weight[1] * a.mean((2, 3))
    expected = torch.einsum("nc,nchw->nhw", weights, a).detach()
    torch.testing.assert_close(whence.explain(net, x, 1, method=AblationCAM("body", relu=False)).layers["body"][:, 0], expected)


def test_full_grad_reads_frozen_normalisations_and_leaves_out_other_maps():
    from torchvision.ops import FrozenBatchNorm2d

    model, x = body_and_picture()
    frozen = FrozenBatchNorm2d(5)
    frozen.load_state_dict({k: v for k, v in model[4].state_dict().items() if "batches" not in k})
    expected = whence.explain(model, x, 1, method=FullGrad()).relevance
    model[4] = frozen
    torch.testing.assert_close(whence.explain(model, x, 1, method=FullGrad()).relevance, expected)
    folded = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Conv1d(4, 2, 3), nn.Flatten(), nn.LazyLinear(2))
    folded(x)
    assert whence.explain(folded.eval(), x, 1, method=FullGrad()).relevance.any()


def test_a_layer_that_is_no_layer():
    model, x = body_and_picture()
    with pytest.raises(errors.SelectorError, match="layer=5; expected the path of a module"):
        whence.explain(model, x, 1, method=whence.GradCAM(5))
