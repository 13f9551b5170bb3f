"""Every rule on every linear map against the message-by-message oracle."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from support import lrp_oracles as oracles
from support.linear_layers import LAYERS, make
from whence import LRP, AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus

pytestmark = pytest.mark.usefixtures("float64")


LINEAR = (F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


ORACLES = {
    Epsilon(1e-6): lambda a, w, b, r: oracles.epsilon(a, w, b, r, 1e-6),
    Epsilon(0.25): lambda a, w, b, r: oracles.epsilon(a, w, b, r, 0.25),
    Epsilon(0): lambda a, w, b, r: oracles.epsilon(a, w, b, r, 0),
    Gamma(0.25): lambda a, w, b, r: oracles.gamma(a, w, b, r, 0.25),
    Gamma(2): lambda a, w, b, r: oracles.gamma(a, w, b, r, 2),
    Gamma(0): lambda a, w, b, r: oracles.gamma(a, w, b, r, 0),
    AlphaBeta(2, 1): lambda a, w, b, r: oracles.alpha_beta(a, w, b, r, 2, 1),
    AlphaBeta(3, 2): lambda a, w, b, r: oracles.alpha_beta(a, w, b, r, 3, 2),
    AlphaBeta(1, 0): lambda a, w, b, r: oracles.alpha_beta(a, w, b, r, 1, 0),
    ZPlus(): lambda a, w, b, r: oracles.alpha_beta(a, w, b, r, 1, 0),
}


def relevance(layer, x, rule, seed=7):
    """Relevance of x for a random weighting g of the layer's outputs, so that R = z g there; and that R."""
    g = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(seed))
    e = whence.explain(layer, x, lambda z: (z * g).flatten(1).sum(1), method=whence.LRP({LINEAR: rule}))
    return e, (layer(x) * g).detach().flatten().numpy()


def assert_close(found: torch.Tensor, expected: np.ndarray):
    expected = torch.from_numpy(expected).view_as(found)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("rule", ORACLES, ids=repr)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("positive_input", [False, True], ids=["signed", "nonnegative"])
@pytest.mark.parametrize("rectified", [False, True], ids=["linear", "relu"])
def test_rule_equals_the_messages(name, rule, bias, positive_input, rectified):
    layer, _, x = make(name, bias)
    x = x.abs() if positive_input else x
    model = (lambda v: F.relu(layer(v))) if rectified else layer
    e, r = relevance(model, x, rule)
    w, b = oracles.dense_form(layer, x)
    assert_close(e.relevance, ORACLES[rule](x.flatten().numpy(), w, b, r))
    assert e.conservation.error.max() < 1e-9


@pytest.mark.parametrize("name", LAYERS)
def test_input_rules_equal_the_messages(name):
    layer, connected, x = make(name, bias=True)
    w, b = oracles.dense_form(layer, x)
    a = x.flatten().numpy()
    low, high = x - torch.rand_like(x), x + torch.rand_like(x) + 0.1
    box, r = relevance(layer, x, ZBox(low, high))
    assert_close(box.relevance, oracles.z_box(a, w, b, r, low.flatten().numpy(), high.flatten().numpy()))
    square, r = relevance(layer, x, WSquare())
    assert_close(square.relevance, oracles.w_square(a, w, b, r))
    even, r = relevance(layer, x, Flat())
    assert_close(even.relevance, oracles.flat(a, *oracles.dense_form(connected, x), r))
    for e in (box, square, even):
        assert e.conservation.error.max() < 1e-9


@pytest.mark.parametrize(
    "convolution", [nn.Conv2d(3, 4, 3, groups=1), nn.ConvTranspose2d(4, 6, 2, groups=2)], ids=["conv", "transposed"]
)
@pytest.mark.parametrize("rule", [Epsilon(0.25), Gamma(2), AlphaBeta(2, 1), ZPlus()], ids=repr)
def test_batch_norm_is_folded_into_the_map_before_it(convolution, rule):
    convolution = convolution.double()
    norm = nn.BatchNorm2d(convolution.out_channels).eval()
    for t in (norm.running_mean, norm.weight, norm.bias):
        nn.init.normal_(t)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    model = nn.Sequential(convolution, norm).eval()
    x = torch.randn(1, convolution.in_channels, 4, 4)
    e, r = relevance(lambda v: model(v), x, rule)
    w, b = oracles.dense_form(model, x)
    assert_close(e.relevance, ORACLES[rule](x.flatten().numpy(), w, b, r))


def test_frozen_batch_norm_is_folded_too():
    from torchvision.ops import FrozenBatchNorm2d

    norm = FrozenBatchNorm2d(4)
    for t in (norm.running_mean, norm.weight, norm.bias):
        t.normal_()
    norm.running_var.uniform_(0.5, 2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm).eval()
    x = torch.randn(1, 3, 5, 4)
    e, r = relevance(lambda v: model(v), x, Gamma(0.25))
    assert_close(e.relevance, oracles.gamma(x.flatten().numpy(), *oracles.dense_form(model, x), r, 0.25))


def test_a_filter_without_negative_contributions_has_none():
    """z − P is rounding noise there: without the guard α2β1 in float32 is off by a quarter."""
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 32, 3, bias=False).float()
    nn.init.uniform_(layer.weight, 0, 0.1)
    x = torch.rand(1, 64, 10, 10, dtype=torch.float32)
    model = nn.Sequential(nn.ReLU(), layer, nn.ReLU()).eval()
    e = whence.explain(model, x, lambda z: z.flatten(1).sum(1), method=whence.LRP({nn.Conv2d: AlphaBeta(2, 1)}))
    exact = whence.explain(
        model.double(), x.double(), lambda z: z.flatten(1).sum(1), method=whence.LRP({nn.Conv2d: AlphaBeta(2, 1)})
    )
    assert torch.allclose(e.relevance.double(), exact.relevance, rtol=1e-4, atol=1e-4 * exact.relevance.abs().max())


@pytest.mark.parametrize("rule", [AlphaBeta(2, 1), ZPlus(), Gamma(0.25)], ids=repr)
@pytest.mark.parametrize("size", [1e-300, 1e-302, 1e-305, 1e-308])
def test_negligible_contributions_do_not_overflow(rule, size):
    x = torch.tensor([[size, -3.0, 2e-1]])
    w = torch.tensor([[1.0, 2.0, -1.0], [2.0, -1.0, 0.5]])
    g = torch.tensor([1e6, 2.0])
    e = whence.explain(lambda x: F.linear(x, w), x, lambda z: (z * g).sum(1), method=whence.LRP({F.linear: rule}))
    assert torch.isfinite(e.relevance).all()
    assert e.conservation.error.max() < 1e-9


@pytest.mark.parametrize("rule", [Epsilon(0), Epsilon(1e-6), Gamma(0.25), AlphaBeta(2, 1), ZPlus(), ZBox(0, 1)], ids=repr)
def test_zero_input_has_zero_relevance_and_no_nan(rule):
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.Tanh(), nn.Conv2d(3, 2, 3, bias=False), nn.Flatten()).eval()
    x = torch.zeros(1, 1, 7, 7)
    x[..., 5:, 5:] = 0.3
    first = {"0": rule} | ({"2": Gamma(0.25)} if rule == ZBox(0, 1) else {"2": rule})
    r = whence.explain(model, x, lambda z: z.sum(1), method=whence.LRP(first)).relevance
    assert torch.isfinite(r).all()


@pytest.mark.parametrize(
    ("make_rule", "message"),
    [
        (lambda: AlphaBeta(2, 0), "must be 1"),
        (lambda: AlphaBeta(0, -1), "must not be negative"),
        (lambda: Epsilon(-1), "must not be negative"),
        (lambda: Gamma(-0.1), "must not be negative"),
        (lambda: ZBox(1, 0), "low must be below high"),
        (lambda: ZBox(torch.zeros(3, 1, 1), torch.zeros(3, 1, 1)), "low must be below high"),
    ],
)
def test_rules_against_their_definition_are_refused(make_rule, message):
    with pytest.raises(whence.errors.RuleError, match=message):
        make_rule()


def test_alpha_minus_beta_is_one_up_to_rounding():
    AlphaBeta(2.3, 1.3)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rule", [AlphaBeta(2, 1, bias=False), AlphaBeta(1, 0, bias=False), ZPlus(bias=False)], ids=repr)
def test_biases_may_be_left_out_of_the_sums(rule, signed):
    """The course's (4.10): R_j = Σ_k (α (a_j w_jk)⁺ / Σ_j (a_j w_jk)⁺ − β (a_j w_jk)⁻ / Σ_j (a_j w_jk)⁻) R_k, total."""
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)
    x = x if signed else x.abs()
    alpha, beta = (rule.alpha, rule.beta) if isinstance(rule, AlphaBeta) else (1, 0)
    for model in (layer, nn.Sequential(layer, nn.ReLU())):
        e = whence.explain(model.eval(), x, lambda y: y.sum(1), method=LRP({F.linear: rule}))
        parts = x[:, None] * layer.weight  # [N, k, j]
        rising, falling = parts.clamp(min=0), parts.clamp(max=0)
        shares = alpha * rising / rising.sum(2, keepdim=True) - (beta * falling / falling.sum(2, keepdim=True) if beta else 0)
        assert torch.allclose(e.relevance, (shares * model(x)[..., None]).sum(1), rtol=1e-9)
        assert torch.allclose(e.conservation.relevance, e.output)  # total: every output has contributions of both signs
        assert e.conservation.error.max() < 1e-9
        with_bias = whence.explain(model, x, lambda y: y.sum(1), method=LRP({F.linear: replace(rule, bias=True)}))
        assert not torch.allclose(with_bias.relevance, e.relevance)


def test_relevance_of_outputs_of_a_bias_alone_is_absorbed():
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(-1.0)
        layer.bias.fill_(5.0)
    for model in (layer, nn.Sequential(layer, nn.ReLU()).eval()):
        e = whence.explain(model.eval(), torch.ones(1, 2), 0, method=LRP({F.linear: ZPlus(bias=False)}))
        assert not e.relevance.any()
        assert torch.allclose(e.conservation.absorbed, e.output)


@pytest.mark.parametrize("bias", [True, False])
def test_relevance_and_counter_relevance_apart(bias):
    net, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), torch.randn(3, 5)
    above = {"2": AlphaBeta(2, 1, bias)}
    both, relevance, counter = (
        whence.explain(net, x, 1, method=LRP({"0": AlphaBeta(2, 1, bias, part)} | above))
        for part in ("both", "relevance", "counter-relevance")
    )
    assert torch.allclose(relevance.relevance + counter.relevance, both.relevance)
    assert counter.conservation.error.max() < 1e-9
    with pytest.raises(whence.errors.RuleError, match="choose 'both'"):
        AlphaBeta(part="all")


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.left, self.right, self.head = (
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 2), (2, 2), (2, 2), (2, 3))
        )

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.head(F.relu(self.left(x)) + F.relu(self.right(x))).mean((2, 3))


def test_rising_gamma_rises_with_the_longest_path_from_the_output():
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.rand(2, 1, 6, 6)
    rules = {"head": Gamma(0.3), "right": Gamma(0.6), "left": Gamma(0.6), "first": Gamma(3 * 0.3)}
    expected = whence.explain(model, x, 1, method=LRP(rules)).relevance
    method = LRP({nn.Conv2d: whence.RisingGamma(0.3)})
    assert torch.allclose(whence.explain(model, x, 1, method=method).relevance, expected, atol=1e-9)
    anything = LRP({F.conv2d: whence.RisingGamma(0.3)})
    assert torch.allclose(whence.explain(lambda x: model(x), x, 1, method=anything).relevance, expected, atol=1e-9)
    explainer = whence.Explainer(model, method)
    assert torch.allclose(explainer(x, 1).relevance, expected, atol=1e-9)
    assert torch.allclose(explainer(x, 1).relevance, expected, atol=1e-9)
    _, again = explainer.targets(x, [0, 1])  # several ways back from one forward pass
    assert torch.allclose(again.relevance, expected, atol=1e-9)
    inner, outer = explainer.targets(x, [whence.objectives.Neuron("left", 1), 1])  # of different lengths
    assert torch.allclose(outer.relevance, expected, atol=1e-9)
    short = whence.explain(model, x, whence.objectives.Neuron("left", 1), method=LRP({"left": Gamma(0.3), "first": Gamma(0.6)}))
    assert torch.allclose(inner.relevance, short.relevance, atol=1e-9)


class Uneven(Branches):
    """A long and a short branch, in either order; the short one counts from the end of the long one where it starts."""

    def __init__(self, short_first):
        super().__init__()
        self.short_first = short_first

    def forward(self, x):
        x = F.relu(self.first(x))
        if self.short_first:
            short = F.relu(self.right(x))
            long = F.relu(self.left(F.relu(self.left(x))))
        else:
            long = F.relu(self.left(F.relu(self.left(x))))
            short = F.relu(self.right(x))
        unused = self.head(self.right(short))  # no path leads from the output to it
        return self.head(long + short).mean((2, 3)) + 0 * unused.detach().sum()


def test_the_order_of_branches_changes_no_depth():
    torch.manual_seed(0)
    model, x = Uneven(True).eval(), torch.rand(2, 1, 6, 6)
    other = Uneven(False).eval()
    other.load_state_dict(model.state_dict())
    a, b = (whence.explain(net, x, 1).relevance for net in (model, other))
    assert torch.allclose(a, b, atol=1e-12)
    vmapped = torch.func.vmap(lambda sample: model(sample[None])[0])
    assert torch.allclose(whence.explain(vmapped, x, 1).relevance, a, atol=1e-12)
    by_hand = {"head": Gamma(0.1), "right": Gamma(0.2), "first": Gamma(0.4)}

    class ByCall(nn.Module):  # as `left` runs at two depths, its copies have rules of their own
        def __init__(self):
            super().__init__()
            self.first, self.right, self.head = model.first, model.right, model.head
            self.upper, self.lower = model.left, copy.deepcopy(model.left)

        def forward(self, x):
            x = F.relu(self.first(x))
            return self.head(F.relu(self.upper(F.relu(self.lower(x)))) + F.relu(self.right(x))).mean((2, 3))

    rules = LRP(by_hand | {"upper": Gamma(0.2), "lower": Gamma(0.3)})
    expected = whence.explain(ByCall().eval(), x, 1, method=rules).relevance
    found = whence.explain(model, x, 1, method=LRP({nn.Conv2d: whence.RisingGamma(0.1)})).relevance
    assert torch.allclose(found, expected, atol=1e-12)


def test_rising_gamma_within_ones_own_loop():
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.rand(2, 1, 6, 6, requires_grad=True)
    with whence.relevance_rules(model, {nn.Conv2d: whence.RisingGamma(0.3)}):
        logits = model(x)
    for _ in range(2):
        (g,) = torch.autograd.grad(logits[:, 1].sum(), x, retain_graph=True)
        expected = whence.explain(model, x.detach(), 1, method=LRP({nn.Conv2d: whence.RisingGamma(0.3)})).relevance
        assert torch.allclose(x.detach() * g, expected, atol=1e-6)


def test_rising_gamma_must_rise():
    with pytest.raises(whence.errors.RuleError, match="step of γ must be positive"):
        whence.RisingGamma(0)


def test_little_relevance_is_said_in_words():
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-4)
        model[0].bias.fill_(5.0)
    account = whence.explain(model, torch.rand(2, 3), 0).conservation
    assert "reached the input" in repr(account)
    assert "'0' absorbed most" in account.caution
    assert not whence.explain(nn.Linear(3, 2, bias=False).eval(), torch.rand(2, 3), 0).conservation.caution


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (-torch.ones(3, 1, 1), torch.ones(3, 1, 1))])
def test_inputs_outside_the_bounds_of_z_b_are_said(low, high, layout):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    inside = torch.rand(2, 3, 8, 8).to(memory_format=layout)
    rules = {"0": ZBox(low, high)}
    whence.explain(net, inside, 1, method=whence.LRP(rules))  # warnings are errors here
    for outside in (inside + 3, torch.cat([inside[:1], inside[:1] - 5])):
        with pytest.warns(UserWarning, match="outside of the bounds of ZBox"):
            whence.explain(net, outside, 1, method=whence.LRP(rules))
