"""What the function mode sees, refuses and keeps right: the situations other libraries get wrong in silence."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from hidden import Hidden
from whence import LRP, AlphaBeta, Constant, Epsilon, Flat, Gamma, Gradient, Identity, ZBox, ZPlus, presets

X = torch.linspace(-2, 2, 12, dtype=torch.float64).view(3, 4)
pytestmark = pytest.mark.usefixtures("float64")


def first(y):
    return y[:, 0]


def sums(e):
    return e.relevance.flatten(1).sum(1)


# the rows of zennit's single-operation probes


def test_a_module_used_twice_equals_separate_copies():
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4)
    method = LRP({nn.Linear: Gamma(0.3)})
    shared = whence.explain(nn.Sequential(layer, nn.ReLU(), layer).eval(), x, first, method=method)
    copies = whence.explain(nn.Sequential(layer, nn.ReLU(), other).eval(), x, first, method=method)
    assert torch.allclose(shared.relevance, copies.relevance, rtol=1e-12)


def test_a_functional_residual_is_not_doubled():
    layer = nn.Linear(4, 4, bias=False)
    e = whence.explain(lambda x: x + F.relu(layer(x)), torch.randn(2, 4), first, method=LRP({F.linear: Epsilon(0)}))
    assert torch.allclose(sums(e), e.output, rtol=1e-12)


@pytest.mark.parametrize(
    "spelling", [nn.GELU().eval(), F.gelu, torch.nn.functional.gelu, lambda x: F.gelu(x, approximate="tanh")]
)
def test_an_activation_passes_relevance_unchanged_however_it_is_called(spelling):
    x = torch.randn(2, 4)
    e = whence.explain(spelling, x, first)
    assert torch.allclose(sums(e), e.output, rtol=1e-12)


def test_an_activation_is_right_at_zero():
    x = torch.zeros(1, 3).requires_grad_()
    with whence.relevance_rules(None, {}):
        y = F.silu(x)
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[0.5] * 3]  # the limit of silu(x)/x


def test_a_module_with_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4, bias=False), nn.Linear(5, 4, bias=False)

        def forward(self, x, y, scale=1.0):
            return F.relu(self.a(x) + scale * self.b(y))

    model = Two().eval()
    x, y = torch.randn(2, 3), torch.randn(2, 5)
    e = whence.explain(model, (x, y), first, method=LRP({nn.Linear: Epsilon(0)}))
    assert isinstance(e.relevance, tuple)
    assert torch.allclose(e.relevance[0].sum(1) + e.relevance[1].sum(1), e.output, rtol=1e-12)
    named = whence.explain(model, {"x": x, "y": y}, first, method=LRP({nn.Linear: Epsilon(0)}))
    assert torch.equal(named.relevance["y"], e.relevance[1])


def test_a_user_tensor_as_a_constant_input_gets_no_relevance():
    e = whence.explain(lambda x, i: x[:, i], (torch.randn(2, 5), torch.tensor([1, 2])), lambda y: y.sum(1))
    assert e.relevance[1] is None


# overwriting


def test_values_that_are_overwritten_later_are_kept():
    layer = nn.Linear(4, 4)
    x = torch.randn(2, 4)

    def out_of_place(x):
        y = layer(x)
        return F.linear(torch.relu(y + x) * 2, layer.weight)

    def in_place(x):
        y = layer(x)
        y += x
        y.relu_()
        y.mul_(2)
        return F.linear(y, layer.weight)

    for rule in (Gamma(0.25), Epsilon(0.1), ZPlus()):
        a, b = (whence.explain(f, x, first, method=LRP({F.linear: rule})) for f in (out_of_place, in_place))
        assert torch.allclose(a.relevance, b.relevance, rtol=1e-10)


@pytest.mark.parametrize("rule", [Gamma(0.25), Epsilon(0.1)], ids=repr)
def test_an_input_overwritten_before_the_relu_is_not_taken_for_the_maps_input(rule):
    layer = nn.Linear(4, 4)

    def in_place(x):
        a = x * 2
        z = layer(a)
        a.add_(1)
        return F.relu(z) + a

    x = torch.randn(2, 4)
    expected = whence.explain(lambda x: F.relu(layer(x * 2)) + (x * 2 + 1), x, first, method=LRP({F.linear: rule}))
    e = whence.explain(in_place, x, first, method=LRP({F.linear: rule}))
    assert torch.allclose(e.relevance, expected.relevance, rtol=1e-10)


def test_cells_share_copies_of_the_same_view_alone():
    from whence.lrp.torch_compat.saved_tensors import SavedTensors

    cells, t = SavedTensors(), torch.arange(4.0)
    saved = [cells.save(t), cells.save(t), cells.save(t[1:])]
    cells.before_overwriting(t)
    t.zero_()
    assert [cell.value.tolist() for cell in saved] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3]]
    assert saved[0].value.data_ptr() == saved[1].value.data_ptr()


def test_what_was_overwritten_unseen_is_not_copied_as_if_it_were_right():
    from whence.lrp.torch_compat.saved_tensors import SavedTensors

    cells, t = SavedTensors(), torch.arange(4.0)
    saved = cells.save(t)
    t.zero_()  # unseen
    cells.before_overwriting(t)
    with pytest.raises(whence.errors.ModelError, match="overwritten where whence could not see"):
        saved.value  # noqa: B018


@pytest.mark.parametrize("activation", [F.leaky_relu, F.hardtanh, F.celu, F.rrelu])
def test_activations_that_overwrite(activation):
    first_layer, second = nn.Linear(4, 4), nn.Linear(4, 4)
    method = LRP({F.linear: Gamma(0.3)})
    a, b = (
        whence.explain(lambda x, inplace=inplace: second(activation(first_layer(x), inplace=inplace)), X, first, method=method)
        for inplace in (False, True)
    )
    assert torch.allclose(a.relevance, b.relevance, rtol=1e-10)


def test_views_that_are_overwritten():
    layer = nn.Linear(4, 4, bias=False)

    def model(x):
        y = layer(x)
        z = layer(y.view(2, 4))
        y[:, :2].relu_()
        y[:, 2:] = 0
        return z + y

    e = whence.explain(model, torch.randn(2, 4), first, method=LRP({F.linear: Gamma(0.5)}))
    assert torch.allclose(sums(e), e.output, rtol=1e-10)


def test_the_users_input_is_not_overwritten():
    x = torch.randn(2, 4)
    before = x.clone()
    e = whence.explain(lambda v: v.mul_(2).sub_(1), x, first)
    assert torch.equal(x, before)
    assert torch.allclose(e.conservation.absorbed, torch.tensor(-1.0))


def test_an_overwritten_gate_is_constant():
    e = whence.explain(lambda x: x * (x * 2).sigmoid_(), torch.randn(2, 3), first)
    assert torch.allclose(sums(e), e.output, rtol=1e-12)


# products, statistics, winners


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x * x.roll(1, 1), lambda x: x**3, lambda x: x.square(), lambda x: x / (1 + x.abs()), lambda x: F.normalize(x),
        lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5), lambda x: F.rms_norm(x, (3,)),
        lambda x: torch.einsum("ni,nj->nij", x, x).sum(2), lambda x: torch.maximum(x, x.roll(1, 1)), lambda x: x.amax(1, True),
        lambda x: x.sort(1).values, lambda x: torch.stack(x.unbind(1), 1), lambda x: x.clamp(-1, 1), lambda x: F.hardtanh(x),
        lambda x: torch.where(x > 0, x, 2 * x), lambda x: x - x.mean(1, keepdim=True), lambda x: F.layer_norm(x, (3,)),
        lambda x: x.norm(dim=1, keepdim=True), lambda x: sum(t for t in x.split(1, 1)), lambda x: F.softsign(x),
    ],
)  # fmt: skip
def test_functions_that_conserve(model):
    e = whence.explain(model, torch.randn(3, 3), first)
    assert torch.allclose(sums(e), e.output, rtol=1e-9)
    assert torch.allclose(e.conservation.error, torch.zeros(3), atol=1e-9)


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x + 1, lambda x: 2 - x, lambda x: torch.cat([x, torch.ones(3, 2)], 1), lambda x: F.pad(x, (1, 1), value=2.0),
        lambda x: x.masked_fill(x > 0.5, 3.0), lambda x: torch.where(x > 0, x, torch.tensor(0.7)),
        lambda x: torch.clamp(x, min=0.5),
        lambda x: torch.maximum(x, torch.tensor(0.3)), lambda x: F.layer_norm(x, (3,), None, torch.ones(3)),
        lambda x: x.softmax(1),
        lambda x: x.index_fill(1, torch.tensor([0]), 5.0), lambda x: torch.log_softmax(x, 1), lambda x: x.clamp_min(0.2),
    ],
)  # fmt: skip
def test_what_constants_and_softmax_take_is_measured(model):
    e = whence.explain(model, torch.randn(3, 3), first)
    assert torch.allclose(sums(e) + e.conservation.absorbed, e.output, rtol=1e-9)


# refusals


def test_an_unknown_function_is_named_with_its_module_and_a_cure():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.i0(x)

    model = nn.Sequential(nn.Linear(3, 3), Odd()).eval()
    with pytest.raises(whence.errors.UnknownFunctionError, match=r"'special_i0' in '1' .*whence.Identity\(\)"):
        whence.explain(model, torch.randn(1, 3))


@pytest.mark.parametrize("rule", [Identity(), Gradient()])
def test_an_unknown_function_can_be_given_a_rule(rule):
    model = lambda x: torch.special.i1(x)  # noqa: E731
    e = whence.explain(model, torch.randn(2, 3), first, method=LRP({torch.special.i1: rule}))
    assert torch.allclose(sums(e) + e.conservation.absorbed, e.output, rtol=1e-9)


def test_the_own_gradient_can_be_asked_for_everywhere():
    model, x = (lambda x: torch.special.i1(x)), torch.randn(2, 3)
    plain = whence.explain(model, x, first, method="gradient_times_input").relevance
    assert torch.allclose(whence.explain(model, x, first, method=LRP(unknown="gradient")).relevance, plain)
    with pytest.warns(UserWarning, match="special_i1"):
        whence.explain(model, x, first, method=LRP(unknown="warn"))


def test_a_gate_before_the_output_is_explained_in_words():
    with pytest.raises(whence.errors.ModelError, match=r"sigmoid in .* held constant .* logits"):
        whence.explain(lambda x: torch.sigmoid(x), torch.randn(2, 3), first)


@pytest.mark.parametrize("saturating", [torch.sigmoid, lambda z: z.softmax(1), lambda z: F.log_softmax(z, 1), F.logsigmoid])
@pytest.mark.parametrize("rules", [presets.attn_lrp(), presets.cp_lrp(), {}], ids=repr)
def test_a_class_behind_a_plain_sigmoid_or_softmax_is_the_value_before_it(saturating, rules):
    layer, x = nn.Linear(3, 4), torch.randn(2, 3)
    plain = whence.explain(lambda x: layer(x), x, 2, method=LRP(rules))
    for end in (saturating, lambda z: saturating(z).reshape(2, 2, 2).flatten(1)):
        e = whence.explain(lambda x, end=end: end(layer(x)), x, 2, method=LRP(rules))
        if end is saturating or not saturating(torch.zeros(2, 4, requires_grad=True)).requires_grad:
            assert torch.allclose(e.relevance, plain.relevance)
            assert torch.equal(e.output, plain.output)
            assert "before the final" in repr(e)
    assert not plain.note


def test_a_rule_for_the_sigmoid_is_what_the_user_wants():
    layer, x = nn.Linear(3, 4), torch.randn(2, 3)
    e = whence.explain(lambda x: layer(x).sigmoid(), x, 2, method=LRP({torch.sigmoid: Gradient()}))
    assert torch.allclose(e.output, layer(x).sigmoid()[:, 2])
    assert not e.note


def test_one_value_a_sample_however_it_is_squeezed():
    layer, x = nn.Linear(3, 1), torch.randn(2, 3)
    plain = whence.explain(lambda x: layer(x), x)
    for model in (lambda x: layer(x)[:, 0], lambda x: layer(x).squeeze(1), lambda x: layer(x).sigmoid().squeeze()):
        assert torch.allclose(whence.explain(model, x).relevance, plain.relevance)
        assert torch.allclose(whence.explain(model, x[:1]).relevance, plain.relevance[:1])


def test_where_gates_took_all_relevance_zeros_are_no_answer():
    layer, x = nn.Linear(3, 4), torch.randn(2, 3)
    detector = lambda x: torch.cat([layer(x)[:, :2], layer(x)[:, 2:].sigmoid().view(2, 2)], 1)  # noqa: E731
    with pytest.raises(whence.errors.ModelError, match=r"no relevance reaches the input; sigmoid .*whence.objectives.Neuron"):
        whence.explain(detector, x, lambda y: y[:, 3])
    assert whence.explain(detector, x, lambda y: y[:, 0]).relevance.any()
    assert not whence.explain(lambda x: F.relu(layer(x) - 99) + 1, x, first).relevance.any()  # a dead ReLU: that is the answer


def test_a_gate_can_be_given_another_rule():
    e = whence.explain(lambda x: torch.sigmoid(x), torch.randn(2, 3), first, method=LRP({torch.sigmoid: Gradient()}))
    assert e.conservation.error.max() < 1e-9


def test_a_known_function_can_be_held_constant():
    model = lambda x: torch.tanh(x) * x  # noqa: E731
    e = whence.explain(model, torch.randn(2, 3), first, method=LRP({torch.tanh: Constant()}))
    assert torch.allclose(sums(e), e.output)


def test_an_autograd_function_is_opaque():
    with pytest.raises(whence.errors.OpaqueError, match="HiddenBackward"):
        whence.explain(lambda x: Hidden.apply(x) + 1, torch.randn(2, 3), first)


def test_a_tensor_from_outside_the_rules_is_opaque():
    x = torch.randn(1, 3, requires_grad=True)
    y = x * 2
    with whence.relevance_rules(None, {}):
        z = y + 1
    with pytest.raises(whence.errors.OpaqueError, match="MulBackward"):
        z.sum().backward()


@pytest.mark.filterwarnings("ignore")
def test_scripted_traced_and_exported_modules_are_opaque():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval(), torch.randn(2, 3)
    for opaque in (torch.jit.script(model), torch.jit.trace(model, x)):
        with pytest.raises(whence.errors.OpaqueError, match="original"):
            whence.explain(opaque, x)
    with pytest.raises(whence.errors.ModelError):
        whence.explain(torch.export.export(model, (x,)).module(), x)


# selectors


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()


def test_selectors_by_path_glob_class_function_and_order():
    model, x = net(), torch.randn(2, 1, 6, 6)
    explained = [
        whence.explain(model, x, method=LRP(rules)).relevance
        for rules in (
            {"0": Gamma(1), "2": Gamma(1)},
            {"[02]": Gamma(1)},
            {nn.Conv2d: Gamma(1)},
            {F.conv2d: Gamma(1), nn.Linear: Epsilon()},
            {nn.Conv2d: Gamma(1), "*": Epsilon()},
            {(nn.Conv2d, nn.Linear): Gamma(1)},
        )
    ]
    assert all(torch.equal(r, explained[0]) for r in explained[:5])
    assert not torch.allclose(explained[5], explained[0])


def test_a_path_selects_everything_inside():
    model = nn.Sequential()
    model.add_module("body", net())
    x = torch.randn(1, 1, 6, 6)
    assert torch.equal(*(whence.explain(model.eval(), x, method=LRP({s: Gamma(1)})).relevance for s in ("body", "body.*")))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"3": Gamma()}, r"'3' matched no linear map"),
        ({"feature.0": Gamma()}, r"'feature.0' matched no"),
        ({nn.Conv3d: Gamma()}, "Conv3d matched no"),
        ({F.conv1d: Gamma()}, "conv1d matched no"),
        ({"*": Gamma(), "0": Epsilon()}, r"'0' matched no linear map of the model that no earlier selector took"),
        ({"0": Identity()}, "matched no nonlinear function"),
        ({int: Gamma()}, "int is no torch.nn.Module class"),
        ({3: Gamma()}, "3 is neither"),
    ],
)
def test_a_selector_that_matches_nothing_is_an_error(rules, message):
    with pytest.raises(whence.errors.SelectorError, match=message):
        whence.explain(net(), torch.randn(1, 1, 6, 6), method=LRP(rules))


def test_a_mistyped_layer_is_suggested():
    model = nn.Sequential()
    model.add_module("body", net())
    with pytest.raises(whence.errors.SelectorError, match="did you mean 'body'"):
        whence.explain(model.eval(), torch.randn(1, 1, 6, 6), layers=["bod"])


def test_rules_of_the_input_layer_belong_there():
    with pytest.raises(whence.errors.RuleError, match="touches the input"):
        whence.explain(net(), torch.randn(1, 1, 6, 6), method=LRP({"2": Flat()}))


def test_rules_in_front_of_a_preset():
    model, x = net(), torch.rand(1, 1, 6, 6)
    a = whence.explain(model, x, method=LRP({"0": ZBox(0, 1)} | whence.presets.epsilon_gamma()))
    b = whence.explain(model, x, method=LRP(whence.presets.epsilon_gamma_box(0, 1)))
    assert torch.equal(a.relevance, b.relevance)


def test_the_pixel_box_behind_a_normalisation_inside_the_model():
    """The input reaches the first convolution shifted, scaled, cut and padded: relevance still lands on it whole."""
    convolution = nn.Conv2d(3, 4, 3)
    mean, std = torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5

    def model(x):
        x = F.pad((x - mean) / std, (1, 1, 1, 1))
        x = torch.cat([x[:, :1], x[:, 1:]], 1)
        return convolution(x).flatten(1)

    box = ZBox(((0 - mean) / std).amin(), ((1 - mean) / std).amax())
    x = torch.rand(2, 3, 5, 5)
    e = whence.explain(model, x, first, method=LRP({F.conv2d: box}))
    assert torch.allclose(sums(e), e.output, rtol=1e-10)


# layers, targets, loops


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


# the battery every method passes

BATTERY = [
    LRP(),
    LRP(whence.presets.epsilon_plus()),
    LRP(whence.presets.epsilon_gamma_box(-5, 5)),
    "gradient_times_input",
    "sensitivity",
    "integrated_gradients",
    whence.ExpectedGradients(torch.linspace(-1, 1, 3 * 36).view(3, 1, 6, 6), n_samples=20),
    "smooth_grad",
    whence.SmoothGrad(LRP(), n_samples=4, kind="vargrad"),
    "guided_backprop",
    "deconvnet",
    "grad_cam",
    "layer_cam",
    "simple_taylor",
    whence.SimpleTaylor("origin"),
    "occlusion",
    "feature_ablation",
    whence.RISE(n_samples=30),
    whence.Shapley(feature_mask=whence.patches(torch.zeros(1, 1, 6, 6), 2), interactions="sii"),
    whence.Shapley(budget=100),
    whence.Shapley(budget=200, estimator="permutation"),
]


@pytest.mark.parametrize("method", BATTERY, ids=[f"{i}-{m if isinstance(m, str) else m.name}" for i, m in enumerate(BATTERY)])
def test_battery(method):
    model, x = net(), torch.randn(4, 1, 6, 6).clamp(-4, 4)
    e = whence.explain(model, x, [0, 1, 2, 1], method=method)
    assert e.relevance.shape == x.shape
    assert e.relevance.dtype == x.dtype
    assert not e.relevance.requires_grad
    again = whence.explain(model, x, [0, 1, 2, 1], method=method)
    assert torch.equal(e.relevance, again.relevance)
    for i in range(4):  # each sample by itself
        alone = whence.explain(model, x[i : i + 1], [[0, 1, 2, 1][i]], method=method)
        assert torch.allclose(alone.relevance, e[i].relevance, rtol=1e-9, atol=1e-12)
        assert torch.allclose(alone.conservation.relevance, e[i].conservation.relevance, rtol=1e-9)
    single = whence.explain(model.float(), x.float(), [0, 1, 2, 1], method=method)
    assert single.relevance.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(whence.explain(model, x.float(), [0, 1, 2, 1], method=method).relevance, single.relevance)


def test_a_single_sample_without_batch_inside_the_model():
    convolution = nn.Conv2d(1, 2, 3, bias=False)
    e = whence.explain(lambda x: torch.stack([convolution(v) for v in x]).flatten(1), torch.randn(2, 1, 5, 5), first)
    assert torch.allclose(sums(e), e.output, rtol=1e-4)
    assert e.conservation.error.max() < 1e-9


def test_the_callers_grad_mode_is_left_alone():
    model, x = net(), torch.randn(1, 1, 6, 6)
    with torch.no_grad():
        for e in whence.explain_targets(model, x, [0, 1]):
            assert not torch.is_grad_enabled()
            assert not e.relevance.requires_grad


def test_inference_mode_and_its_tensors():
    model, x = net(), torch.randn(1, 1, 6, 6)
    expected = whence.explain(model, x, 1).relevance
    with torch.inference_mode():
        made_here = x.clone()
        assert torch.equal(whence.explain(model, made_here, 1).relevance, expected)
    assert torch.equal(whence.explain(model, made_here, 1).relevance, expected)


# what a reviewer broke


def test_nothing_is_folded_through_a_relu():
    """conv → ReLU → BN, ReLU → scale → shift: what follows a ReLU does not belong to the map before it."""
    linear, norm = nn.Linear(4, 4), nn.BatchNorm1d(4).eval()
    for t in (norm.running_mean, norm.weight, norm.bias):
        nn.init.normal_(t)
    c = torch.randn(4)
    x = torch.randn(3, 4)
    for after in (norm, lambda y: y * c + c, lambda y: y + c, lambda y: F.relu(norm(y))):
        for rule in (Epsilon(0), Gamma(0.5), ZPlus()):
            method = LRP({F.linear: rule})
            plainly, apart = (
                whence.explain(lambda x, cut=cut, after=after: linear(after(cut(F.relu(linear(x))))), x, first, method=method)
                for cut in (lambda y: y, lambda y: y.flip(1).flip(1))
            )
            assert torch.allclose(plainly.relevance, apart.relevance, rtol=1e-9, atol=1e-12)
            assert plainly.conservation.error.max() < 1e-9
        e = whence.explain(lambda x, after=after: after(F.relu(linear(x))), x, first, method=LRP({F.linear: Epsilon(0)}))
        plain = whence.explain(lambda x, after=after: after(F.relu(linear(x))), x, first, method="gradient_times_input")
        assert torch.allclose(e.relevance, plain.relevance, rtol=1e-9)


def test_a_negative_scale_after_a_relu_is_not_taken_for_nonnegative():
    linear, method = nn.Linear(4, 4), LRP({F.linear: Gamma(0.5)})
    x = torch.randn(3, 4)
    for c in (torch.tensor([-1, 2, -1, 1]), torch.tensor([-1.0, 2, -1, 1]), np.float32(-1), -1):
        e = whence.explain(lambda x, c=c: linear(F.relu(linear(x)) * c), x, first, method=method)
        hidden = lambda x, c=c: (F.relu(linear(x)) * c).flip(1).neg().neg().flip(1)  # noqa: E731
        apart = whence.explain(lambda x, hidden=hidden: linear(hidden(x)), x, first, method=method)
        assert torch.allclose(e.relevance, apart.relevance, rtol=1e-9)


@pytest.mark.parametrize("name", ["erfinv_", "lgamma_", "digamma_", "sinc_", "acos_", "cumprod_"])
def test_an_unknown_overwriting_function_is_refused(name):
    more = {"cumprod_": (1,)}.get(name, ())
    with pytest.raises(whence.errors.UnknownFunctionError, match=name.strip("_")):
        whence.explain(lambda x: getattr(x * 0.5, name)(*more), torch.rand(2, 3), first)
    e = whence.explain(lambda x: getattr(x * 0.5, name)(*more), torch.rand(2, 3), first, method=LRP(unknown="gradient"))
    assert e.conservation.error.max() < 1e-9


@pytest.mark.parametrize(
    "overwrite",
    [
        lambda v, x: v.mul_(x), lambda v, x: v.pow_(2), lambda v, x: v.add_(1), lambda v, x: v.masked_fill_(v > 0.5, 3.0),
        lambda v, x: v.clamp_(min=0.5), lambda v, x: v.sub_(0.5).div_(0.2), lambda v, x: v.tanh_(), lambda v, x: v.relu_(),
        lambda v, x: v.copy_(x), lambda v, x: v.add_(x), lambda v, x: v.clamp_(-1, 1),
        lambda v, x: v.div_(1 + x.abs()),
    ],
)  # fmt: skip
def test_overwritten_views_and_wholes_equal_their_copies(overwrite):
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)

    def view(x):
        y = layer(x) * 1.0
        overwrite(y[:, :2], x[:, :2])
        return layer(y)

    def whole(x):
        y = layer(x) * 1.0
        left = y[:, :2].clone()
        overwrite(left, x[:, :2])
        return layer(torch.cat([left, y[:, 2:]], 1))

    a, b = (whence.explain(f, x, first, method=LRP({F.linear: Gamma(0.25)})) for f in (view, whole))
    assert torch.allclose(a.relevance, b.relevance, rtol=1e-9, atol=1e-12)
    assert a.conservation.error.max() < 1e-9
    assert b.conservation.error.max() < 1e-9


def test_a_gate_written_into_a_part_of_a_tensor_is_refused():
    def model(x):
        y = x * 2
        y[:, :2].sigmoid_()
        return y * x

    with pytest.raises(whence.errors.ModelError, match=r"sigmoid .* overwrites a part"):
        whence.explain(model, torch.randn(2, 4), first)


def test_a_buffer_that_is_filled_by_views():
    def model(x):
        buffer = torch.zeros(2, 4)
        buffer[:, :2].copy_(x[:, :2])
        return buffer * 2

    e = whence.explain(model, torch.randn(2, 4), first)
    assert torch.allclose(sums(e), e.output)


def test_overwriting_under_no_grad_is_refused():
    def model(x):
        y = x * 2
        with torch.no_grad():
            y.mul_(3)
        return y

    with pytest.raises(whence.errors.ModelError, match="under no_grad"):
        whence.explain(model, torch.randn(2, 3), first)


def test_other_leaves_and_attributes_of_parameters_are_left_as_they_are():
    w = torch.randn(4, 4, requires_grad=True)
    e = whence.explain(lambda x: x @ w, torch.randn(2, 4), first, method=LRP({torch.matmul: Epsilon(0)}))
    assert torch.allclose(sums(e), e.output)
    layer = nn.Linear(4, 4)
    e = whence.explain(lambda x: layer(x) if layer.weight.requires_grad else 7 * x, torch.ones(1, 4), first)
    assert torch.equal(e.output, layer(torch.ones(1, 4))[:, 0].detach())


def test_weights_that_the_network_makes():
    bias, x = torch.randn(4), torch.randn(1, 4)
    e = whence.explain(lambda x: F.linear(x, x.mT @ x, bias), x, first)
    assert e.conservation.error.max() < 1e-9
    for model in (
        lambda x: F.linear(x, torch.eye(4), x[0]),
        lambda x: F.rms_norm(x, (4,), x[0]),
        lambda x: F.layer_norm(x, (4,), x[0]),
    ):
        with pytest.raises(whence.errors.UnknownFunctionError):
            whence.explain(model, x, first)


def test_constants_overwritten_later_count_as_they_were():
    def model(x):
        buffer = torch.ones(4)
        y = x + buffer
        buffer.zero_()
        return y

    assert whence.explain(model, torch.randn(2, 4), first).conservation.error.max() < 1e-9

    def weight(x):
        w = torch.eye(4)
        y = F.linear(x, w)
        w.mul_(3)
        return y

    x = torch.randn(2, 4)
    assert torch.equal(whence.explain(weight, x, first).relevance[:, 0], x[:, 0])
    with pytest.raises(whence.errors.ModelError, match="was overwritten after its use"):
        whence.explain(weight, torch.randn(2, 4), first, method=LRP({F.linear: Epsilon()}))


@pytest.mark.parametrize(
    "model",
    [
        lambda x: x + torch.tensor([1, 2, 3]), lambda x: x + (x > 0), lambda x: torch.add(input=x, other=1.0),
        lambda x: x.clamp(min=x.flip(1) - 1), lambda x: torch.clamp(x, x - 1, x + 1), lambda x: x / x * x,
        lambda x: x ** torch.tensor(2.0),
        lambda x: torch.stack([torch.ones(4, 3) @ v for v in x]), lambda x: (torch.ones(3, 3) @ x.T).T,
    ],
)  # fmt: skip
def test_constants_of_every_kind_are_accounted_for(model):
    e = whence.explain(model, torch.randn(3, 3), first)
    assert torch.allclose(sums(e) + e.conservation.absorbed, e.output, rtol=1e-9)


def test_samples_that_are_not_in_the_first_dimension_balance():
    layer = nn.Linear(4, 4)
    e = whence.explain(
        lambda x: layer(x.transpose(0, 1)).sum(0), torch.randn(2, 4, 4), first, method=LRP({nn.Linear: Gamma(0.25)})
    )
    assert e.conservation.error.max() < 1e-9
    single = whence.explain(lambda x: torch.stack([layer(v) for v in x]), torch.randn(3, 4), first)
    assert single.conservation.error.max() < 1e-9


@pytest.mark.parametrize("rule", [Epsilon(0), Epsilon(1e-6), Gamma(0.25), AlphaBeta(2, 1)], ids=repr)
def test_half_precision_is_near_the_exact_answer(rule):
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    x = torch.rand(4, 16)
    exact = whence.explain(model.double(), x.double(), 1, method=LRP({nn.Linear: rule})).relevance
    half = whence.explain(model.bfloat16(), x.bfloat16(), 1, method=LRP({nn.Linear: rule})).relevance
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).norm() < 0.3 * exact.norm()


def test_one_explanation_at_a_time():
    model, x = net(), torch.randn(1, 1, 6, 6)
    with whence.relevance_rules(None, {}), pytest.raises(whence.errors.ModelError, match="already under way"):
        whence.explain(model, x, method="gradient_times_input")
    whence.explain(model, x)


def test_a_shared_module_is_read_off_under_either_name():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = nn.Linear(3, 3)

        def forward(self, x):
            return self.b(x)

    e = whence.explain(Twice().eval(), torch.randn(1, 3), layers=["a", "b"])
    assert torch.equal(e.layers["a"], e.layers["b"])


def test_batch_norm_passes_gradients_of_other_strides():
    """torch 2.13 computes a wrong gradient on CPU where that of the output is channels-last in a batch of one."""
    norm, x = nn.BatchNorm2d(8).eval(), torch.randn(1, 8, 4, 4)
    norm.running_var.uniform_(0.5, 1.5)
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    weights = torch.randn(16, 8)
    model = lambda x: (norm(x).flatten(2).transpose(1, 2) * weights).sum(1)  # noqa: E731
    expected = x[0, 2] * scale[2] * weights[:, 2].view(4, 4)
    for method in (None, "gradient_times_input"):
        e = whence.explain(model, x, 2, method=method)
        torch.testing.assert_close(e.relevance[0, 2], expected)


def test_outputs_that_are_views_can_be_overwritten():
    weight, layer = torch.randn(5, 4), nn.Linear(4, 4)
    x = torch.randn(2, 3, 4)
    makers = {
        "constant factor": lambda x: torch.einsum("bij,kj->bik", x, weight),
        "two factors": lambda x: torch.einsum("bid,bjd->bij", layer(x), layer(x)),
        "dense": lambda x: layer(x),
        "made weight": lambda x: F.linear(x, layer(x)[0], torch.ones(3)),
    }
    changes = [lambda y: y.mul_(2), lambda y: y.relu_(), lambda y: y.add_(y.detach()), lambda y: y[..., :2].mul_(2),
               lambda y: y.div_(3), lambda y: F.silu(y, inplace=True)]  # fmt: skip
    for name, make in makers.items():
        for rules in ({"*": Epsilon(0)}, {"*": Epsilon(1e-3)}):
            for i, change in enumerate(changes):

                def model(x, make=make, change=change):
                    y = make(x)
                    change(y)
                    return y.sum(1)

                def apart(x, make=make, change=change):
                    y = make(x).clone()
                    change(y)
                    return y.sum(1)

                ours, theirs = (whence.explain(m, x, 1, method=LRP(rules)) for m in (model, apart))
                torch.testing.assert_close(ours.relevance, theirs.relevance, msg=f"{name} {i}")
                account = ours.conservation
                torch.testing.assert_close(account.relevance + account.absorbed, account.output, msg=f"{name} {i}")


def test_single_samples_of_sequences_held_first():
    layer = nn.Linear(4, 4)
    e = whence.explain(lambda x: layer(x.transpose(0, 1)).sum(0), torch.randn(3, 5, 4), 1)
    assert len(e[0]) == 1
    assert all(len(amount) == 3 for amount in e.conservation.by_layer.values())
    with pytest.raises(IndexError, match="steps of -1"):
        e[::-1]


@pytest.mark.parametrize("method", [None, "gradient_times_input"])
def test_layers_that_are_overwritten_keep_their_relevance(method):
    def net(activation):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 3), nn.Flatten()).eval()

    x = torch.randn(2, 3, 4)
    for kind in (nn.ReLU, nn.SiLU):
        ours, theirs = (whence.explain(net(kind(inplace=i)), x, 1, method=method, layers=["0", "1"]) for i in (True, False))
        torch.testing.assert_close(ours.layers, theirs.layers)
        assert method or ours.conservation.error.max() < 1e-9


@pytest.mark.parametrize(
    "overwrite",
    [
        lambda p: p.neg_(), lambda p: p.sub_(1), lambda p: p.mul_(-2), lambda p: p.clamp_(max=0.1),
        lambda p: p[:, 0].zero_(), lambda p: p[:, 1].mul_(-3),
    ],
)  # fmt: skip
def test_a_sigmoid_that_was_overwritten_is_none(overwrite):
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)

    def model(x):
        p = torch.sigmoid(layer(x))
        overwrite(p)
        return p

    with pytest.raises(whence.errors.ModelError, match="held constant"):
        whence.explain(model, x, 1)


# targets inside the network


def overwritten():
    """A network whose first layer's output is overwritten by the ReLU behind it."""
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 4), nn.Sigmoid()).eval()


INNER = [
    whence.LRP(),
    "gradient_times_input",
    "sensitivity",
    "integrated_gradients",
    whence.FeatureAblation(),
    whence.Shapley(),
]


@pytest.mark.parametrize("method", INNER, ids=str)
def test_a_neuron_is_explained_as_the_network_that_ends_there(method):
    net, x = overwritten(), torch.randn(2, 1, 4, 4)
    for target, part, value in (
        (whence.objectives.Neuron("3", 2), net[:4], lambda y: y[:, 2]),
        (whence.objectives.Neuron("0", 1, position=(0, 1)), net[:1], lambda y: y[:, 1, 0, 1]),  # before the ReLU
        (whence.objectives.Channel("0", 1), net[:1], lambda y: y[:, 1].mean((1, 2))),
        (whence.objectives.Channel("3", 2) - whence.objectives.Channel("3", 0), net[:4], lambda y: y[:, 2] - y[:, 0]),
    ):
        e, expected = whence.explain(net, x, target, method=method), whence.explain(part, x, value, method=method)
        assert torch.allclose(e.output, expected.output)
        assert torch.allclose(e.relevance, expected.relevance, atol=1e-9)
        assert e.target_names() == [str(target)] * 2


def test_several_targets_some_of_them_inside():
    net, x = overwritten(), torch.randn(2, 1, 4, 4)
    inner, outer = whence.explain_targets(net, x, [whence.objectives.Neuron("3", 2), 2])
    assert torch.allclose(inner.relevance, outer.relevance)  # the value before the final sigmoid
    assert outer.note
    assert not inner.note
    assert torch.allclose(whence.Explainer(net)(x, whence.objectives.Neuron("3", 2)).relevance, inner.relevance)


def test_a_neuron_that_is_not_there():
    net, x = overwritten(), torch.randn(2, 1, 4, 4)
    with pytest.raises(whence.errors.SelectorError, match="no layer 'three'"):
        whence.explain(net, x, whence.objectives.Neuron("three", 2))
    with pytest.raises(whence.errors.TargetError, match="channel 9 is out of range"):
        whence.explain(net, x, whence.objectives.Neuron("3", 9))
    with pytest.raises(whence.errors.TargetError, match="compares with a photo"):
        whence.explain(net, x, whence.objectives.Caricature("0", x[:1]))
