"""Class activation maps: closed forms by layout of the layer and of the input, the default layer, refusals."""

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


def by_hand(a, g, spatial, channels, size, mode="bilinear"):
    """Return Grad-CAM of activations and their gradients, resized to `size`, `[N, …]`."""
    cam = (a * g.mean(spatial, keepdim=True)).sum(channels).clamp(min=0)
    return F.interpolate(cam[:, None], size, mode=mode, align_corners=False)[:, 0]


class ChannelsLast(nn.Module):
    """A convolution, then blocks on `[N, h, w, C]`."""

    def __init__(self, square=True):
        super().__init__()
        self.embed, self.block, self.act, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)

    def hidden(self, x):
        return self.block(self.embed(x).permute(0, 2, 3, 1))

    def forward(self, x):
        return self.head(self.act(self.hidden(x)).mean((1, 2)))


@pytest.mark.parametrize("size", [(32, 32), (32, 16), (16, 32), (8, 8)])
@pytest.mark.parametrize("samples", [1, 3])
def test_maps_with_their_channels_last(size, samples):
    torch.manual_seed(0)
    model, x = ChannelsLast().eval(), torch.randn(samples, 3, *size)
    a = model.hidden(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(model.head(model.act(a).mean((1, 2)))[:, 1].sum(), a)
    expected = by_hand(a.detach(), g, (1, 2), -1, size)
    for layer in ("block", model.block):
        e = whence.explain(model, x, 1, method=GradCAM(layer))
        torch.testing.assert_close(e.relevance.sum(1), expected)
        assert e.note == "at layer 'block'"
    after = whence.explain(model, x, 1, method=GradCAM())  # the activation behind it has no layout of its own
    assert list(after.layers) == ["act"]
    a = model.act(a).detach().requires_grad_()
    (g,) = torch.autograd.grad(model.head(a.mean((1, 2)))[:, 1].sum(), a)
    torch.testing.assert_close(after.relevance.sum(1), by_hand(a.detach(), g, (1, 2), -1, size))


class Tokens(nn.Module):
    """A vision transformer with `prefix` tokens before those of the patches; it reads the first, or their mean."""

    def __init__(self, prefix, heads=2):
        super().__init__()
        self.embed, self.prefix = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(1, prefix, 16))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, heads, 32, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return self.head(tokens[:, 0] if self.prefix.shape[1] else tokens.mean(1))


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (64, 32)])
def test_tokens_are_a_grid_without_the_tokens_before_the_patches(prefix, size):
    torch.manual_seed(0)
    model, x = Tokens(prefix).eval(), torch.randn(2, 3, *size)
    seen = {}
    with torch.enable_grad():
        hook = model.blocks[1].norm1.register_forward_hook(lambda *args: seen.update(a=args[2]))
        out = model(x)
        hook.remove()
        (g,) = torch.autograd.grad(out[:, 1].sum(), seen["a"])
    rows, columns = size[0] // 8, size[1] // 8
    a, g = (t[:, prefix:].detach().view(2, rows, columns, 16) for t in (seen["a"], g))
    e = whence.explain(model, x, 1, method=GradCAM("blocks.1.norm1"))
    torch.testing.assert_close(e.relevance.sum(1), by_hand(a, g, (1, 2), -1, size))
    default = whence.explain(model, x, 1, method=GradCAM())
    assert default.note == f"at layer '{'blocks.1.norm1' if prefix else 'norm'}'"  # the last that the output depends on
    assert default.relevance.any()


@pytest.mark.parametrize("input_last", [False, True])
@pytest.mark.parametrize("layer_last", [False, True])
def test_series_with_their_channels_first_and_last(input_last, layer_last):
    torch.manual_seed(0)
    conv, linear, head = nn.Conv1d(2, 6, 3, padding=1), nn.Linear(6, 6), nn.Linear(6, 3)

    class Series(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear, self.head = conv, linear, head

        def forward(self, x):
            x = x.transpose(1, 2) if input_last else x
            return self.head(torch.relu(self.linear(self.conv(x).transpose(1, 2))).mean(1))

    x = torch.randn(3, 2, 12)
    a = conv(x).transpose(1, 2)
    if layer_last:
        a = linear(a)
    a = a.detach().requires_grad_()
    (g,) = torch.autograd.grad(head(torch.relu(a if layer_last else linear(a)).mean(1))[:, 1].sum(), a)
    expected = by_hand(a.detach(), g, 1, -1, (12,), "linear")
    given = x.transpose(1, 2) if input_last else x
    e = whence.explain(Series().eval(), given, 1, method=GradCAM("linear" if layer_last else "conv"))
    torch.testing.assert_close(e.relevance.sum(2 if input_last else 1), expected)
    assert e.relevance.shape == given.shape


class HeadNorms(nn.Module):
    """Attention with normalised keys, `[N, heads, T, C / heads]`, whose heads are no rows of an image."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.k_norm = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48), nn.LayerNorm(8)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, self.k_norm(k), v)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def test_heads_and_features_are_no_maps():
    torch.manual_seed(0)
    model, x = HeadNorms().eval(), torch.randn(2, 3, 32, 32)
    assert list(whence.explain(model, x, 1, method=GradCAM()).layers) == ["embed"]
    with pytest.raises(whence.errors.SelectorError, match="not a feature map of the input"):
        whence.explain(model, x, 1, method=GradCAM("head"))
    with pytest.raises(whence.errors.SelectorError, match="not a module of the model"):
        whence.explain(model, x, 1, method=GradCAM(nn.Linear(2, 2)))
    with pytest.raises(whence.errors.SelectorError, match="not a feature map of the input"):
        whence.explain(Tokens(11).eval(), torch.randn(1, 3, 64, 32), 1, method=GradCAM("norm"))  # 43 tokens are no grid


def test_a_picture_with_its_channels_last():
    torch.manual_seed(0)
    inner, x = cnn(), torch.randn(2, 12, 12, 3)

    class Permuted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = inner

        def forward(self, x):
            return self.net(x.permute(0, 3, 1, 2))

    first = whence.explain(inner, x.permute(0, 3, 1, 2), 2, method=GradCAM()).relevance
    last = whence.explain(Permuted().eval(), x, 2, method=GradCAM()).relevance
    torch.testing.assert_close(last, first.permute(0, 2, 3, 1))


def test_the_default_layer_of_a_hugging_face_vision_transformer():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes)
    model = transformers.ViTForImageClassification(config).eval()
    e = whence.explain(model, torch.randn(1, 3, 32, 32), 1, method=GradCAM())
    assert e.note == "at layer 'vit.layers.1.layernorm_before'"
    assert e.layers["vit.layers.1.layernorm_before"].shape == (1, 1, 4, 4)


def plus_plus(a, g):
    """Grad-CAM++ as in the paper, position by position."""
    out = torch.zeros(a.shape[1:])
    for channel in range(len(a)):
        weight = 0.0
        for row in range(a.shape[1]):
            for column in range(a.shape[2]):
                d = float(g[channel, row, column])
                below = 2 * d**2 + d**3 * float(a[channel].sum())
                weight += (d**2 / below if d and below else 0.0) * max(d, 0.0)
        out += weight * a[channel]
    return out


def xgrad(a, g):
    out = torch.zeros(a.shape[1:])
    for channel in range(len(a)):
        total = float(a[channel].sum())
        if total:
            out += float((g[channel] * a[channel]).sum()) / total * a[channel]
    return out


def hires(a, g):
    return sum(g[channel] * a[channel] for channel in range(len(a)))


def eigen(a, g):
    rows = a.flatten(1).T - a.flatten(1).T.mean(0)
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    component = (rows @ vectors[:, values.argmax()]).view(a.shape[1:])
    sign = float((component * (a.sum(0) - a.sum(0).mean())).sum())
    return component if sign >= 0 else -component


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("kind", "by_position"),
    [
        (whence.GradCAMPlusPlus, plus_plus), (whence.XGradCAM, xgrad), (whence.HiResCAM, hires), (whence.EigenCAM, eigen),
    ],
)  # fmt: skip
@pytest.mark.parametrize("batch", [1, 3])
def test_other_maps_are_those_of_their_papers(kind, by_position, relu, batch):
    model, x = cnn(), torch.randn(batch, 3, 12, 12)
    a = model[:2](x).detach().requires_grad_()
    (g,) = torch.autograd.grad(model[2:](a)[:, 2].sum(), a)
    expected = torch.stack([by_position(one.detach(), of_one) for one, of_one in zip(a, g, strict=True)])[:, None]
    found = whence.explain(model, x, 2, method=kind("1", relu=relu))
    torch.testing.assert_close(found.layers["1"], expected.clamp(min=0) if relu else expected)
    assert kind().name in whence.methods.registry.METHODS


@pytest.mark.parametrize("kind", [whence.HiResCAM, whence.XGradCAM])
def test_maps_of_a_linear_head_add_up_to_the_output(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3, bias=False)).eval()
    x = torch.randn(2, 2, 6, 6)
    e = whence.explain(model, x, 1, method=kind("1", relu=False))
    torch.testing.assert_close(e.layers["1"].flatten(1).sum(1), model(x)[:, 1].detach())


@pytest.mark.parametrize("kind", [whence.GradCAMPlusPlus, whence.HiResCAM, whence.XGradCAM, whence.EigenCAM])
def test_other_maps_read_channels_last_and_zero_gradients(kind):
    torch.manual_seed(0)
    model, x = ChannelsLast().eval(), torch.randn(2, 3, 16, 16)
    found = whence.explain(model, x, 1, method=kind("block"))
    first = nn.Sequential(model.embed, nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.head).eval()
    with torch.no_grad():
        first[1].weight.copy_(model.block.weight[:, :, None, None])
        first[1].bias.copy_(model.block.bias)
    expected = whence.explain(first, x, 1, method=kind("1"))
    torch.testing.assert_close(found.relevance, expected.relevance)
    constant = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)).eval()
    with torch.no_grad():
        constant[0].bias.fill_(-1e3)
    assert not whence.explain(constant, torch.randn(1, 1, 6, 6), 0, method=kind("1")).relevance.any()


@pytest.mark.parametrize("kind", [GradCAM, LayerCAM, whence.GradCAMPlusPlus, whence.HiResCAM, whence.XGradCAM, whence.EigenCAM])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_single_output_with_default_settings(kind, batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 1)).eval()
    x = torch.randn(batch, 2, 8, 8)
    e = whence.explain(model, x, method=kind())
    assert e.relevance.shape == x.shape
    alone = whence.explain(model, x[:1], method=kind())
    torch.testing.assert_close(e.relevance[:1], alone.relevance)


def test_the_default_layer_of_a_segmenter_is_the_one_before_its_map():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    e = whence.explain(model, x, whence.Region(1, box=(2, 2, 6, 6)), method=GradCAM())
    assert e.note.startswith("at layer '1'")
    named = whence.explain(model, x, whence.Region(1, box=(2, 2, 6, 6)), method=GradCAM("2"))
    assert named.note == "at layer '2'"


def test_the_default_layer_of_a_model_whose_modules_return_lists():
    class Listing(nn.Module):
        def forward(self, x):
            return [{"x": x}], None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.transform, self.conv, self.head = Listing(), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            x = self.transform(x)[0][0]["x"]
            return self.head(self.conv(x).relu().mean((2, 3)))

    e = whence.explain(Net().eval(), torch.rand(2, 3, 8, 8), 1, method=GradCAM())
    assert e.note.startswith("at layer 'conv'")


@pytest.mark.parametrize("method", ["gradient_times_input", "grad_cam", "sensitivity"])
def test_relevance_that_is_not_a_number_is_an_error(method):
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity()).eval()
    with torch.no_grad():
        for weight in body.parameters():
            weight.zero_()
    with pytest.raises(whence.errors.ModelError, match=r"NaN or infinite relevance.*sqrt"):
        whence.explain(Rooted(body).eval(), torch.rand(1, 3, 8, 8), 1, method=method)


class Rooted(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return (self.body(x) ** 2).mean((2, 3)).sqrt()


@pytest.mark.parametrize("method", [whence.GradCAM, whence.LayerCAM, whence.EigenCAM])
def test_maps_of_a_single_position_say_that_they_show_no_place(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)).eval()
    e = whence.explain(model, torch.rand(2, 1, 8, 8), 0, method=method(layer="3"))
    assert "a single position and shows no place; choose a lower layer=" in e.note
    usual = whence.explain(model, torch.rand(2, 1, 8, 8), 0, method=method())
    assert "at layer '1'" in usual.note
    assert "single position" not in usual.note
