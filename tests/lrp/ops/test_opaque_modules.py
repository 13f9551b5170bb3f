"""Functions that cannot be intercepted: refused behind any kind of input, and propagated where they are known to be linear."""

import pytest
import torch
from torch import nn

import whence
from whence import errors

pytestmark = pytest.mark.usefixtures("float64")


class HiddenMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, g):
        return g @ ctx.saved_tensors[0], None


class HiddenLinear(nn.Linear):
    def forward(self, x):
        out = HiddenMatmul.apply(x, self.weight)
        return out if self.bias is None else out.add_(self.bias)


class Linear4bit(HiddenLinear):
    """As bitsandbytes' class of this name: a cast and a bias around a function that cannot be intercepted."""

    def forward(self, x):
        out = HiddenMatmul.apply(x.clone(), self.weight)
        if self.bias is not None:
            out += self.bias
        return out.to(x.dtype)


class HQQLinear(nn.Module):
    """A class that does not derive from `nn.Linear`."""

    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        plain = nn.Linear(inputs, outputs, bias)
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x):
        out = HiddenMatmul.apply(x, self.weight)
        return out if self.bias is None else out + self.bias


class Texts(nn.Module):
    """Token ids, an embedding, and a residual block with a layer of a given class."""

    def __init__(self, kind, bias=True):
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(9, 6), kind(6, 6, bias), nn.Linear(6, 3)

    def forward(self, ids):
        h = self.embed(ids)
        return self.head((h + self.block(h).relu()).mean(1))


def twins(make, kind):
    torch.manual_seed(0)
    plain, hidden = make(nn.Linear).eval(), make(kind).eval()
    hidden.load_state_dict(plain.state_dict())
    return plain, hidden


def network(kind):
    return nn.Sequential(kind(5, 8), nn.ReLU(), kind(8, 8), nn.ReLU(), kind(8, 3))


IDS, ROWS = torch.tensor([[1, 2, 3], [4, 4, 0]]), torch.linspace(-1, 2, 20).view(4, 5).double()
RULES = [whence.Epsilon(0.1), whence.Gamma(0.25), whence.AlphaBeta(2, 1), whence.ZPlus(), whence.RisingGamma(0.1)]


@pytest.mark.parametrize("make", [lambda kind: Texts(kind), lambda kind: Texts(kind, bias=False)])
def test_functions_that_cannot_be_intercepted_are_refused_behind_an_embedding(make):
    _, hidden = twins(make, HiddenLinear)
    with pytest.raises(errors.OpaqueError, match="HiddenMatmul"):
        whence.explain(hidden, IDS, 0)


@pytest.mark.parametrize("kind", [Linear4bit, HQQLinear])
@pytest.mark.parametrize(("make", "inputs"), [(network, ROWS), (network, ROWS[:1]), (Texts, IDS), (Texts, IDS[:1])])
def test_quantised_layers_are_explained_by_default_like_plain_ones(kind, make, inputs):
    plain, hidden = twins(make, kind)
    expected, found = whence.explain(plain, inputs, 1), whence.explain(hidden, inputs, 1)
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-9, atol=1e-12)
    assert found.conservation.error.max() < 1e-9


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("kind", [Linear4bit, HQQLinear])
def test_quantised_layers_obey_the_rules_of_linear_layers(kind, rule):
    plain, hidden = twins(network, kind)
    method = whence.LRP({torch.nn.functional.linear: rule})
    expected, found = whence.explain(plain, ROWS, 1, method=method), whence.explain(hidden, ROWS, 1, method=method)
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-9, atol=1e-12)
    assert found.conservation.error.max() < 1e-9


def test_a_rule_of_the_input_layer_is_refused_by_name_at_a_quantised_layer():
    _, hidden = twins(network, Linear4bit)
    with pytest.raises(errors.RuleError, match="ZBox is not available for the quantised layer '0'"):
        whence.explain(hidden, ROWS, 1, method=whence.LRP({"0": whence.ZBox(-1, 2)}))


def test_the_rule_that_the_message_advises_for_a_linear_part_is_right():
    plain, hidden = twins(network, HiddenLinear)
    with pytest.raises(errors.OpaqueError, match=r"whence\.Gradient\(\)\}\) uses its own backward pass") as caught:
        whence.explain(hidden, ROWS, 1)
    assert "Identity() is right for an elementwise activation" in str(caught.value)
    found = whence.explain(hidden, ROWS, 1, method=whence.LRP({HiddenLinear: whence.Gradient()}))
    expected = whence.explain(plain, ROWS, 1, method=whence.LRP({nn.Linear: whence.Epsilon(0)}))
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-9)


@pytest.mark.parametrize("bits", [8, 4])
def test_layers_of_bitsandbytes(bits):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes; run pip install bitsandbytes")
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    if bits == 8:
        hidden = nn.Sequential(*(bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False) for _ in range(2)))
    else:  # whose kernel has no backward pass on a CPU
        hidden = nn.Sequential(*(bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32) for _ in range(2)))
    for layer, original in zip(hidden, (plain[0], plain[2]), strict=True):
        layer.load_state_dict(original.state_dict())
    x = torch.rand(2, 64)
    hidden = hidden.to("cpu").eval()
    hidden.insert(1, nn.ReLU())
    if bits == 4:  # weights of four bits differ from the original ones
        with torch.no_grad():
            for layer, original in zip((hidden[0], hidden[2]), (plain[0], plain[2]), strict=True):
                original.weight.copy_((layer(torch.eye(64)) - layer.bias).T)
    for method in (None, whence.LRP({nn.Linear: whence.Gamma(0.25)})):
        expected, found = (whence.explain(model, x, 3, method=method).relevance.flatten() for model in (plain, hidden))
        assert torch.cosine_similarity(found, expected, 0) > 0.999


class FlashAttnFunc(torch.autograd.Function):
    """Stands for the attention of the package flash_attn."""

    @staticmethod
    def forward(ctx, q):
        return torch.softmax(q @ q.mT, -1) @ q

    @staticmethod
    def backward(ctx, g):
        return g


LIBRARY = torch.library.Library("flash_attn_of_a_test", "DEF")
LIBRARY.define("forward(Tensor q) -> Tensor")
LIBRARY.impl("forward", lambda q: torch.softmax(q @ q.mT, -1) @ q, "CompositeExplicitAutograd")


@pytest.mark.parametrize("kernel", [FlashAttnFunc.apply, torch.ops.flash_attn_of_a_test.forward])
def test_attention_kernels_of_other_packages_are_refused_with_what_to_load(kernel):
    query = nn.Linear(4, 4)

    def model(x):
        return kernel(query(x)).mean(1)

    with pytest.raises(errors.WhenceError, match="load the model with attn_implementation='sdpa'"):
        whence.explain(model, torch.rand(1, 3, 4), 0)


class _UncheckedAssign(torch.autograd.Function):
    """Stands for that of torchdiffeq's adaptive solvers, which stores a slope in the last dimension of a buffer."""

    __module__, __qualname__ = "torchdiffeq._impl.rk_common", "_UncheckedAssign"

    @staticmethod
    def forward(ctx, buffer, value, index):
        ctx.index = index
        buffer.data[index] = value
        return buffer

    @staticmethod
    def backward(ctx, g):
        return g, g[ctx.index], None


def test_a_function_that_only_stores_values_is_passed_by_its_own_backward():
    torch.manual_seed(0)
    slope, head = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).eval(), nn.Linear(3, 2).eval()
    x = torch.randn(2, 3)

    def heun(x, assign):
        k = torch.zeros(*x.shape, 2)
        first = slope(x)
        k = assign(k, first, (..., 0))
        k = assign(k, slope(x + 0.5 * k[..., :1].sum(-1)), (..., 1))
        return head(x + (k * 0.25).sum(-1))

    def stacked(k, value, index):
        return torch.stack([value if i == index[1] else k[..., i] for i in range(2)], -1)

    found = whence.explain(lambda x: heun(x, _UncheckedAssign.apply), x, 0)
    expected = whence.explain(lambda x: heun(x, stacked), x, 0)
    assert torch.allclose(found.relevance, expected.relevance, atol=1e-6)


def test_the_default_solver_of_torchdiffeq():
    solve = pytest.importorskip("torchdiffeq").odeint
    torch.manual_seed(0)
    slope, x = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).eval(), torch.randn(2, 3)

    def solved(method):
        return lambda x: solve(lambda t, y: slope(y), x, torch.tensor([0.0, 1.0]), method=method)[-1]

    default, rk4 = (whence.explain(solved(method), x, 0).relevance for method in ("dopri5", "rk4"))
    assert torch.allclose(default, rk4, atol=1e-3)
