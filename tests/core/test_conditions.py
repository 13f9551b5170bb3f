"""Relevance through parts of layers: it equals a literal masked way back, adds up, and says what it cannot do."""

import pytest
import torch
from torch import nn

import whence
from support.story_model import story_model
from whence import errors

SIDE = 8


class Residual(nn.Module):
    """A convolution, a block with a way round it, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        a = torch.relu(self.stem(x))
        b = torch.relu(a + self.outer(torch.relu(self.inner(a))))
        return self.head(b.mean((2, 3)))


class Vision(nn.Module):
    """Patches, two blocks of attention, a head on the mean."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.blocks = nn.Sequential(*[nn.TransformerEncoderLayer(12, 2, 24, 0.0, batch_first=True) for _ in range(2)])
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.fixture
def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3),
    ).double().eval()  # fmt: skip


def pictures(n=2):
    return torch.rand(n, 3, SIDE, SIDE, dtype=torch.float64)


def masked_by_hand(model, x, target, layer, units, rules):
    """A plain way back with the gradient masked by a hook, for a network without ways round the layer."""
    x = x.clone().requires_grad_()
    handle = model[layer].register_forward_hook(lambda m, i, out: out * 1)

    def mask(module, inputs, out):
        kept = torch.zeros_like(out)
        kept[:, units] = 1
        out.register_hook(lambda g: g * kept)

    other = model[layer].register_forward_hook(mask)
    try:
        with whence.relevance_rules(model, rules):
            logits = model(x)
        (g,) = torch.autograd.grad(logits[:, target].sum(), x)
    finally:
        handle.remove()
        other.remove()
    return (x * g).detach()


@pytest.mark.parametrize("rules", [{nn.Conv2d: whence.Gamma(0.25)}, {nn.Conv2d: whence.AlphaBeta(2, 1)}, {}])
def test_it_equals_a_literal_masked_way_back(cnn, rules):
    x = pictures()
    for units in ([1], [0, 3]):
        found = whence.explain(cnn, x, 2, method=whence.LRP(rules), through={"2": units})
        torch.testing.assert_close(found.relevance, masked_by_hand(cnn, x, 2, 2, units, rules))


@pytest.mark.parametrize("method", [None, whence.LRP({}), "gradient_times_input"])
@pytest.mark.parametrize("layer", ["stem", "outer", "inner"])
def test_all_channels_add_up_to_what_flows_through_the_layer(method, layer):
    model, x = Residual().double().eval(), pictures()
    whole = whence.explain(model, x, 1, method=method, layers=[layer])
    parts = list(whence.explain_targets(model, x, [1], method=method, through=[{layer: c} for c in range(6)]))
    together = whence.explain(model, x, 1, method=method, through={layer: range(6)})
    torch.testing.assert_close(sum(part.relevance for part in parts), together.relevance)
    if layer == "stem":  # everything flows through it
        torch.testing.assert_close(together.relevance, whole.relevance)
    for c, part in enumerate(parts):
        torch.testing.assert_close(part.conservation.conditional_output, whole.layers[layer][:, c].sum((1, 2)))
        torch.testing.assert_close(part.output, whole.output)
    if method is None:
        assert all(float(part.conservation.gap.abs().max()) < 1e-9 for part in parts)


@pytest.mark.parametrize("layer", ["blocks.0", "blocks.0.linear1", "blocks.1.norm1", "patches"])
def test_channels_and_places_of_a_vision_transformer_add_up(layer):
    model, x = Vision().double().eval(), pictures()
    size = 24 if layer.endswith("linear1") else 12
    together = whence.explain(model, x, 0, through={layer: range(size)}).relevance
    by_channel = whence.explain_targets(model, x, [0], through=[{layer: c} for c in range(size)])
    torch.testing.assert_close(sum(e.relevance for e in by_channel), together)
    by_place = whence.explain_targets(model, x, [0], through=[{layer: whence.Places([t])} for t in range(4)])
    torch.testing.assert_close(sum(e.relevance for e in by_place), together)
    if layer in ("patches", "blocks.0"):
        torch.testing.assert_close(together, whence.explain(model, x, 0).relevance)


def test_heads_channels_and_tokens_of_a_llama_add_up(data):
    model, ids = story_model(data).double(), torch.tensor([[1, 403, 407, 261, 378, 300]])
    target = whence.Logit(400)
    for layer, units, several in [
        ("input of model.layers.2.self_attn.o_proj", range(64), [whence.Heads([h], of=8) for h in range(8)]),
        ("model.layers.1.mlp.down_proj", range(64), [whence.Places([t]) for t in range(6)]),
        ("model.layers.3", range(64), [whence.Directions(v) for v in torch.linalg.qr(torch.randn(64, 64))[0].T]),
    ]:
        together = whence.explain(model, ids, target, through={layer: units})
        parts = whence.explain_targets(model, ids, [target], through=[{layer: one} for one in several])
        torch.testing.assert_close(
            sum(e.relevance for e in parts), together.relevance, rtol=1e-5, atol=1e-6
        )  # its norms compute in float32
        assert together.conservation.gap.abs().max() < 1e-6
    whole = whence.explain(model, ids, target, layers=["model.layers.3"])
    torch.testing.assert_close(whole.layers["model.layers.3"].sum((1, 2)), together.conservation.conditional_output)


def test_conditions_at_several_layers_multiply(cnn):
    x = pictures()
    pairs = [{"0": a, "2": b} for a in range(5) for b in range(4)]
    found = list(whence.explain_targets(cnn, x, [1], through=pairs))
    torch.testing.assert_close(sum(e.relevance for e in found), whence.explain(cnn, x, 1).relevance)
    # the relevance of channel a of the lower layer, given channel b of the upper
    given = whence.explain(cnn, x, 1, through={"2": 3}, layers=["0"])
    for a in range(5):
        torch.testing.assert_close(found[4 * a + 3].conservation.conditional_output, given.layers["0"][:, a].sum((1, 2)))
    assert (whence.explain(cnn, x, 1, through={"2": [3], "0": [2]}).relevance == found[11].relevance).all()


def test_features_of_a_dictionary_that_is_the_identity_are_channels(cnn):
    x = pictures()
    eye = torch.eye(4, dtype=torch.float64)
    up, down = (lambda a: torch.relu(a @ torch.cat([eye, -eye], 1))), (lambda f: f @ torch.cat([eye, -eye]))
    positive = whence.explain(cnn, x, 1, through={"2": whence.Features([2], up, down)})
    negative = whence.explain(cnn, x, 1, through={"2": whence.Features([6], up, down)})
    torch.testing.assert_close(positive.relevance + negative.relevance, whence.explain(cnn, x, 1, through={"2": 2}).relevance)


def test_directions_of_the_axes_are_channels(cnn):
    x = pictures()
    plane = torch.tensor([[1.0, 1, 0, 0], [1, -1, 0, 0]], dtype=torch.float64).T  # spans channels 0 and 1
    found = whence.explain(cnn, x, 1, through={"2": whence.Directions(plane)}).relevance
    torch.testing.assert_close(found, whence.explain(cnn, x, 1, through={"2": [0, 1]}).relevance)


def test_rules_at_the_input_and_layers_overwritten_in_place(cnn):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3), nn.ReLU(inplace=True), *cnn[4:])
    model = model.double().eval()
    method = whence.LRP({"0": whence.ZBox(0.0, 1.0), nn.Conv2d: whence.Gamma(0.25)})
    x = pictures()
    whole = whence.explain(model, x, 2, method=method)
    parts = whence.explain_targets(model, x, [2], method=method, through=[{"2": c} for c in range(4)])
    torch.testing.assert_close(sum(e.relevance for e in parts), whole.relevance)


def test_what_lets_nothing_through_says_so(cnn):
    with torch.no_grad():
        cnn[2].weight[1], cnn[2].bias[1] = 0, 0
    e = whence.explain(cnn, pictures(), 1, through={"2": 1})
    assert not e.relevance.any()
    assert "through 2: 1, through which no relevance flows (the layer's total relevance is" in repr(e)
    assert "through 2: 0" in repr(whence.explain(cnn, pictures(), 1, through={"2": 0}))


@pytest.mark.parametrize(("through", "message"), [
    ({"2": 4}, "layer '2': channel 4 is out of range: the layer has channels 0 to 3"),
    ({"7": 0}, "no layer '7'"),
    ({"2": "x"}, "expected channel indices"),
    ({"2": []}, "expected channel indices"),
    ({"2": True}, "expected channel indices"),
    ({}, "expected a dict from layers to parts of them"),
    ([], "expected one dict from layers to parts"),
    ([{"2": 0}, {"2": 1}], r"explain_targets\(…, through=\[…\]\) takes several"),
    ({"2": whence.Directions(torch.zeros(4))}, "all zero"),
    ({"5": whence.Places([0])}, "has no positions, only channels"),
    ({"2": whence.Places([16])}, "position 16 is out of range"),
    ({"2": whence.Heads([0], of=3)}, "cannot be divided into 3 heads"),
    ({"2": whence.Directions(torch.ones(3))}, r"expected directions \[4\] or \[4, k\], got shape \(3,\)"),
    ({"2": whence.Places}, r"expected an instance, got a class; pass Places\(…\)"),
    ({"2": whence.Features([0], lambda a: a.detach(), lambda f: f)}, "features without a gradient"),
])  # fmt: skip
def test_wrong_conditions_are_named(cnn, through, message):
    with pytest.raises(errors.SelectorError, match=message):
        whence.explain(cnn, pictures(), 1, through=through)


def test_layers_after_a_condition_layers_that_run_twice_and_methods_without_layers(cnn):
    with pytest.raises(errors.RuleError, match="layer '4' runs after 2: 0"):
        whence.explain(cnn, pictures(), 1, through={"2": 0}, layers=["4"])
    shared = nn.Linear(4, 4)
    twice = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2)).eval()
    with pytest.raises(errors.ModelError, match="layer '0' ran 2 times"):
        whence.explain(twice, torch.rand(2, 4), through={"0": 0})
    with pytest.raises(errors.RuleError, match="IntegratedGradients computes no relevance of inner layers; o"):
        whence.explain(cnn, pictures(), 1, method="integrated_gradients", through={"2": 0})


def test_nothing_stays_after_a_failure(cnn):
    with pytest.raises(errors.SelectorError):
        whence.explain(cnn, pictures(), 1, through={"2": 9})
    torch.testing.assert_close(
        whence.explain(cnn, pictures(1) * 0 + 0.5, 1).relevance, whence.explain(cnn, pictures(1) * 0 + 0.5, 1).relevance
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in cnn.modules())


def test_an_explainer_takes_conditions_too(cnn):
    x, explainer = pictures(), whence.Explainer(cnn)
    for _ in range(2):
        found = explainer(x, 1, through={"2": 0})
        torch.testing.assert_close(found.relevance, whence.explain(cnn, x, 1, through={"2": 0}).relevance)
    assert len(list(explainer.targets(x, [0, 1], through=[{"2": 0}, {"2": 1}]))) == 4


class Grouped(nn.Module):
    """Attention in place of its input's sum: the layer gives a tuple whose first tensor is a view, overwritten at once."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)
        self.in_place = in_place

    def forward(self, x):
        h, _ = self.attention(x, x, x)
        if self.in_place:
            h += x
        else:
            h = h + x
        return self.head(h.mean(1))


def test_a_view_in_a_tuple_that_is_overwritten_is_read_as_it_was():
    x = torch.randn(2, 5, 8)
    found = [Grouped(in_place).eval() for in_place in (True, False)]
    layers = [whence.explain(model, x, 1, layers=["attention"]).layers["attention"] for model in found]
    torch.testing.assert_close(*layers)
    assert layers[0].any()
    through = [whence.explain(model, x, 1, through={"attention": 1}) for model in found]
    torch.testing.assert_close(through[0].relevance, through[1].relevance)
    torch.testing.assert_close(through[0].relevance.sum(), through[0].conservation.relevance.sum())


class TurnsRound(nn.Module):
    """A block with channels last within, and first outside."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_channels_are_found_in_blocks_and_in_what_goes_into_them():
    block, head = TurnsRound(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), block, head).eval()
    x = torch.rand(2, 3, SIDE, 10)
    assert whence.channel_relevance(model, x, "2", 1).shape == (2, 6)
    before, after = (whence.channel_relevance(model, x, layer, 1) for layer in ("2", "input of 3"))
    torch.testing.assert_close(before, after)


def test_what_two_patterns_say_of_a_layer_holds_both(cnn):
    x = pictures()
    both = whence.explain(cnn, x, 1, through={"2": [0, 1], "[2]": [1, 2]}).relevance
    torch.testing.assert_close(both, whence.explain(cnn, x, 1, through={"2": 1}).relevance)


def test_directions_that_depend_on_each_other_span_what_they_span(cnn):
    x, v = pictures(), torch.randn(4, dtype=torch.float64)
    once = whence.explain(cnn, x, 1, through={"2": whence.Directions(v)}).relevance
    torch.testing.assert_close(
        whence.explain(cnn, x, 1, through={"2": whence.Directions(torch.stack([v, v], 1))}).relevance, once
    )
    places = [{"2": whence.Places(torch.tensor([k, k + 1]))} for k in (0, 2)]
    assert len(list(whence.explain_targets(cnn, x, [1], through=places))) == 2


def test_heads_and_features_take_a_number():
    net, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).eval(), torch.randn(2, 8)
    one = whence.explain(net, x, 0, through={"0": whence.Heads(2, of=4)})
    torch.testing.assert_close(one.relevance, whence.explain(net, x, 0, through={"0": whence.Heads([2], of=4)}).relevance)
    same = (
        whence.Features(1, lambda a: a, lambda f: f),
        whence.conditions.Channels(1),
        whence.Features([1], lambda a: a, lambda f: f),
    )
    found = [whence.explain(net, x, 0, through={"0": part}).relevance for part in same]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_the_output_is_one_quantity_and_what_a_condition_lets_through_another(tmp_path):
    net, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).eval(), torch.randn(2, 8)
    e = whence.explain(net, x, 0, through={"0": [1, 2]})
    assert torch.equal(e.conservation.output, e.output)
    assert not torch.allclose(e.conservation.conditional_output, e.output)
    parts = e.relevance.sum(1) + e.conservation.absorbed
    torch.testing.assert_close(parts, e.conservation.conditional_output)
    assert "through the condition" in repr(e.conservation)
    read = whence.load(e.save(tmp_path / "e.npz"))
    assert torch.equal(read.conservation.conditional_output, e.conservation.conditional_output)
    assert whence.explain(net, x, 0).conservation.conditional_output is None
