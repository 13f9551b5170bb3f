"""Replay without being asked: the same numbers, errors, notes and effects as without a graph, whatever changes meanwhile."""

import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import whence
from whence import errors
from whence.graphs import automatic_replay

SCALE = 1.0


@pytest.fixture(autouse=True)
def paying_at_once(monkeypatch):
    """Capture at the third explanation, whether or not it is faster."""
    monkeypatch.setattr(automatic_replay, "PAYS_AFTER", 3)
    monkeypatch.setattr(automatic_replay, "LEAST_GAIN", float("inf"))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()


def has_graph(explainer):
    return any(capture is not None for capture in explainer._automatic._captures.values())


def agrees(explainer, x, target=None, calls=1):
    for _ in range(calls):
        e, expected = explainer(x, target), whence.explain(explainer.model, x, target, method=explainer.method)
        torch.testing.assert_close(
            e.relevance, expected.relevance, rtol=1e-5, atol=1e-6 * float(expected.relevance.abs().max())
        )
        torch.testing.assert_close(e.output, expected.output)
        assert repr(e).splitlines()[0] == repr(expected).splitlines()[0]
        assert e.note == expected.note


@pytest.mark.parametrize("method", ["lrp", "gradient_times_input", "sensitivity", whence.GradCAM("0")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_later_explanations_are_replayed_with_the_same_numbers(method, dtype):
    explainer = whence.Explainer(net().to(dtype), method)
    for _ in range(6):
        agrees(explainer, torch.randn(2, 3, 6, 6, dtype=dtype), torch.randint(0, 5, (2,)))
    assert has_graph(explainer)
    agrees(explainer, torch.randn(1, 3, 6, 6, dtype=dtype))
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    with pytest.raises(errors.TargetError, match="7"):
        explainer(x, [7, 0])
    with pytest.raises(errors.InputError, match="NaN"):
        explainer(x * torch.nan, [1, 0])


def test_no_graph_is_captured_unless_it_pays_or_where_it_is_not_wanted(monkeypatch):
    x = torch.randn(2, 3, 6, 6)
    unwanted = whence.Explainer(net(), capture=False)
    agrees(unwanted, x, 1, 6)
    assert unwanted._automatic is None
    assert whence.Explainer(net(), "shapley")._automatic is None
    monkeypatch.setattr(automatic_replay, "LEAST_GAIN", 0.0)
    slower = whence.Explainer(net())
    agrees(slower, x, 1, 6)
    assert list(slower._automatic._captures.values()) == [None]


def test_a_graph_is_dropped_when_the_model_changes_and_then_has_to_pay_longer():
    model, x = net(), torch.randn(2, 3, 6, 6)
    explainer = whence.Explainer(model)
    changes = [
        lambda: model[4].weight.data.mul_(-2),
        lambda: setattr(model[0], "dilation", (2, 2)) or setattr(model[0], "padding", (1, 1)),
        lambda: model.__setitem__(2, nn.GELU()),
        lambda: setattr(model[4], "bias", nn.Parameter(torch.ones(5))),
    ]
    for number, change in enumerate(changes):
        agrees(explainer, x, 1, 3 * 2**number + 1)
        assert has_graph(explainer)
        change()
        agrees(explainer, x, 1)
        assert not has_graph(explainer)


def test_large_models_are_not_held_several_times(monkeypatch):
    monkeypatch.setattr(automatic_replay, "MAX_WEIGHTS", 1000)
    explainer = whence.Explainer(net())
    agrees(explainer, torch.randn(2, 3, 6, 6), 1, 5)
    assert not has_graph(explainer)


def test_hooks_and_modes_see_every_explanation():
    model, x, seen = net(), torch.randn(2, 3, 6, 6), []
    explainer = whence.Explainer(model)
    agrees(explainer, x, 1, 4)
    assert has_graph(explainer)
    handle = model[2].register_forward_hook(lambda module, given, out: seen.append(len(out)))
    for calls in range(1, 6):
        explainer(x, 1)
        assert len(seen) >= calls
    handle.remove()
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            explainer(x, 1)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


class Counting(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class ByPythonsChance(nn.Linear):
    def forward(self, x):
        return super().forward(x) * random.choice([1.0, 2.0])


class ByDropout(nn.Linear):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5)


class ByGlobal(nn.Linear):
    def forward(self, x):
        return super().forward(x) * SCALE


class BySum(nn.Linear):
    def forward(self, x):
        return super().forward(x * 2 if x.sum() > 0 else -x)


class ByMaximum(nn.Linear):
    def forward(self, x):
        return super().forward(x) * float(x.detach().max())


class ByCount(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (x > 0.5).nonzero().shape[0] + len(torch.unique(x.round()))


class ByList(nn.Linear):
    def forward(self, x):
        return super().forward(x) * sum((x > 0).flatten().tolist())


@pytest.mark.parametrize("kind", [BySum, ByMaximum, ByCount, ByList])
def test_values_that_a_model_reads_decide_whether_its_graph_applies(kind):
    explainer = whence.Explainer(kind(4, 3).eval())
    torch.manual_seed(1)
    for _ in range(3):
        agrees(explainer, torch.randn(2, 4), 1)
    assert has_graph(explainer) == (kind is not ByMaximum)
    for _ in range(2 * automatic_replay.MAX_MISSES):
        agrees(explainer, torch.randn(2, 4), 1)


def test_models_with_effects_and_chances_are_not_replayed():
    model, x = Counting(4, 3).eval(), torch.rand(2, 4)
    explainer = whence.Explainer(model)
    for _ in range(5):
        before = model.calls
        explainer(x, 1)
        assert model.calls > before
    chance = whence.Explainer(ByPythonsChance(4, 3).eval())
    assert len({float(chance(x, 1).output.sum()) for _ in range(50)}) == 2
    dropped = whence.Explainer(ByDropout(4, 3).eval())
    assert all("random in eval mode" in dropped(x, 1).note for _ in range(6))


def test_a_global_that_the_forward_pass_reads_may_change(monkeypatch):
    explainer, x = whence.Explainer(ByGlobal(4, 3).eval()), torch.rand(2, 4)
    agrees(explainer, x, 1, 4)
    assert has_graph(explainer)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    agrees(explainer, x, 1)


def test_graphs_are_traced_where_no_other_thread_is_disturbed():
    explainer, x, end = whence.Explainer(net()), torch.randn(2, 3, 6, 6), threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        agrees(explainer, x, 1, 5)
        assert not has_graph(explainer)
    finally:
        end.set()
        other.join()
    agrees(explainer, x, 1)
    assert has_graph(explainer)


def test_many_kinds_of_inputs_hold_few_graphs(monkeypatch):
    monkeypatch.setattr(automatic_replay, "MAX_GRAPHS", 2)
    explainer = whence.Explainer(nn.Sequential(nn.Linear(4, 3)).eval())
    for n in (1, 2, 3, 4):
        agrees(explainer, torch.rand(n, 4), 1, 4)
    assert sum(capture is not None for capture in explainer._automatic._captures.values()) == 2


def test_padding_masks_are_guarded():
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=30, num_hidden_layers=1, **size)).eval()
    explainer, ids = whence.Explainer(model), torch.randint(3, 30, (2, 6))
    full, padded = torch.ones(2, 6, dtype=torch.long), torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    for mask in (full, full, full, full, padded, padded, full):
        given = {"input_ids": ids, "attention_mask": mask}
        e, expected = explainer(given, 3), whence.explain(model, given, 3)
        torch.testing.assert_close(e.relevance["input_ids"], expected.relevance["input_ids"], rtol=1e-4, atol=1e-6)
    assert has_graph(explainer)


class Configured(nn.Linear):
    """A module whose forward pass reads everything that settings are compared by."""

    def __init__(self):
        super().__init__(4, 3)
        self.numbers, self.by_name, self.factor = [1.0], {"shift": 0.0}, 1.0
        self.config, self.names, self.shift = SimpleNamespace(power=1.0), {"a"}, torch.zeros(3)
        self.array, self.act = np.ones(3), lambda x, scale=1.0: x * scale

    def forward(self, x):
        y = self.act(super().forward(x) * self.numbers[0] + self.by_name["shift"]) * self.factor * self.config.power
        return (y + self.shift + float(self.array[0])) * len(self.names)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.numbers.__setitem__(0, 2.0), lambda m: m.numbers.insert(0, 3.0), lambda m: m.by_name.update(shift=1.0),
        lambda m: setattr(m, "factor", 2.0), lambda m: setattr(m.config, "power", 2.0), lambda m: m.names.add("b"),
        lambda m: m.shift.add_(1), lambda m: m.array.__setitem__(0, 5.0), lambda m: setattr(m.act, "__defaults__", (3.0,)),
        lambda m: setattr(m, "act", torch.tanh), lambda m: m.add_module("more", nn.ReLU()) or setattr(m, "factor", 3.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("capture", [None, True])
def test_every_kind_of_setting_is_compared(change, capture):
    model, x = Configured().eval(), torch.rand(2, 4)
    explainer = whence.Explainer(model, capture=capture)
    before = explainer(x, 1)
    agrees(explainer, x, 1, 5)
    change(model)
    agrees(explainer, x, 1, 2)
    assert not torch.equal(explainer(x, 1).output, before.output)
