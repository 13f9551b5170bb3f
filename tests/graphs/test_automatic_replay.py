"""Replay when it pays: the same numbers, errors, notes and effects as without a graph, whatever changes meanwhile."""

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
    explainer = whence.Explainer(net().to(dtype), method, capture="auto")
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
    unwanted = whence.Explainer(net())
    agrees(unwanted, x, 1, 6)
    assert unwanted._automatic is None
    assert whence.Explainer(net(), "shapley", capture="auto")._automatic is None
    monkeypatch.setattr(automatic_replay, "LEAST_GAIN", 0.0)
    slower = whence.Explainer(net(), capture="auto")
    agrees(slower, x, 1, 6)
    assert list(slower._automatic._captures.values()) == [None]


def test_a_graph_is_dropped_when_the_model_changes_and_then_has_to_pay_longer():
    model, x = net(), torch.randn(2, 3, 6, 6)
    explainer = whence.Explainer(model, capture="auto")
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
    explainer = whence.Explainer(net(), capture="auto")
    agrees(explainer, torch.randn(2, 3, 6, 6), 1, 5)
    assert not has_graph(explainer)


def test_hooks_and_modes_see_every_explanation():
    model, x, seen = net(), torch.randn(2, 3, 6, 6), []
    explainer = whence.Explainer(model, capture="auto")
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
    explainer = whence.Explainer(kind(4, 3).eval(), capture="auto")
    torch.manual_seed(1)
    for _ in range(3):
        agrees(explainer, torch.randn(2, 4), 1)
    assert has_graph(explainer) == (kind is not ByMaximum)
    for _ in range(2 * automatic_replay.MAX_MISSES):
        agrees(explainer, torch.randn(2, 4), 1)


def test_models_with_effects_and_chances_are_not_replayed():
    model, x = Counting(4, 3).eval(), torch.rand(2, 4)
    explainer = whence.Explainer(model, capture="auto")
    for _ in range(5):
        before = model.calls
        explainer(x, 1)
        assert model.calls > before
    chance = whence.Explainer(ByPythonsChance(4, 3).eval(), capture="auto")
    assert len({float(chance(x, 1).output.sum()) for _ in range(50)}) == 2
    dropped = whence.Explainer(ByDropout(4, 3).eval(), capture="auto")
    assert all("random in eval mode" in dropped(x, 1).note for _ in range(6))


def test_a_global_that_the_forward_pass_reads_may_change(monkeypatch):
    explainer, x = whence.Explainer(ByGlobal(4, 3).eval(), capture="auto"), torch.rand(2, 4)
    agrees(explainer, x, 1, 4)
    assert has_graph(explainer)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    agrees(explainer, x, 1)


def test_graphs_are_traced_where_no_other_thread_is_disturbed():
    explainer, x, end = whence.Explainer(net(), capture="auto"), torch.randn(2, 3, 6, 6), threading.Event()
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
    explainer = whence.Explainer(nn.Sequential(nn.Linear(4, 3)).eval(), capture="auto")
    for n in (1, 2, 3, 4):
        agrees(explainer, torch.rand(n, 4), 1, 4)
    assert sum(capture is not None for capture in explainer._automatic._captures.values()) == 2


def test_padding_masks_are_guarded():
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=30, num_hidden_layers=1, **size)).eval()
    explainer, ids = whence.Explainer(model, capture="auto"), torch.randint(3, 30, (2, 6))
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
@pytest.mark.parametrize("capture", ["auto", True])
def test_every_kind_of_setting_is_compared(change, capture):
    model, x = Configured().eval(), torch.rand(2, 4)
    explainer = whence.Explainer(model, capture=capture)
    before = explainer(x, 1)
    agrees(explainer, x, 1, 5)
    change(model)
    agrees(explainer, x, 1, 2)
    assert not torch.equal(explainer(x, 1).output, before.output)


class Scaled(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.temperature, self.offset = nn.Buffer(torch.tensor(2.0)), torch.tensor([1.0])
        self.queries, self.mixed = nn.Parameter(torch.rand(2, 2, 3)), nn.Parameter(torch.rand(3, 3))

    def forward(self, x):
        h = self.queries @ self.mixed  # an unsafe view, which is modified in place
        h += super().forward(x)[:, None] / self.temperature.item()
        return h.sum(1) + float(self.offset)


@pytest.mark.parametrize("capture", ["auto", True])
@pytest.mark.parametrize("method", ["lrp", "gradient_times_input"])
def test_weights_read_as_numbers_and_constants_modified_in_place(capture, method):
    model, x = Scaled().eval(), torch.rand(2, 4)
    explainer = whence.Explainer(model, method, capture=capture)
    agrees(explainer, x, 1, 6)
    model.temperature.fill_(4.0)
    agrees(explainer, x, 1, 6)
    model.offset.data.fill_(3.0)
    agrees(explainer, x, 1, 2)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x, lengths=None):
        if lengths is not None:
            x = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.gru(x)[1][0])


@pytest.mark.parametrize("capture", ["auto", True])
def test_recurrent_networks_do_not_drift_and_compare_lengths(capture):
    explainer = whence.Explainer(Recurrent().eval(), "gradient_times_input", capture=capture)
    for _ in range(6):
        agrees(explainer, torch.rand(2, 3, 4), 1)
    for lengths in 5 * [[3, 1]] + [[2, 2], [3, 3]]:
        given = {"x": torch.rand(2, 3, 4), "lengths": torch.tensor(lengths)}
        e, expected = explainer(given, 1), whence.explain(explainer.model, given, 1, method="gradient_times_input")
        torch.testing.assert_close(e.relevance["x"], expected.relevance["x"], rtol=1e-4, atol=1e-6)


class ByTensor(nn.Linear):
    def forward(self, x):
        return super().forward(x) * torch.tensor([x.detach()[0, 0], 1.0, 2.0])


class ByLayout(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).flatten(1) * (2.0 if x.is_contiguous() else 1.0)


def test_layouts_lists_of_tensors_equal_targets_and_large_numbers():
    by_tensor = whence.Explainer(ByTensor(4, 3).eval(), capture="auto")
    for _ in range(6):
        agrees(by_tensor, torch.rand(2, 4), 1)
    by_layout, x = whence.Explainer(ByLayout(3, 2, 3).eval(), capture="auto"), torch.rand(2, 3, 4, 4)
    agrees(by_layout, x, 1, 5)
    agrees(by_layout, x.contiguous(memory_format=torch.channels_last), 1, 5)
    linear, first, second = whence.Explainer(nn.Linear(4, 3).eval(), capture=True), torch.tensor([0]), torch.tensor([1])
    linear(torch.ones(1, 4), whence.Logit(first, rather_than=first))
    assert float(linear(torch.ones(1, 4), whence.Logit(first, rather_than=second)).output) != 0
    for target in (2**63, -(2**70)):
        with pytest.raises(errors.TargetError):
            linear(torch.ones(1, 4), target)
    linear.method = whence.GradientTimesInput()
    assert isinstance(linear(torch.ones(1, 4), 0).method, whence.GradientTimesInput)
    with pytest.raises(errors.RuleError, match="capture='always'; choose True, False, 'auto' or 'compile'"):
        whence.Explainer(nn.Linear(4, 3), capture="always")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_sparse_attributes_and_scripted_parts_do_no_harm():
    model = nn.Linear(4, 3).eval()
    model.kept = torch.eye(3).to_sparse()
    agrees(whence.Explainer(model, capture="auto"), torch.rand(2, 4), 1, 5)
    scripted = whence.Explainer(torch.jit.script(nn.Linear(4, 3).eval()), capture="auto")
    for _ in range(5):
        with pytest.raises(errors.OpaqueError):
            scripted(torch.rand(2, 4), 1)
