"""Functions with f(0) ≠ 0: gates as factors of a product, activations with an offset elsewhere."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence

pytestmark = pytest.mark.usefixtures("float64")


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


GATES = {
    "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid, "softplus": F.softplus, "exp": torch.exp, "exp2": torch.exp2,
    "erf": torch.erf, "logsigmoid": F.logsigmoid, "cos": torch.cos, "cosh": torch.cosh,
    "one minus": lambda t: 1 - torch.sigmoid(t), "scaled": lambda t: 3 * torch.sigmoid(t)[..., :],
    "written softplus": lambda t: torch.log1p(torch.exp(t)), "reshaped": lambda t: torch.sigmoid(t).unsqueeze(1).squeeze(1),
}  # fmt: skip
AT_ZERO = torch.zeros(1, dtype=torch.float64)


def rows():
    torch.manual_seed(0)
    return torch.randn(3, 4)


def gate(name, t):
    return GATES[name](t)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("count", [1, 3])
def test_a_factor_of_a_product_is_a_gate(name, count):
    x = rows()[:count]
    e = whence.explain(lambda x: x[:, :2] * gate(name, x[:, 2:]), x, 0)
    assert torch.allclose(e.relevance[:, 0], e.output, rtol=1e-12)
    assert not e.relevance[:, 1:].any()


ADDITIONS = {
    "added": lambda signal, gate: signal + gate,
    "added to": lambda signal, gate: gate + signal,
    "subtracted": lambda signal, gate: -(signal - gate) + 2 * signal,
    "concatenated": lambda signal, gate: torch.cat([signal, gate], 1).sum(1, keepdim=True),
    "stacked": lambda signal, gate: torch.stack([gate, signal]).sum(0),
    "written": lambda signal, gate: F.pad(signal, (0, 1)).index_add(1, torch.tensor([1]), gate).sum(1, keepdim=True),
    "mapped": lambda signal, gate: signal + F.linear(gate, torch.ones(1, 1)),
    "convolved": lambda signal, gate: signal + F.conv1d(gate[:, None], torch.ones(1, 1, 1))[:, 0],
}


@pytest.mark.parametrize("name", [name for name in GATES if name != "written softplus"])
@pytest.mark.parametrize("how", ADDITIONS)
def test_an_addend_carries_what_it_adds_beyond_its_value_at_zero(name, how):
    x = rows()
    e = whence.explain(lambda x: ADDITIONS[how](x[:, :1], gate(name, x[:, 1:2])), x, 0)
    beyond = gate(name, x[:, 1:2]) - gate(name, torch.zeros(1, 1))
    assert torch.allclose(e.relevance[:, 0], x[:, 0], rtol=1e-9)
    assert torch.allclose(e.relevance[:, 1:2], beyond, rtol=1e-6)  # Epsilon of a linear map takes 1e-6
    assert torch.allclose(e.conservation.absorbed, gate(name, torch.zeros(3, 1))[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", GATES)
def test_a_final_gate_is_explained(name):
    x = rows()
    e = whence.explain(lambda x: gate(name, x), x, lambda out: out[:, 1])
    assert e.relevance[:, 1].all()
    assert not e.relevance[:, [0, 2, 3]].any()
    assert e.conservation.error.max() < 1e-9


@pytest.mark.parametrize("function", [F.softplus, torch.exp, torch.sigmoid])
def test_a_final_head_is_explained_before_it(function):
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval(), rows()
    e = whence.explain(nn.Sequential(net, Function(function)).eval(), x, 0)
    assert torch.equal(e.relevance, whence.explain(net, x, 0).relevance)
    assert "before the final" in e.note


def test_standard_deviations_are_homogeneous():
    x = torch.randn(2, 3, 20)
    for function in (torch.std, torch.var):
        e = whence.explain(lambda x, f=function: torch.cat([x.mean(2), 3 * f(x, 2)], 1), x, 4)
        assert torch.allclose(e.relevance.sum((1, 2)), e.output, rtol=1e-9)
        assert not e.relevance[:, [0, 2]].any()
    constant = torch.ones(1, 3, 20)
    assert whence.explain(lambda x: torch.cat([x.mean(2), x.std(2)], 1), constant, 4).relevance.isfinite().all()


def test_networks_with_sigmoids_as_hidden_activations_are_explained():
    net = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 2)).eval()
    e = whence.explain(net, rows(), 1)
    assert e.relevance.abs().sum() > 1e-3
    assert e.conservation.error.max() < 1e-9


def test_squeeze_and_excitation_with_a_sigmoid_within_stays_a_gate():
    one, two, x = nn.Linear(4, 4), nn.Linear(4, 4), rows()
    e = whence.explain(lambda x: x * torch.sigmoid(two(torch.sigmoid(one(x)))), x, 2)
    assert torch.allclose(e.relevance[:, 2], e.output, rtol=1e-12)


def test_a_constant_rule_holds_a_gate_wherever_it_stands():
    method = whence.LRP({torch.sigmoid: whence.Constant()})
    e = whence.explain(lambda x: x[:, :1] + torch.sigmoid(x[:, 1:2]), rows(), 0, method=method)
    assert not e.relevance[:, 1].any()


ADDED = {
    "normalised": (lambda s: F.layer_norm(s, (2,)), True), "softmax": (lambda s: s.softmax(1), True),
    "scaled in place": (lambda s: s.mul_(2), True), "root": (lambda s: s.sqrt(), True), "twice": (torch.sigmoid, True),
    "view like": (lambda s: s.view_as(torch.zeros(1, 2)), True),
}  # fmt: skip


@pytest.mark.parametrize("name", ADDED)
@pytest.mark.parametrize("gate", [torch.sigmoid, F.softplus, torch.exp])
def test_gates_stay_live_through_functions_of_them(name, gate):
    """Added to a term, a function of a gate gets what it gets as the whole output."""
    torch.manual_seed(0)
    function, x = ADDED[name][0], torch.rand(1, 4) + 0.5
    w = torch.randn(2, 1)
    added = whence.explain(lambda x: x[:, :1] + function(gate(x[:, 2:])) @ w, x, 0)
    alone = whence.explain(lambda x: function(gate(x[:, 2:])) @ w, x, 0)
    assert torch.allclose(added.relevance[:, 2:], alone.relevance[:, 2:], atol=1e-6)
    assert added.relevance[:, 2:].any()
    assert torch.allclose(added.relevance[:, 0], x[:, 0], atol=1e-6)


def test_a_deviation_by_hand_is_that_of_std():
    x = torch.tensor([[1.0, 2, 4]])
    by_hand, std, both = (
        whence.explain(lambda x, f=f: x[:, :1] + f(x), x, 0).relevance
        for f in (lambda x: x.var(1, keepdim=True).sqrt(), lambda x: x.std(1, keepdim=True),
                  lambda x: torch.std_mean(x, 1, keepdim=True)[0])
    )  # fmt: skip
    assert torch.allclose(by_hand, std, atol=1e-6)
    assert torch.allclose(both, std, atol=1e-6)


@pytest.mark.parametrize(
    "function", [lambda x: 1 / (1 + torch.exp(-x)), torch.rsqrt, lambda x: torch.pow(2.0, x), torch.reciprocal]
)
def test_functions_without_a_value_at_zero_keep_their_own_gradient_where_they_are_added(function):
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    e = whence.explain(lambda x: x[:, :1] + function(x[:, 1:]), x.detach(), 0)
    assert e.relevance[0, 1] != 0
    assert torch.allclose(e.relevance.sum(1) + e.conservation.absorbed, e.output, atol=1e-6)


def test_torch_batch_norm_takes_its_arguments_in_an_order_of_its_own():
    torch.manual_seed(0)
    bn, x = nn.BatchNorm1d(3).eval(), torch.randn(2, 3)
    bn.running_mean.fill_(0.5), bn.running_var.fill_(2.0), bn.weight.data.fill_(3.0)
    direct = lambda x: torch.batch_norm(x, bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, bn.eps, False)  # noqa: E731
    assert torch.allclose(whence.explain(direct, x, 0).relevance, whence.explain(bn, x, 0).relevance, atol=1e-6)
    inorm = lambda x: torch.instance_norm(  # noqa: E731
        x, bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, bn.eps, False
    ).sum(2)
    series = torch.randn(2, 3, 5)
    expected = whence.explain(lambda x: F.instance_norm(
        x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.1, bn.eps).sum(2), series, 0)  # fmt: skip
    assert torch.allclose(whence.explain(inorm, series, 0).relevance, expected.relevance, atol=1e-6)
