"""Concepts, circuits, interactions, subspaces: against literal transcriptions and sums that must hold."""

import pytest
import torch
from torch import nn

import whence
from support.story_model import story_model
from whence import errors

SIDE = 12


@pytest.fixture
def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 4),
    ).double().eval()  # fmt: skip


def pictures(n=3):
    return torch.rand(n, 1, SIDE, SIDE, dtype=torch.float64)


def test_bilrp_equals_its_transcription_and_adds_up(cnn):
    embedder = nn.Sequential(*list(cnn)[:-1], nn.Linear(45, 7, bias=False)).double().eval()
    for layer in embedder:
        if getattr(layer, "bias", None) is not None:
            nn.init.zeros_(layer.bias)
    x1, x2 = pictures(2), pictures(2)
    found = whence.explain_similarity(embedder, x1, x2, patch=4, method=whence.LRP({}), progress=False)
    sides = []
    for x in (x1, x2):
        maps = [whence.explain(embedder, x, m, method=whence.LRP({})).relevance for m in range(7)]
        sides.append([m.sum(1).unflatten(2, (3, 4)).unflatten(1, (3, 4)).sum((2, 4)).flatten(1) for m in maps])
    expected = sum(one[:, :, None] * other[:, None, :] for one, other in zip(*sides, strict=True))
    torch.testing.assert_close(found.relevance, expected)
    torch.testing.assert_close(found.output, (embedder(x1) * embedder(x2)).sum(1).detach())
    torch.testing.assert_close(found.relevance.sum((1, 2)), found.output, rtol=1e-4, atol=1e-6)
    assert found.places == ((3, 3), (3, 3))


def test_a_similarity_as_it_comes(cnn, tmp_path):
    x1, x2 = pictures(1), pictures(1)
    found = whence.explain_similarity(cnn, x1, x2, progress=False)
    assert found.relevance.shape == (1, 144, 144)
    assert len(found.top(3)) == 3
    assert found.save(tmp_path / "s.png").stat().st_size > 5_000
    several = [whence.explain_similarity(cnn, x1, x2, n_projections=64, seed=s, progress=False).relevance for s in range(20)]
    mean, full = torch.stack(several).mean(0), found.relevance
    assert float((mean - full).norm() / full.norm()) < 0.4  # random signs over 4 dimensions, twenty times 64
    with pytest.raises(errors.InputError, match="embeddings of"):
        whence.explain_similarity(cnn, x1, pictures(2))
    with pytest.raises(errors.InputError, match=r"embeddings \[N, D\]"):
        whence.explain_similarity(nn.Conv2d(1, 2, 3).double().eval(), x1, x2)


def test_texts_are_compared_token_by_token(data):
    class Embedder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = story_model(data).model

        def forward(self, ids):
            return self.model(ids).last_hidden_state.mean(1)[:, :8]

    one, other = torch.tensor([[1, 403, 407]]), torch.tensor([[1, 261, 378, 300]])
    found = whence.explain_similarity(Embedder().eval(), one, other, progress=False)
    assert found.places == ((3,), (4,))


class GraphNetwork(nn.Module):
    """Σ over nodes of Λ ReLU(Λ X W₁) W₂ v: two interactions and a readout."""

    def __init__(self):
        super().__init__()
        self.interaction = nn.ModuleList([nn.Linear(3, 5, bias=False), nn.Linear(5, 4, bias=False)])
        self.readout = nn.Linear(4, 2, bias=False)

    def forward(self, x, adjacency):
        for layer in self.interaction:
            x = layer(adjacency @ x).relu()
        return self.readout(x.sum(-2, keepdim=x.dim() == 2))


def walk_by_hand(model, x, adjacency, walk, target):
    """R of one walk under LRP-0, by the chain of products along it."""
    w1, w2, v = (m.weight.detach() for m in (*model.interaction, model.readout))
    h1 = (adjacency @ x @ w1.T).relu()
    h2 = (adjacency @ h1 @ w2.T).relu()
    i, j, k = walk
    g = v[target] * (h2[k] > 0)
    g = adjacency[k, j] * (g @ w2) * (h1[j] > 0)
    g = adjacency[j, i] * (g @ w1)
    return float(x[i] @ g)


@pytest.mark.parametrize("batched", [True, False])
def test_walks_equal_their_transcription_and_add_up(batched):
    model = GraphNetwork().double().eval()
    x, adjacency = torch.rand(4, 3, dtype=torch.float64), torch.rand(4, 4, dtype=torch.float64)
    given = x[None] if batched else x
    layers = ["interaction.0", "interaction.1"]
    options = {"fixed": (adjacency,), "method": whence.LRP({})}
    found = whence.walks(model, given, layers, 1, **options)
    assert len(found.walks) == 64
    for walk, relevance in zip(found.walks, found.relevance, strict=True):
        assert float(relevance) == pytest.approx(walk_by_hand(model, x, adjacency, walk, 1), rel=1e-4, abs=1e-7)
    assert float(found.relevance.sum()) == pytest.approx(found.output, rel=1e-4)
    inside = whence.subgraph_relevance(model, given, layers, [0, 2, 3], 1, **options)
    assert inside == pytest.approx(found.within([0, 2, 3]), rel=1e-5)
    some = whence.walks(model, given, layers, 1, walks=[(3, 1, 0), (0, 1, 0)], **options)
    assert [w for w, _ in some.top(2)] == sorted(
        [(3, 1, 0), (0, 1, 0)], key=lambda w: -abs(walk_by_hand(model, x, adjacency, w, 1))
    )
    assert "64 walks" in repr(found)


class OfParameters(nn.Module):
    """An interaction whose weight no module holds, so that no kind tells where channels are."""

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 4))

        def forward(self, x, adjacency):
            return (adjacency @ x @ self.weight).relu()

    def __init__(self):
        super().__init__()
        self.interaction = nn.ModuleList([self.Step(), self.Step()])

    def forward(self, x, adjacency):
        for step in self.interaction:
            x = step(x, adjacency)
        return x.sum(-2, keepdim=x.dim() == 2)


def test_nodes_are_nodes_in_a_batch_of_one_too():
    model, x, adjacency = OfParameters().eval(), torch.rand(4, 4), torch.eye(4) + torch.eye(4).roll(1, 0)
    layers = ["interaction.0", "interaction.1"]
    one, batch = (whence.walks(model, given, layers, 1, fixed=(adjacency,)) for given in (x, x[None]))
    torch.testing.assert_close(one.relevance, batch.relevance)
    for (i, j, k), r in zip(batch.walks, batch.relevance.tolist(), strict=True):
        assert r == 0 or (adjacency[j, i] and adjacency[k, j])
    with pytest.raises(errors.RuleError, match="run in the order"):
        whence.walks(model, x, layers[::-1], 1, fixed=(adjacency,))


def test_wrong_walks_are_named():
    model, x = GraphNetwork().eval(), torch.rand(4, 3)
    with pytest.raises(errors.RuleError, match="expected 3 nodes from 0 to 3"):
        whence.walks(model, x, ["interaction.0", "interaction.1"], 1, walks=[(0, 1)], fixed=(torch.eye(4),))
    with pytest.raises(errors.InputError, match="one graph"):
        whence.walks(model, torch.rand(2, 4, 3), ["interaction.0"], fixed=(torch.eye(4),))
    with pytest.raises(errors.RuleError, match="pass some of them"):
        whence.walks(model, torch.rand(400, 3), ["interaction.0", "interaction.1"], fixed=(torch.eye(400),))
    with pytest.raises(errors.RuleError, match=r"walks=\[\]"):
        whence.walks(model, x, ["interaction.0"], 1, walks=[], fixed=(torch.eye(4),))


def test_rules_keep_their_paths_beside_what_is_fixed():
    model, x, adjacency = GraphNetwork().eval(), torch.rand(4, 3), torch.rand(4, 4)
    by_path = whence.LRP({"interaction.*": whence.Gamma(10)})
    tensor, nest, named = (
        whence.walks(model, x, "interaction.*1", 1, fixed=fixed, method=method).relevance
        for fixed, method in [(adjacency, by_path), ((adjacency,), by_path), ({"adjacency": adjacency}, whence.LRP({}))]
    )
    torch.testing.assert_close(tensor, nest)
    assert not torch.allclose(tensor, named)
    assert "forward" not in vars(model)
