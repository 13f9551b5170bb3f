"""Several targets or conditions are propagated together, with the numbers of one after the other."""

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import whence
from support.small_language_model import Language
from whence.methods import backward_passes

METHODS = ["lrp", "gradient_times_input", "sensitivity", "guided_backprop", "grad_cam"]


class Attentive(nn.Module):
    """A transformer layer with normalisation and gates, on `[N, T, 8]`."""

    def __init__(self):
        super().__init__()
        self.first, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.gate, self.head = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 6)

    def forward(self, x):
        x = self.norm(self.first(x))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x * torch.sigmoid(self.gate(x))
        return self.head(x.relu().mean(1))


class Recomputed(nn.Module):
    def __init__(self):
        super().__init__()
        self.part, self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU()), nn.Linear(8, 6)

    def forward(self, x):
        return self.head(checkpoint(self.part, x, use_reentrant=False)).mean(1)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=2), nn.GELU(), nn.ConvTranspose2d(8, 4, 2, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6),
    )  # fmt: skip


NETWORKS = {
    "pictures": (convolutional, (3, 12, 12)),
    "columns": (lambda: nn.Sequential(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 6)), (9,)),
    "sequences": (Attentive, (5, 8)),
    "recomputed": (Recomputed, (5, 8)),
}


@pytest.fixture
def starts(monkeypatch):
    """The number of passes that each run of autograd computes."""
    found, original = [], backward_passes._gradients

    def counted(starts, gradients, *rest, **more):
        found.append(torch._C._functorch.maybe_get_bdim(gradients[0]) >= 0)
        return original(starts, gradients, *rest, **more)

    monkeypatch.setattr(backward_passes, "_gradients", counted)
    return found


def one_by_one(monkeypatch, compute):
    with monkeypatch.context() as patch:
        patch.setattr(backward_passes, "CHUNK_VALUES", 0)
        return compute()


def check_equal(together, alone):
    assert len(together) == len(alone)
    for a, b in zip(together, alone, strict=True):
        scale = float(b.relevance.abs().max())
        torch.testing.assert_close(a.relevance, b.relevance, rtol=1e-4, atol=1e-5 * scale)
        torch.testing.assert_close(a.output, b.output)
        assert repr(a.target) == repr(b.target)
        assert a.note == b.note
        assert type(a.relevance) is torch.Tensor
        assert a.layers.keys() == b.layers.keys()
        for name in a.layers:
            torch.testing.assert_close(a.layers[name], b.layers[name], rtol=1e-4, atol=1e-5)
        assert a.conservation.by_layer.keys() == b.conservation.by_layer.keys()
        for path, amount in a.conservation.by_layer.items():
            torch.testing.assert_close(amount, b.conservation.by_layer[path], rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_targets_together_are_the_targets_one_by_one(name, method, n, monkeypatch, starts):
    if (method == "grad_cam" and name != "pictures") or (method == "guided_backprop" and name == "recomputed"):
        pytest.skip("the method does not apply")
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(n, *shape)
    layers = {"pictures": ["0", "4"], "columns": ["0"], "sequences": ["first", "gate"], "recomputed": ["part"]}[name]
    more = {} if method == "grad_cam" else {"layers": layers}

    def explained():
        return whence.explain_targets(model, x, [0, 3, None, 5, whence.Logit(1, rather_than=2)], method=method, **more)

    found = explained()
    if name == "recomputed" and method == "lrp":  # recomputing applies rules, which torch.vmap refuses
        assert starts[:2] == [False, True]
    else:
        assert starts == [False, True], "the last alone as a check, then all"
    check_equal(found, one_by_one(monkeypatch, explained))


def test_tokens_together_are_the_tokens_one_by_one(monkeypatch, starts):
    torch.manual_seed(0)
    model, ids = Language().eval(), torch.randint(0, 10, (2, 6))
    targets = [whence.Logit(3, position=t) for t in range(6)]
    found = whence.explain_targets(model, ids, targets)
    assert starts == [False, True]
    check_equal(found, one_by_one(monkeypatch, lambda: whence.explain_targets(model, ids, targets)))


@pytest.mark.parametrize("method", ["lrp", "gradient_times_input"])
def test_conditions_together_are_the_conditions_one_by_one(method, monkeypatch, starts):
    torch.manual_seed(0)
    model, x = convolutional().eval(), torch.randn(2, 3, 12, 12)
    through = [{"4": c} for c in range(8)] + [{"4": 1, "0": c} for c in range(4)] + [{"0": [0, 2]}, {"8": 1}]

    def explained():
        return whence.explain_targets(model, x, [2, 4], method=method, through=through, layers=["0"])

    found = explained()
    assert sum(starts) == 4, "one run for the conditions at each layer and each target"
    check_equal(found, one_by_one(monkeypatch, explained))
    for a, b in zip(found, one_by_one(monkeypatch, explained), strict=True):
        torch.testing.assert_close(a.conservation.conditional_output, b.conservation.conditional_output)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_together(dtype, monkeypatch):
    torch.manual_seed(0)
    model, x = convolutional().eval().to(dtype), torch.randn(2, 3, 12, 12, dtype=dtype)
    found = whence.explain_targets(model, x, [0, 1, 2])
    alone = one_by_one(monkeypatch, lambda: whence.explain_targets(model, x, [0, 1, 2]))
    for a, b in zip(found, alone, strict=True):
        assert a.relevance.dtype == b.relevance.dtype
        torch.testing.assert_close(a.relevance, b.relevance, rtol=0.05, atol=0.05 * float(b.relevance.abs().max()))


def test_large_outputs_and_inputs_are_propagated_one_by_one(monkeypatch, starts):
    largest = 8 * 12 * 12  # of the first layer
    monkeypatch.setattr(backward_passes, "CHUNK_VALUES", 3 * largest)
    whence.explain_targets(convolutional().eval(), torch.randn(1, 3, 12, 12), [0, 1, 2, 3, 4, 5, 0])
    assert starts == [False, True, True, False], "a check, three and three at once, and the last alone"
    starts.clear()
    whence.explain_targets(convolutional().eval(), torch.randn(2, 3, 12, 12), range(5))
    assert starts == [False] * 5
    starts.clear()
    monkeypatch.undo()
    wide = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 100)).eval()
    whence.explain_targets(wide, torch.randn(1, 4), range(100))


class Observed(nn.Module):
    """Keeps the gradients that it sees, as models with built-in Grad-CAM do."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.seen = nn.Linear(4, 5), nn.Linear(5, 3), []

    def forward(self, x):
        x = self.first(x).relu()
        x.register_hook(self.seen.append)
        return self.head(x)


@pytest.mark.parametrize("method", ["lrp", "gradient_times_input"])
def test_hooks_of_the_user_see_the_gradient_of_one_target_at_a_time(method):
    model, x = Observed().eval(), torch.randn(2, 4)
    whence.explain_targets(model, x, [0, 1, 2], method=method)
    assert [g.shape for g in model.seen] == [(2, 5)] * 3
    assert all(bool(g.isfinite().all()) for g in model.seen)
    plain, seen = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), []
    plain[0].register_full_backward_hook(lambda module, given, grads: seen.append(grads[0]))
    whence.explain_targets(plain, x, [0, 1, 2], method=method)
    assert [g.shape for g in seen] == [(2, 5)] * 3
    assert len({float(g.sum()) for g in seen}) == 3


class Prototypes(nn.Module):
    """Distances to prototypes; vmap computes the gradient of `cdist` wrongly in torch 2.13."""

    def __init__(self):
        super().__init__()
        self.first, self.prototypes = nn.Linear(4, 6), nn.Parameter(torch.randn(5, 6))

    def forward(self, x):
        return -torch.cdist(self.first(x), self.prototypes)


@pytest.mark.parametrize("method", ["gradient_times_input", "sensitivity"])
def test_functions_with_a_wrong_rule_for_vmap_are_propagated_one_by_one(method):
    model, x = Prototypes().eval(), torch.randn(3, 4)
    for target, e in enumerate(whence.explain_targets(model, x, range(5), method=method)):
        torch.testing.assert_close(e.relevance, whence.explain(model, x, target, method=method).relevance)


def test_explanations_share_no_memory(monkeypatch):
    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6)).eval(), (torch.randn(2, 4), torch.randn(2, 3))
    signed = whence.Sensitivity("signed")
    found = whence.explain_targets(lambda a, b: model(a), x, range(6), method=signed)
    found[0].relevance[1].add_(1)
    assert not found[1].relevance[1].any()
    assert found[0].relevance[0].untyped_storage().nbytes() == 2 * 4 * 4


class InNumpy(torch.autograd.Function):
    """A function whose gradient leaves torch, so that vmap refuses it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(2 * x.numpy() * g.numpy())


class Branching(torch.autograd.Function):
    """A function whose gradient depends on the values of the gradient that comes in."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g * 2 if g.sum() > 0 else g


class Remembering(torch.autograd.Function):
    """A function whose backward pass keeps state."""

    seen: ClassVar[list[torch.Tensor]] = []

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        Remembering.seen.append(g.norm())
        return g


def test_state_of_functions_of_the_user_is_that_of_one_pass_after_the_other():
    Remembering.seen.clear()
    head = nn.Linear(4, 3)
    whence.explain_targets(lambda x: head(Remembering.apply(x)), torch.randn(2, 4), [0, 1, 2], method="gradient_times_input")
    assert len({float(norm) for norm in Remembering.seen}) == 3


def test_hooks_of_modules_that_no_outline_shows():
    net, seen = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), []
    net[0].register_full_backward_hook(lambda module, given, grads: seen.append(float(grads[0].sum())))
    whence.explain_targets(lambda x: net(x), torch.randn(2, 4), [0, 1, 2], method="gradient_times_input")
    assert len(set(seen)) == 3


@pytest.mark.parametrize("rules", ["epsilon", "epsilon_plus", "epsilon_gamma"])
def test_rules_with_epsilon_run_together(rules, starts, monkeypatch):
    model, x = convolutional().eval(), torch.randn(2, 3, 12, 12)
    method = whence.LRP({nn.Module: whence.Epsilon(1e-3)} if rules == "epsilon" else getattr(whence.presets, rules)())
    found = whence.explain_targets(model, x, [0, 1, 2], method=method)
    assert True in starts
    check_equal(found, one_by_one(monkeypatch, lambda: whence.explain_targets(model, x, [0, 1, 2], method=method)))


@pytest.mark.parametrize("function", [InNumpy, Branching])
def test_functions_that_vmap_refuses_are_propagated_one_by_one(function):
    torch.manual_seed(0)
    first, head = nn.Linear(4, 5), nn.Linear(5, 3)

    def model(x):
        return head(function.apply(first(x)))

    x = torch.randn(2, 4)
    together = whence.explain_targets(model, x, [0, 1, 2], method="gradient_times_input")
    for target, e in enumerate(together):
        torch.testing.assert_close(e.relevance, whence.explain(model, x, target, method="gradient_times_input").relevance)


def test_the_memory_of_the_graph_is_released():
    import gc
    import weakref

    model, x, alive = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), torch.randn(2, 4), []
    model[1].register_forward_hook(lambda module, args, out: alive.append(weakref.ref(out)))
    whence.explain_targets(model, x, [0, 1, 2])
    gc.collect()
    assert alive
    assert all(t() is None for t in alive)
