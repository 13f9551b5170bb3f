"""Concepts, circuits, interactions, subspaces: against literal transcriptions and sums that must hold."""

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.mechanistic.channel_relevance import last_conv_layer, receptive_field
from whence.models.digits import digit_samples, digits

SIDE = 12


@pytest.fixture
def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 4),
    ).double().eval()  # fmt: skip


def pictures(n=3):
    return torch.rand(n, 1, SIDE, SIDE, dtype=torch.float64)


def test_channel_relevance_is_the_sum_over_places(cnn):
    x = pictures()
    e = whence.explain(cnn, x, 1, layers=["3"])
    torch.testing.assert_close(whence.channel_relevance(cnn, x, "3", 1), e.layers["3"].sum((2, 3)))
    torch.testing.assert_close(whence.channel_relevance(cnn, x, "6", 1)[:, 1], e.output)


def test_a_receptive_field_is_the_known_one(cnn):
    x = pictures(1)
    window = receptive_field(cnn, x, "0", 2, (4, 7))
    assert (window.rows, window.columns) == (slice(4, 7), slice(7, 10))
    with pytest.raises(errors.SelectorError, match="is out of range for the output"):
        receptive_field(cnn, x, "0", 2, (99, 0))


def test_the_last_picture_layer_has_no_classes_as_channels(cnn):
    assert last_conv_layer(cnn, pictures(1)) == "3"
    head = nn.Sequential(*list(cnn)[:5], nn.Conv2d(5, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    assert last_conv_layer(head, pictures(1)) == "3"
    with pytest.raises(errors.SelectorError, match="name a layer"):
        last_conv_layer(nn.Sequential(nn.Flatten(), nn.Linear(144, 2)).double().eval(), pictures(1))


def test_concepts_as_they_come(tmp_path):
    x, _ = digit_samples()
    found = whence.concepts(digits(), x[:1], reference_inputs=x, progress=False)
    everything = whence.channel_relevance(digits(), x[:1], found.layer)[0]
    assert found.channels == everything.topk(5).indices.tolist()
    torch.testing.assert_close(found.shares, everything[found.channels] / found.explanation.output[0])
    for channel, e in zip(found.channels, found.explanations, strict=True):
        torch.testing.assert_close(e.conservation.conditional_output[0], everything[channel], rtol=1e-4, atol=1e-5)
    top = whence.top_samples(
        digits(), f"{found.layer}:{found.channels[0]}", x, n_samples=4, ranking="relevance", progress=False
    )
    assert [r.index for r in found.references[0]] == top.indices[0].tolist()
    assert all(r.crop.shape == r.relevance.shape for r in found.references[0])
    assert found.save(tmp_path / "c.png").stat().st_size > 10_000
    assert f"channel {found.channels[0]}:" in repr(found)
    assert found.table[0]["references"] == top.indices[0].tolist()
    some = whence.concepts(digits(), x[:1], found.layer, 3, channels=[2, 4], prototypes={"n_steps": 4}, progress=False)
    assert some.channels == [2, 4]
    assert some.prototypes.shape == (2, 1, 28, 28)
    assert some.save(tmp_path / "d.png").is_file()


def test_wrong_concepts_are_named():
    x, _ = digit_samples()
    with pytest.raises(errors.InputError, match="concepts needs one image"):
        whence.concepts(digits(), x[:2])
    with pytest.raises(errors.SelectorError, match="channel 999 is out of range"):
        whence.concepts(digits(), x[:1], channels=[999])
    with pytest.raises(errors.RuleError, match="channels=0"):
        whence.concepts(digits(), x[:1], channels=0)
    with pytest.raises(errors.SelectorError, match="no layer 'conv9'"):
        whence.concepts(digits(), x[:1], "conv9")
    with pytest.raises(errors.SelectorError, match=r"channels=\[\]"):
        whence.concepts(digits(), x[:1], channels=[])
    with pytest.raises(errors.RuleError, match="channels=True"):
        whence.concepts(digits(), x[:1], channels=True)
    with pytest.raises(errors.RuleError, match="references=-1"):
        whence.concepts(digits(), x[:1], n_references=-1, reference_inputs=x)
    for none in (torch.tensor([0, -1]), np.array([0, -1])):
        found = whence.concepts(digits(), x[:1], channels=none, reference_inputs=x, n_references=0)
        assert found.channels == [0, len(found.relevance) - 1]
        assert not found.references
    assert len(whence.concepts(digits(), x[:1], channels=np.int64(2)).channels) == 2


def test_a_pattern_names_one_layer(cnn):
    x = pictures(1)
    torch.testing.assert_close(whence.channel_relevance(cnn, x, "3*", 1), whence.channel_relevance(cnn, x, "3", 1))
    for of_one in (whence.channel_relevance, whence.subspaces, whence.concepts):
        with pytest.raises(errors.SelectorError, match="is the first; name one"):
            of_one(cnn, x, "*")
    with pytest.raises(errors.SelectorError, match="matches 7 layers"):
        whence.attribution_graph(cnn, x, ["0", "*"], 1)
    with pytest.raises(errors.RuleError, match="channels=0"):
        whence.attribution_graph(cnn, x, ["0", "3"], 1, n_channels=0)
    with pytest.raises(errors.SelectorError, match="channel 6 is out of range"):
        receptive_field(cnn, x, "0", 6, (0, 0))


class Series(nn.Module):
    """Tokens in, tokens through an activation that tells nothing of where its channels are."""

    def __init__(self, lost: bool):
        super().__init__()
        self.up, self.act, self.head = nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 2)
        if lost:
            self.act = nn.Sequential(nn.GELU())

    def forward(self, x):
        return self.head(self.act(self.up(x)).mean(1))


def test_an_activation_has_its_channels_where_the_layer_before_has():
    x = torch.rand(2, 3, 5)
    assert whence.channel_relevance(Series(lost=False).eval(), x, "act", 1).shape == (2, 7)
    assert whence.channel_relevance(Series(lost=True).eval(), x, "act", 1).shape == (2, 7)  # by the order of execution
    convolutions = nn.Sequential(nn.Conv1d(5, 7, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(7, 2))
    assert whence.channel_relevance(convolutions.eval(), x.mT, "1", 1).shape == (2, 7)


def test_edges_of_an_attribution_graph_add_up(cnn, tmp_path):
    x = pictures(1)
    graph = whence.attribution_graph(cnn, x, ["0", "3"], 1, n_channels=6)
    assert [len(nodes) for nodes in graph.nodes.values()] == [6, 5]
    for channel, relevance in graph.nodes["0"].items():
        assert sum(e.relevance for e in graph.edges if e.channel == channel) == pytest.approx(relevance, rel=1e-6)
    assert graph.save(tmp_path / "g.png").is_file()
    with pytest.raises(errors.RuleError, match="expected at least two, ordered from the input to the output"):
        whence.attribution_graph(cnn, x, ["3"])
    with pytest.raises(errors.InputError, match="needs one sample, got 3"):
        whence.attribution_graph(cnn, pictures(), ["0", "3"])
