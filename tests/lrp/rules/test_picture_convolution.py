"""The default's flat rule: at the convolution that reads a color picture in windows that overlap, and nowhere else."""

import pytest
import torch
from torch import nn

import whence
from whence import errors, presets


def net(convolution, *shape):
    torch.manual_seed(0)
    body = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    with torch.no_grad():
        body(torch.rand(1, *shape))
    return body, torch.randn(2, *shape)


def default_and(rule, model, x):
    found = [
        whence.explain(model, x, 1, method=method)
        for method in (None, whence.LRP({presets.input_layer: rule} | presets.attn_lrp()))
    ]
    assert all(e.conservation.error.max() < 1e-4 for e in found)
    return [e.relevance for e in found]


OVERLAPPING = {
    "stride 1": (nn.Conv2d(3, 4, 3), 3, 8, 8),
    "stride 2": (nn.Conv2d(3, 4, 3, stride=2, padding=1), 3, 8, 8),
    "no zero padding": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), 3, 8, 8),
    "video": (nn.Conv3d(3, 4, 3), 3, 5, 8, 8),
}
OTHERS = {
    "gray": (nn.Conv2d(1, 4, 3), 1, 8, 8),
    "patches": (nn.Conv2d(3, 4, 4, stride=4), 3, 8, 8),
    "single pixels": (nn.Conv2d(3, 4, 1), 3, 8, 8),
    "each channel apart": (nn.Conv2d(3, 6, 3, groups=3), 3, 8, 8),
    "four channels": (nn.Conv2d(4, 4, 3), 4, 8, 8),
    "series of three channels": (nn.Conv1d(3, 4, 3), 3, 12),
    "transposed": (nn.ConvTranspose2d(3, 4, 3), 3, 6, 6),
}


@pytest.mark.parametrize("kind", OVERLAPPING)
def test_color_pictures_have_the_flat_rule(kind):
    model, x = net(OVERLAPPING[kind][0], *OVERLAPPING[kind][1:])
    torch.testing.assert_close(*default_and(whence.Flat(), model, x))


@pytest.mark.parametrize("kind", OTHERS)
def test_other_inputs_have_gamma(kind):
    model, x = net(OTHERS[kind][0], *OTHERS[kind][1:])
    torch.testing.assert_close(*default_and(whence.RisingGamma(), model, x))


def test_only_the_layer_that_touches_the_picture():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(*default_and(whence.RisingGamma(), model, x))


def test_channels_last_and_normalisation_inside_the_model():
    convolution, x = nn.Conv2d(3, 4, 3).eval(), torch.rand(2, 8, 8, 3)
    body = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    e = whence.explain(lambda x: body(convolution((x.permute(0, 3, 1, 2) - 0.5) / 0.2)), x, 1)
    shown = e.relevance.sum(3)
    at_hidden = whence.explain(body, convolution((x.permute(0, 3, 1, 2) - 0.5) / 0.2).detach(), 1)
    shares = at_hidden.relevance.sum(1) / 9  # of each of the nine pixels of a window
    flat = torch.nn.functional.conv_transpose2d(shares[:, None], torch.ones(1, 1, 3, 3))[:, 0]
    torch.testing.assert_close(shown, flat)


def test_own_rules_go_first_and_gradients_are_plain():
    model, x = net(nn.Conv2d(3, 4, 3), 3, 8, 8)
    gamma = whence.explain(model, x, 1, method=whence.LRP({nn.Conv2d: whence.Gamma(0.1)} | presets.attn_lrp()))
    by_path = whence.explain(model, x, 1, method=whence.LRP({"0": whence.Gamma(0.1)} | presets.attn_lrp()))
    torch.testing.assert_close(gamma.relevance, by_path.relevance)
    x.requires_grad_()
    with whence.relevance_rules(model, presets.attn_lrp()):
        (g,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    torch.testing.assert_close(x.detach() * g, gamma.relevance)  # RisingGamma of one layer is γ 0.1


# pictures that are modified before the convolution reads them

MEAN = torch.tensor([0.4, 0.5, 0.6])[:, None, None]
INSIDE = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.3


def in_place(x):
    x = x.clone()
    x -= MEAN
    x /= 0.2
    return x


MODIFIED = {
    "in place": in_place,
    "clamp": lambda x: (x * 1.2).clamp(0, 1),
    "own statistics": lambda x: (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True),
    "negative": lambda x: 1 - x,
}
MASKED = {
    "masked_fill": lambda x: x.masked_fill(~INSIDE, 0.5),
    "where": lambda x: torch.where(INSIDE, x, 0.5),
    "product": lambda x: x * INSIDE,
}
OWN_MASKS = MASKED | {
    "own mask": lambda x: x * (x > 0.3),
    "normalised": lambda x: (x * INSIDE - 0.5) / 0.25,
    "sum with a constant": lambda x: x * INSIDE + 0.5 * ~INSIDE,
    "padded": lambda x: nn.functional.pad(x, (1, 1, 1, 1), value=0.7),
    "with ones": lambda x: torch.cat([x, torch.ones(len(x), 3, 2, 8)], 2),
    "triangle": lambda x: x.tril(),
}


@pytest.mark.parametrize("rule", [whence.Flat(), whence.WSquare(), whence.ZBox(-3.0, 3.0)])
@pytest.mark.parametrize("kind", OWN_MASKS)
def test_rules_of_the_input_layer_give_constants_nothing_and_each_sample_its_own(kind, rule):
    """The first sample has another mask than the second, and values that are not of the input are not 0."""
    change = OWN_MASKS[kind]
    body, x = net(nn.Conv2d(3, 4, 3, bias=False), *change(torch.rand(2, 3, 8, 8)).shape[1:])
    x = torch.rand(2, 3, 8, 8)
    method = whence.LRP({presets.input_layer: rule} | presets.epsilon_plus())
    e = whence.explain(lambda x: body(change(x)), x, 1, method=method)
    assert e.conservation.error.max() < 1e-4
    influence = torch.func.jacrev(change)(x).abs().sum((0, 1, 2, 3)) > 0 if kind != "own mask" else x > 0.3
    assert not e.relevance[~influence].any()
    if change(x).shape == x.shape and kind not in MASKED:  # masks of two samples
        alone = whence.explain(lambda x: body(change(x.expand(2, -1, -1, -1))[1:]), x[1:], 1, method=method)
        torch.testing.assert_close(e.relevance[1:], alone.relevance, atol=1e-5, rtol=1e-4)


RESIZED = {
    "bilinear": lambda x: nn.functional.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "nearest": lambda x: nn.functional.interpolate(x, size=(11, 13)),
    "smaller": lambda x: nn.functional.interpolate(x, size=(6, 6), mode="bilinear", antialias=True),
    "pooled": lambda x: nn.functional.avg_pool2d(x, 2),
}


def modified(change):
    body, x = net(nn.Conv2d(3, 4, 3, bias=False), *change(torch.rand(2, 3, 8, 8)).shape[1:])
    x = torch.rand(2, 3, 8, 8)
    return body, x, whence.explain(lambda x: body(change(x)), x, 1)


@pytest.mark.parametrize("kind", MODIFIED)
def test_pictures_whose_values_are_changed_have_the_flat_rule(kind):
    body, x, e = modified(MODIFIED[kind])
    inside = whence.explain(body, MODIFIED[kind](x), 1)
    torch.testing.assert_close(e.relevance, inside.relevance)
    assert not e.note


@pytest.mark.parametrize("kind", MASKED)
def test_pixels_that_a_mask_replaces_have_no_relevance(kind):
    _, x, e = modified(MASKED[kind])
    assert torch.equal(e.relevance != 0, INSIDE.expand_as(x))
    torch.testing.assert_close(e.relevance[:, 0], e.relevance[:, 1])
    assert e.conservation.error.max() < 1e-5


@pytest.mark.parametrize("kind", RESIZED)
def test_resized_pixels_give_their_relevance_to_those_they_are_made_of(kind):
    change = RESIZED[kind]
    body, x, e = modified(change)
    resized = change(x)
    inside = whence.explain(body, resized, 1).relevance
    weights = torch.func.jacrev(change)(x[:1]).flatten(4).flatten(0, 3)  # [resized, pixels]
    expected = torch.einsum("nj,ji->ni", inside.flatten(1), weights.flatten(1))
    torch.testing.assert_close(e.relevance.flatten(1), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(e.relevance.flatten(1).sum(1), inside.flatten(1).sum(1), atol=1e-5, rtol=1e-4)
    assert not e.note


OTHERWISE = {
    "channels set one by one": lambda x: torch.stack([x[:, 0] * 2, x[:, 1] + x[:, 2], x[:, 2]], 1),
    "batch norm": nn.BatchNorm2d(3).eval(),
    "other colors": lambda x: torch.einsum("dc,nchw->ndhw", torch.eye(3) + 0.1, x),
}


@pytest.mark.parametrize("kind", OTHERWISE)
def test_a_note_says_where_the_flat_rule_is_not_used_and_what_to_do(kind):
    body, x, e = modified(OTHERWISE[kind])
    assert "the flat rule of pictures is not used" in e.note
    advised = whence.explain(body, OTHERWISE[kind](x).detach(), 1)
    assert not advised.note
    torch.testing.assert_close(advised.relevance[:, 0], advised.relevance[:, 1])  # flat
    assert not whence.explain(lambda x: body(OTHERWISE[kind](x)), x, 1, method=whence.LRP(presets.epsilon_plus())).note


def test_a_note_says_that_a_baseline_replaces_rules_of_the_input_layer():
    model, x = net(nn.Conv2d(3, 4, 3), 3, 8, 8)
    dense, rows = nn.Sequential(nn.Linear(4, 3)).eval(), torch.rand(2, 4)
    for rules in (presets.attn_lrp(), presets.epsilon_plus_flat()):
        assert "the baseline replaces" in whence.explain(model, x, 1, method=whence.LRP(rules, baseline=0.5)).note
        assert not whence.explain(model, x, 1, method=whence.LRP(rules)).note
    assert not whence.explain(dense, rows, 1, method=whence.LRP(baseline=0.5)).note


# a baseline


def test_relevance_from_a_baseline_is_the_difference_times_the_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    x, baseline = torch.randn(4, 5).double().requires_grad_(), torch.randn(1, 5).double()
    (g,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    e = whence.explain(model, x.detach(), 1, method=whence.LRP(baseline=baseline))
    torch.testing.assert_close(e.relevance, ((x - baseline) * g).detach())
    assert e.conservation.error.max() < 1e-12
    torch.testing.assert_close(e.conservation.by_layer["baseline"], (baseline * g).sum(1).detach())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_baseline_of_zero_is_no_baseline_without_the_flat_rule(channels):
    model, x = net(nn.Conv2d(channels, 4, 3), channels, 8, 8)
    gamma = whence.explain(model, x, 1, method=whence.LRP({presets.input_layer: whence.RisingGamma()} | presets.attn_lrp()))
    zero = whence.explain(model, x, 1, method=whence.LRP(baseline=0))
    torch.testing.assert_close(zero.relevance, gamma.relevance)


def test_features_at_zero_have_relevance_from_a_baseline():
    """f = relu(1 − x): absence is the evidence."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.fill_(-1)
        model[0].bias.fill_(1)
    x = torch.zeros(1, 1)
    assert whence.explain(model, x, 0).relevance.item() == 0
    assert whence.explain(model, x, 0, method=whence.LRP(baseline=0.5)).relevance.item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (lambda: whence.LRP(baseline=torch.zeros(1, 4)), errors.InputError, "baselines of shape"),
        (lambda: whence.LRP({"0": whence.Flat()}, baseline=0), errors.RuleError, "Flat is a rule of the input layer"),
    ],
)
def test_baselines_that_cannot_be(method, error, message):
    model, x = net(nn.Conv2d(3, 4, 3), 3, 8, 8)
    with pytest.raises(error, match=message):
        whence.explain(model, x, 1, method=method())


def test_token_ids_have_no_baseline():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    with pytest.raises(errors.RuleError, match="IntegratedGradients"):
        whence.explain(model, torch.tensor([[1, 2, 3]]), 0, method=whence.LRP(baseline=0))
