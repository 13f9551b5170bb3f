"""Nothing stays behind on the user's model, also when something fails midway or two threads explain at once."""

import copy
import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules import module as global_hooks

import whence
from whence import LRP, Gamma, presets


class Small(nn.Module):
    def __init__(self, during: Callable[[torch.Tensor], None] = lambda x: None):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU()
        )
        self.head = nn.Linear(4, 5)
        self.during = during
        self.eval()

    def forward(self, x):
        x = self.features(x)
        self.during(x)
        return self.head(x.mean((2, 3)))


def state(model: nn.Module) -> dict:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_always_called")
    return {
        "values": {k: v.clone() for k, v in model.state_dict().items()},
        "identity": [id(p) for p in model.parameters()],
        "versions": [p._version for p in (*model.parameters(), *model.buffers())],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "hooks": [[list(getattr(m, h)) for h in hooks] for m in model.modules()],
        "global": [len(global_hooks._global_forward_hooks), len(global_hooks._global_forward_pre_hooks)],
        "any_global": bool(global_hooks._has_any_global_hook()),
        "parameter_attributes": [sorted(vars(p)) for p in model.parameters()],
        "modes": torch._C._len_torch_function_stack(),
    }


def assert_unchanged(before: dict, model: nn.Module):
    after = state(model)
    values_before, values_after = before.pop("values"), after.pop("values")
    assert before == after
    assert all(torch.equal(values_before[k], values_after[k]) for k in values_before)


METHODS = [LRP(), LRP(presets.epsilon_plus_flat()), "gradient_times_input", "sensitivity", "guided_backprop", "deconvnet"]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m if isinstance(m, str) else "lrp")
def test_after_an_explanation(method, frozen):
    model = Small()
    model.features[3].weight.requires_grad_(not frozen)
    model.head(torch.ones(1, 4)).sum().backward()  # some .grad
    before = state(model)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    kept = x.detach().clone()
    whence.explain(model, x, method=method, layers=["features.0", "features.3"])
    assert_unchanged(before, model)
    assert x.grad is None
    assert torch.equal(x, kept)


class BoomError(RuntimeError):
    pass


def boom(x):
    raise BoomError("boom")


def test_when_the_model_raises_midway():
    model = Small(boom)
    before = state(model)
    with pytest.raises(whence.errors.ModelError, match="boom"):
        whence.explain(model, torch.randn(1, 3, 8, 8))
    assert_unchanged(before, model)


def test_when_an_unknown_function_is_met():
    model = Small(lambda x: x.add_(torch.special.i0(x)))
    before = state(model)
    with pytest.raises(whence.errors.UnknownFunctionError):
        whence.explain(model, torch.randn(1, 3, 8, 8))
    assert_unchanged(before, model)


def test_when_a_rule_raises_on_the_way_back():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Broken(Gamma):
        def merged(self, weight):
            raise BoomError

        def factors(self, z, positive, contributions):
            raise BoomError

    model = Small()
    before = state(model)
    with pytest.raises(BoomError):
        whence.explain(model, torch.randn(1, 3, 8, 8), method=LRP({nn.Conv2d: Broken()}))
    assert_unchanged(before, model)


def test_when_the_target_function_raises():
    model = Small()
    before = state(model)
    with pytest.raises(ZeroDivisionError):
        whence.explain(model, torch.randn(1, 3, 8, 8), lambda out: 1 / 0)
    assert_unchanged(before, model)


def test_when_the_users_own_block_raises():
    model = Small()
    before = state(model)
    with pytest.raises(BoomError), whence.relevance_rules(model, {nn.Conv2d: Gamma()}):
        boom(None)
    assert_unchanged(before, model)


def test_two_threads_explain_two_models_at_once():
    models = [Small(), Small()]
    inputs = [torch.randn(2, 3, 16, 16) for _ in models]
    method = LRP({"features.*": Gamma(0.25)})
    alone = [whence.explain(m, x, method=method).relevance for m, x in zip(models, inputs, strict=True)]
    before = [state(m) for m in models]
    together: dict[int, list] = {0: [], 1: []}
    barrier = threading.Barrier(2)

    def work(i: int):
        barrier.wait()
        for _ in range(20):
            together[i].append(whence.explain(models[i], inputs[i], method=method).relevance)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i, model in enumerate(models):
        assert len(together[i]) == 20
        assert all(torch.allclose(r, alone[i], rtol=1e-4, atol=1e-6) for r in together[i])
        assert_unchanged(before[i], model)


def test_other_threads_see_plain_gradients():
    model, x = Small(), torch.randn(1, 3, 8, 8)
    seen = []

    def elsewhere(_):
        def run():
            v = x.clone().requires_grad_()
            seen.append(torch.autograd.grad(plain(v)[0, 1], v)[0])

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    plain = copy.deepcopy(model)
    v = x.clone().requires_grad_()
    expected = torch.autograd.grad(plain(v)[0, 1], v)[0]
    model.during = elsewhere
    whence.explain(model, x, method=LRP({nn.Conv2d: Gamma(5)}))
    assert torch.equal(seen[0], expected)


def test_no_memory_is_held_by_reference_cycles():
    model = Small()
    held = []
    model.during = lambda x: held.append(weakref.ref(x))
    gc.collect()
    gc.disable()
    try:
        whence.explain(model, torch.randn(1, 3, 8, 8), layers=["features.0"])
        whence.explain(model, torch.randn(1, 3, 8, 8), method=LRP(presets.epsilon_alpha2_beta1()))
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()


class Interior(nn.Module):
    """A network with one function of interest inside."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.mix, self.norm = nn.Linear(8, 8), nn.Conv1d(8, 8, 3, padding=1), nn.LayerNorm(8)
        self.gru, self.attention = nn.GRU(8, 8, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)
        self.function = function
        self.eval()

    def forward(self, x):
        return self.function(self, x, self.first(x)).mean(1)


def over_channels(net, x, y):
    y = net.mix(y.softmax(-1).transpose(1, 2))
    return (y + y).transpose(1, 2)


def in_place(net, x, y):
    y[:, 0] = 0
    y += 1
    return y.relu_()


INTERIORS = {
    "softmax": over_channels,
    "in place": in_place,
    "relu": lambda net, x, y: net.first(y.relu()),
    "added gate": lambda net, x, y: y.sigmoid() + x,
    "gate": lambda net, x, y: y.sigmoid() * x + y.sigmoid(),
    "joined gate": lambda net, x, y: torch.cat([y.sigmoid(), x], -1),
    "norm": lambda net, x, y: net.first(net.norm(y)),
    "gelu": lambda net, x, y: nn.functional.gelu(y),
    "recurrent": lambda net, x, y: net.gru(y)[0],
    "attention": lambda net, x, y: net.attention(y[:, :64], y[:, :64], y[:, :64])[0],
    "clamp": lambda net, x, y: y.clamp(-1, 1),
    "exp": lambda net, x, y: (y.exp() + 1).log(),
    "maximum": lambda net, x, y: torch.maximum(y, x),
    "division": lambda net, x, y: y / (1 + x.abs().mean(-1, keepdim=True)),
}


@pytest.mark.parametrize("method", ["lrp", "gradient_times_input", "integrated_gradients"])
@pytest.mark.parametrize("function", INTERIORS.values(), ids=INTERIORS)
@pytest.mark.filterwarnings("ignore::whence.errors.ConservationWarning")
def test_no_large_tensors_wait_for_garbage_collection(function, method):
    net, x = Interior(function), torch.randn(2, 1000, 8)

    def large():
        return sum(type(o) is torch.Tensor and o.numel() >= 8000 for o in gc.get_objects())

    whence.explain(net, x, 0, method=method)  # fills caches
    gc.collect()
    before = large()
    gc.disable()
    try:
        whence.explain(net, x, 0, method=method)
        assert large() <= before
    finally:
        gc.enable()
