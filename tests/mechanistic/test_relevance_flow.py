"""Relevance on every edge: the sheets' networks by their closed forms, and what the messages add up to."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import whence
from whence import errors
from whence.models.digits import digit_samples, digits
from whence.models.tiny_networks import CONSTRUCTIONS, tiny_network

ALPHA1 = whence.LRP({nn.Linear: whence.AlphaBeta(1, 0)})


def test_the_maximum_in_its_three_ways():
    a1, a2 = 3.0, 1.0
    wanted = {
        "max, by the first": ([[a1 - a2, 0], [0, a2]], [a1 - a2, a2]),
        "max, by the second": ([[0, 0], [a1, 0]], [0, a1]),
        "max, symmetric": ([[a1 / 2, a2 / 2], [(a1 - a2) / 2, 0], [0, 0]], [(a1 + a2) / 2, (a1 - a2) / 2, 0]),
    }
    for way, (messages, hidden) in wanted.items():
        found = whence.flow(tiny_network(way).double(), torch.tensor([[a1, a2]], dtype=torch.double), method=ALPHA1)
        assert [column.name for column in found.columns] == ["input", "1", "2"]
        torch.testing.assert_close(found.edges[0].messages, torch.tensor(messages, dtype=torch.double))
        torch.testing.assert_close(found.edges[1].messages, torch.tensor([hidden], dtype=torch.double))
        torch.testing.assert_close(found.edges[0].weight, tiny_network(way)[0].weight.double())
        assert found.edges[0].bias is None


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([whence.Epsilon(), whence.Gamma(0.5), whence.AlphaBeta(2, 1), whence.ZPlus()]), st.integers(0, 99))
def test_messages_add_up_to_relevance(rule, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)).double().eval()
    x = torch.randn(1, 4, dtype=torch.double)
    found = whence.flow(net, x, 1, method=whence.LRP({nn.Linear: rule}))
    e = whence.explain(net, x, 1, method=whence.LRP({nn.Linear: rule}))
    torch.testing.assert_close(found.columns[0].relevance, e.relevance[0])
    for edges, column in zip(found.edges, found.columns, strict=False):
        torch.testing.assert_close(edges.messages.sum(0), column.relevance)  # Σ_j R_i←j = R_i
    torch.testing.assert_close(found.columns[-1].relevance, torch.tensor([0, e.output[0], 0], dtype=torch.double))


@pytest.mark.parametrize("way", CONSTRUCTIONS)
def test_tiny_networks_are_what_they_are_called(way):
    a = torch.rand(50, 2)
    wanted = a.max(1) if way.startswith("max") else a.min(1)
    torch.testing.assert_close(tiny_network(way)(a)[:, 0], wanted.values)


def test_larger_networks_have_a_map_a_layer(tmp_path):
    x, _ = digit_samples()
    found = whence.flow(digits(), x[7:8])
    assert found.edges == ()
    assert found.columns[0].relevance.shape == (1, 28, 28)
    for column in found.columns:
        torch.testing.assert_close(column.relevance.sum(), found.explanation.output[0], rtol=1e-3, atol=1e-3)
    assert found.save(tmp_path / "flow.png").stat().st_size > 10_000
    assert whence.flow(tiny_network("max, symmetric"), torch.ones(1, 2)).save(tmp_path / "small.svg").is_file()
    assert repr(found).startswith("Flow of 7 (")
    assert [c.name for c in whence.flow(digits(), x[:1], layers=["3", "7"]).columns] == ["input", "3", "7"]


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(*sizes, bias=False) for sizes in ((2, 2), (2, 2), (2, 1)))

    def forward(self, x):
        return self.c(torch.relu(self.a(x)) + torch.relu(self.b(x)))


def test_weights_of_other_branches_are_none_of_an_edge(tmp_path):
    found = whence.flow(Branches().eval(), torch.rand(1, 2))
    assert [edges.weight is None for edges in found.edges] == [False, True, True]
    assert found.has_ways_around
    assert found.save(tmp_path / "flow.png").is_file()
    pooled = nn.Sequential(nn.Linear(2, 4), nn.MaxPool1d(2), nn.Linear(2, 1)).eval()
    assert whence.flow(pooled, torch.rand(1, 2), layers=["1", "2"]).edges[0].weight is None
    assert not whence.flow(tiny_network("max, symmetric"), torch.rand(1, 2)).has_ways_around


@pytest.mark.parametrize(("inputs", "options", "error", "message"), [
    (torch.rand(2, 2), {}, errors.InputError, r"one sample \[1, …\]"),
    (torch.tensor(1.0), {}, errors.InputError, r"one sample \[1, …\]"),
    (torch.rand(1, 2), {"layers": ["5"]}, errors.SelectorError, "5"),
    (torch.rand(1, 2), {"layers": []}, errors.SelectorError, "name at least one layer"),
])  # fmt: skip
def test_what_has_no_flow_says_so(inputs, options, error, message):
    with pytest.raises(error, match=message):
        whence.flow(tiny_network("max, symmetric"), inputs, **options)
    with pytest.raises(errors.SelectorError, match="the model has no named modules"):
        whence.flow(torch.sum, torch.rand(1, 2))


def test_a_change_is_not_blamed_on_absorption_where_nothing_adds_up():
    x = digit_samples()[0][:1]
    assert "absorbed" not in repr(whence.flow(digits(), x, method="sensitivity"))
    assert "absorbed" not in repr(whence.flow(digits(), x))
    biased = nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    assert "absorbed some of it (mostly biases), or some bypasses them" in repr(whence.flow(biased, x))
