"""Models in the states that people have them in: hooked, cached, quantised, frozen, stateful, with hidden parts."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import whence
from support.opaque_function import Hidden
from whence import LRP, Constant, Gamma, Gradient, Identity, errors

X = torch.linspace(-1, 2, 12).view(3, 4)


def layers():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()


@pytest.mark.parametrize("rules", [{nn.Linear: Gamma(0.3)}, whence.presets.attn_lrp()], ids=repr)
def test_weights_made_outside_with_a_graph_are_constants(rules):
    net = layers()
    plain = whence.explain(net, X, 1, method=LRP(rules))
    derived = {name: p * 1 for name, p in net.named_parameters()}
    e = whence.explain(lambda x: torch.func.functional_call(net, derived, (x,)), X, 1, method=LRP({F.linear: Gamma(0.3)}))
    expected = whence.explain(net, X, 1, method=LRP({F.linear: Gamma(0.3)}))
    assert torch.allclose(e.relevance, expected.relevance, rtol=1e-5)
    parametrizations.spectral_norm(net[0])
    net.eval()
    normed = whence.explain(net, X, 1, method=LRP(rules))
    with parametrize.cached():
        net[0].weight  # noqa: B018  made before the explanation begins
        cached = whence.explain(net, X, 1, method=LRP(rules))
    assert torch.allclose(cached.relevance, normed.relevance, rtol=1e-5)
    assert not torch.allclose(plain.relevance, normed.relevance)


def test_what_hides_a_way_from_the_input_is_refused_still():
    with pytest.raises(errors.OpaqueError, match="HiddenBackward"):
        whence.explain(lambda x: F.linear(x, Hidden.apply(x.mean(0, keepdim=True))), X, 0)


class Sparsemax(torch.autograd.Function):
    """As in TabNet: it shifts its input in place."""

    @staticmethod
    def forward(ctx, x):
        x -= x.amax(-1, keepdim=True)
        ordered = x.sort(-1, descending=True).values
        cumulative, ranks = ordered.cumsum(-1) - 1, torch.arange(1, x.shape[-1] + 1)
        size = (ranks * ordered > cumulative).sum(-1, keepdim=True)
        out = (x - cumulative.gather(-1, size - 1) / size).clamp(min=0)
        ctx.save_for_backward(size, out)
        return out

    @staticmethod
    def backward(ctx, g):
        size, out = ctx.saved_tensors
        g = g * (out > 0)
        return torch.where(out > 0, g - g.sum(-1, keepdim=True) / size, 0)


class Selector(nn.Module):
    def forward(self, x):
        return Sparsemax.apply(x)


@pytest.mark.parametrize("rule", [Gradient(), Identity()], ids=repr)
def test_a_rule_for_a_module_holds_where_its_function_overwrites(rule):
    first, last = nn.Linear(4, 5), nn.Linear(5, 2)
    net = nn.Sequential(first, Selector(), last).eval()
    e = whence.explain(net, X, 1, method=LRP({"1": rule} | whence.presets.attn_lrp()))
    assert torch.allclose(e.output, net(X)[:, 1])
    assert e.conservation.error.max() < 1e-3


def test_a_gate_that_overwrites():
    first, last, gate = nn.Linear(4, 4), nn.Linear(4, 2), Selector()

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.gate = first, last, gate

        def forward(self, x):
            return self.last(x * self.gate(self.first(x) * 1))

    net = Gated().eval()
    e = whence.explain(net, X, 1, method=LRP({"gate": Constant()} | whence.presets.attn_lrp()))
    held = gate(first(X) * 1).detach()
    assert torch.allclose(e.relevance, X * held * last.weight[1], atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_mkldnn_parts_are_refused_by_a_true_sentence():
    net = layers()
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(errors.OpaqueError, match=r"module '0' is quantised .* floating-point model"):
        whence.explain(quantised, X, 1)
    e = whence.explain(quantised, X, 1, method=whence.FeatureAblation())
    assert torch.allclose(e.output, quantised(X)[:, 1])
    if torch.backends.mkldnn.is_available():
        from torch.utils import mkldnn

        with pytest.raises(errors.OpaqueError, match=r"module '0' is in the layout of MKL-DNN"):
            whence.explain(mkldnn.to_mkldnn(layers()), X, 1)


@pytest.mark.filterwarnings("ignore")
def test_frozen_scripted_modules_are_opaque_and_can_be_perturbed():
    net = layers()
    frozen = torch.jit.freeze(torch.jit.script(net))
    with pytest.raises(errors.OpaqueError, match="scripted"):
        whence.explain(frozen, X, 1)
    e = whence.explain(frozen, X, 1, method=whence.FeatureAblation())
    assert torch.allclose(e.relevance, whence.explain(net, X, 1, method=whence.FeatureAblation()).relevance, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_nested_tensors_are_refused_with_advice():
    with pytest.raises(errors.InputError, match="to_padded_tensor"):
        whence.explain(layers(), torch.nested.nested_tensor([torch.rand(2), torch.rand(3)]), 1)


def test_a_slice_of_a_network_is_in_its_mode():
    assert whence.explain(layers()[:-1], X, 1).output.shape == (3,)
    with pytest.raises(errors.TrainingModeError):
        whence.explain(nn.Sequential(nn.Dropout(), nn.Linear(4, 2)), X, 1)


class Scaling(nn.Module):
    """Scales gradients where nobody can see it."""

    def forward(self, x):
        with torch._C.DisableTorchFunction():
            x.register_hook(lambda g: g * 0.5)
        return x * 1


def test_an_error_beyond_rounding_is_a_warning_that_names_a_layer():
    net = nn.Sequential(nn.Linear(4, 5), Scaling(), nn.Linear(5, 2)).eval()
    with pytest.warns(errors.ConservationWarning, match=r"differs from the output by .* absorbed in '2'|absorbed in '0'"):
        e = whence.explain(net, X, 1)
    assert "≠" in repr(e)


def test_an_output_of_zero_is_no_error():
    net = nn.Sequential(nn.Linear(4, 2), nn.ReLU()).eval()
    with torch.no_grad():
        net[0].bias.fill_(-99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        e = whence.explain(net, X, 1)
    assert not e.output.any()
    assert e.conservation.error.max() == 0
    assert "≠" not in repr(e)


def test_an_account_of_zero_that_does_not_balance_is_one():
    account = whence.results.Conservation(torch.zeros(1), torch.tensor([0.3]), torch.tensor([0.1]))
    assert account.error > 0.9
    balanced = whence.results.Conservation(torch.zeros(1), torch.tensor([0.3]), torch.tensor([-0.3 + 3e-8]))
    assert balanced.error < 1e-6


class Remembering(nn.Module):
    """A leaky integrator, as spiking networks have it."""

    def __init__(self):
        super().__init__()
        self.layer, self.memory, self.seen, self.stages = nn.Linear(4, 2), None, [], {}
        self.register_buffer("decay", torch.tensor(0.5))
        self.eval()

    def forward(self, x):
        now = self.layer(x)
        self.memory = now if self.memory is None else self.decay * self.memory + now
        self.seen.append(self.memory)
        self.stages["last"] = now
        self.newcomer = now
        self.decay = self.decay * 0.9
        return self.memory


@pytest.mark.parametrize("method", ["lrp", "gradient_times_input", "integrated_gradients", whence.FeatureAblation()], ids=str)
def test_a_model_that_remembers_is_left_with_what_it_remembered(method):
    model = Remembering()
    first = whence.explain(model, X, 1, method=method)
    again = whence.explain(model, X, 1, method=method)
    assert torch.equal(first.relevance, again.relevance)
    assert model.memory is None
    assert model.seen == []
    assert model.stages == {}
    assert not hasattr(model, "newcomer")
    assert model.decay == 0.5
    if method not in ("lrp", "gradient_times_input"):  # others run several rounds at once, of which it remembers one
        return
    with torch.no_grad():
        model(X)
    before = model.memory, list(model.seen), dict(model.stages)
    later = whence.explain(model, X, 1, method=method)
    assert not torch.equal(later.output, first.output)
    assert (model.memory, list(model.seen), dict(model.stages)) == before
    assert not model.memory.requires_grad


def test_a_model_that_fails_midway_is_left_so_too():
    class Failing(Remembering):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("boom")

    model = Failing()
    with pytest.raises(errors.ModelError, match="boom"):
        whence.explain(model, X, 1)
    assert model.memory is None
    assert model.seen == []


def test_a_model_that_waits_to_be_quantised_is_a_floating_point_one():
    class Waiting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.sum = nn.Linear(4, 4), torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x):
            return self.sum.add_relu(self.layer(x), x)

    model = Waiting().eval()
    e = whence.explain(model, X, 1)
    assert torch.allclose(e.relevance, whence.explain(lambda x: F.relu(model.layer(x) + x), X, 1).relevance)


def test_groups_of_none_absorb_nothing():
    layer = nn.Linear(4, 4)

    def grouped(x):
        none, all_of_them = x[:0], x
        return torch.cat([layer(none) + 1, layer(all_of_them)])

    e = whence.explain(grouped, X, 1)
    assert e.conservation.error.max() < 1e-5


class Lazy(nn.Module):
    """Makes what it needs when it is first asked, and notes that it did."""

    def __init__(self):
        super().__init__()
        self.ready, self.layer = False, nn.Linear(4, 3)
        self.eval()

    def forward(self, x):
        if not self.ready:
            self.factor, self.ready = torch.arange(4.0), True
        return self.layer(x * self.factor)


def test_a_model_that_notes_what_it_made_goes_on_working():
    model = Lazy()
    first = whence.explain(model, X, 1)
    assert not model.ready
    assert torch.equal(model(X)[:, 1], first.output)
    assert torch.equal(whence.explain(model, X, 1).relevance, first.relevance)


class Queue(nn.Module):
    def __init__(self):
        super().__init__()
        self.waiting, self.nested, self.layer = [torch.ones(4)], {"layers": []}, nn.Linear(4, 3)
        self.eval()

    def forward(self, x):
        x = x + self.waiting.pop() if self.waiting else x
        self.nested["kept"] = [x]
        return self.layer(x)


def test_what_a_model_takes_out_is_put_back():
    model = Queue()
    first, second = whence.explain(model, X, 1), whence.explain(model, X, 1)
    assert torch.equal(first.output, second.output)
    assert len(model.waiting) == 1
    assert model.nested.keys() == {"layers"}


class Cache(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("cache", torch.zeros(3, 4))
        self.eval()

    def forward(self, x):
        self.cache[:] = self.cache * 0.5 + x
        return self.layer(self.cache)


@pytest.mark.parametrize("method", ["lrp", "gradient_times_input"])
def test_a_buffer_that_is_written_into_is_refused_and_left(method):
    model = Cache()
    for _ in range(2):
        with pytest.raises(errors.ModelError, match="in place with values that depend on the input; assign a new"):
            whence.explain(model, X, 1, method=method)
        assert not model.cache.requires_grad
        assert not model.cache.any()
