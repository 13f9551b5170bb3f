"""What the function mode sees, refuses and keeps right: the situations other libraries get wrong in silence."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from whence import LRP, AlphaBeta, Epsilon, Gamma, ZPlus

pytestmark = pytest.mark.usefixtures("float64")


def first(y):
    return y[:, 0]


def sums(e):
    return e.relevance.flatten(1).sum(1)


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()


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

    with pytest.raises(whence.errors.ModelError, match="is written into a part of a tensor in place, but is held con"):
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

    with pytest.raises(whence.errors.ModelError, match="modifies a tensor that depends on the input in place under t"):
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
    with pytest.raises(whence.errors.ModelError, match="was modified in place after its use in the forward pass; mak"):
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
    with (
        whence.relevance_rules(None, {}),
        pytest.raises(whence.errors.ModelError, match="rules block is already active in this thread; leave it befor"),
    ):
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
    with pytest.raises(IndexError, match="samples cannot be sliced with step"):
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
    ("overwrite", "same"),
    [
        (lambda p: p.neg_(), lambda p: -p), (lambda p: p.sub_(1), lambda p: p - 1), (lambda p: p.mul_(-2), lambda p: p * -2),
        (lambda p: p.clamp_(max=0.1), lambda p: p.clamp(max=0.1)),
    ],
)  # fmt: skip
def test_a_sigmoid_that_was_overwritten_is_what_it_became(overwrite, same):
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    e, expected = (whence.explain(lambda x, f=f: f(torch.sigmoid(layer(x))), x, 1) for f in (overwrite, same))
    assert torch.equal(e.output, same(torch.sigmoid(layer(x)))[:, 1])
    assert torch.allclose(e.relevance, expected.relevance, atol=1e-6)
    assert e.note == ""


@pytest.mark.parametrize("overwrite", [lambda p: p[:, 0].zero_(), lambda p: p[:, 1].mul_(-3)])
def test_a_sigmoid_that_was_overwritten_in_part_is_none(overwrite):
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)

    def model(x):
        p = torch.sigmoid(layer(x))
        overwrite(p)
        return p

    with pytest.raises(whence.errors.ModelError, match="held constant"):
        whence.explain(model, x, 1)


def overwritten():
    """A network whose first layer's output is overwritten by the ReLU behind it."""
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 4), nn.Sigmoid()).eval()
