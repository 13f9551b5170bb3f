"""What the function mode sees, refuses and keeps right: the situations other libraries get wrong in silence."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from support.opaque_function import Hidden
from whence import LRP, Constant, Epsilon, Gamma, Gradient, Identity, ZPlus, presets

X = torch.linspace(-2, 2, 12, dtype=torch.float64).view(3, 4)


pytestmark = pytest.mark.usefixtures("float64")


def first(y):
    return y[:, 0]


def sums(e):
    return e.relevance.flatten(1).sum(1)


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
    with pytest.raises(whence.errors.ModelError, match="an in-place operation overwrote an activation where whence c"):
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
    with pytest.raises(whence.errors.ModelError, match=r"div in .* held constant .* logits"):
        whence.explain(lambda x: torch.div(x, 0.1, rounding_mode="floor"), torch.rand(2, 3) + 1, first)


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
    detector = lambda x: torch.cat([layer(x)[:, :2], layer(x)[:, 2:].softmax(1).view(2, 2)], 1)  # noqa: E731
    method = LRP(presets.cp_lrp())
    with pytest.raises(whence.errors.ModelError, match=r"no relevance reaches the input; softmax .*whence.objectives.Neuron"):
        whence.explain(detector, x, lambda y: y[:, 3], method=method)
    assert whence.explain(detector, x, lambda y: y[:, 0], method=method).relevance.any()
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


def overwritten():
    """A network whose first layer's output is overwritten by the ReLU behind it."""
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 4), nn.Sigmoid()).eval()
