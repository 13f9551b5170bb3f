"""Concepts, circuits, interactions, subspaces: against literal transcriptions and sums that must hold."""

import numpy as np
import pytest
import torch
from torch import nn

import whence
from stories import story_model
from whence import errors
from whence.mechanistic.channel_relevance import last_conv_layer, receptive_field
from whence.mechanistic.subspaces import subspace_relevance
from whence.models.digits import digit_samples, digits

SIDE = 12


@pytest.fixture
def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 4),
    ).double().eval()  # fmt: skip


def pictures(n=3):
    return torch.rand(n, 1, SIDE, SIDE, dtype=torch.float64)


# concepts


def test_channel_relevance_is_the_sum_over_places(cnn):
    x = pictures()
    e = whence.explain(cnn, x, 1, layers=["3"])
    torch.testing.assert_close(whence.channel_relevance(cnn, x, "3", 1), e.layers["3"].sum((2, 3)))
    torch.testing.assert_close(whence.channel_relevance(cnn, x, "6", 1)[:, 1], e.output)


def test_a_receptive_field_is_the_known_one(cnn):
    x = pictures(1)
    window = receptive_field(cnn, x, "0", 2, (4, 7))
    assert (window.rows, window.columns) == (slice(4, 7), slice(7, 10))
    with pytest.raises(errors.SelectorError, match=r"position \(99, 0\) is not among"):
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
    with pytest.raises(errors.InputError, match="one picture"):
        whence.concepts(digits(), x[:2])
    with pytest.raises(errors.SelectorError, match="no channel 999"):
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
        with pytest.raises(errors.SelectorError, match="'\\*' stands for 7 layers, '0' the first"):
            of_one(cnn, x, "*")
    with pytest.raises(errors.SelectorError, match="stands for 7 layers"):
        whence.attribution_graph(cnn, x, ["0", "*"], 1)
    with pytest.raises(errors.RuleError, match="channels=0"):
        whence.attribution_graph(cnn, x, ["0", "3"], 1, n_channels=0)
    with pytest.raises(errors.SelectorError, match="no channel 6"):
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
    with pytest.raises(errors.SelectorError, match=r"'act' gives \(2, 3, 7\), and nothing tells"):
        whence.channel_relevance(Series(lost=True).eval(), x, "act", 1)
    convolutions = nn.Sequential(nn.Conv1d(5, 7, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(7, 2))
    assert whence.channel_relevance(convolutions.eval(), x.mT, "1", 1).shape == (2, 7)


def test_edges_of_an_attribution_graph_add_up(cnn, tmp_path):
    x = pictures(1)
    graph = whence.attribution_graph(cnn, x, ["0", "3"], 1, n_channels=6)
    assert [len(nodes) for nodes in graph.nodes.values()] == [6, 5]
    for channel, relevance in graph.nodes["0"].items():
        assert sum(e.relevance for e in graph.edges if e.channel == channel) == pytest.approx(relevance, rel=1e-6)
    assert graph.save(tmp_path / "g.png").is_file()
    with pytest.raises(errors.RuleError, match="two or more"):
        whence.attribution_graph(cnn, x, ["3"])
    with pytest.raises(errors.InputError, match="one sample, not of 3"):
        whence.attribution_graph(cnn, pictures(), ["0", "3"])


# circuits


class Mixer(nn.Module):
    """Tokens, two linear layers with a way round, and a metric on the last token: patching it is linear."""

    def __init__(self, activation=nn.Identity):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
        self.act, self.head = activation(), nn.Linear(6, 11)

    def forward(self, ids):
        a = self.embed(ids)
        for layer in self.layers:
            a = a + self.act(layer(a.cumsum(1)))
        return self.head(a)


def tokens():
    return torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), torch.tensor([[1, 9, 3, 4], [5, 6, 2, 8]])


@pytest.mark.parametrize("components", [["layers.*"], {"layers.*": "channels"}, {"input of layers.1": whence.Heads((), of=3)}])
def test_patching_of_a_linear_network_is_exact(components):
    model, (clean, corrupted) = Mixer().double().eval(), tokens()
    found = whence.patching(
        model,
        clean,
        corrupted,
        whence.Logit(3, rather_than=4),
        components,
        estimator=["relevance", "gradient", "exact"],
        progress=False,
    )
    for layer in found.effects["exact"]:
        torch.testing.assert_close(found.effects["relevance"][layer], found.effects["exact"][layer], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.effects["gradient"][layer], found.effects["exact"][layer])
    assert found.correlation("relevance", "exact") == pytest.approx(1, abs=1e-6)


def test_exact_patching_is_a_run_with_the_activation_replaced():
    model, (clean, corrupted) = Mixer(nn.GELU).double().eval(), tokens()
    target = whence.Logit(3, rather_than=4)
    found = whence.patching(model, clean, corrupted, target, ["layers.0"], estimator="exact", progress=False)
    with torch.no_grad():
        metric = lambda out: out[:, -1, 3] - out[:, -1, 4]  # noqa: E731
        torch.testing.assert_close(found.clean, metric(model(clean)))
        torch.testing.assert_close(found.corrupted, metric(model(corrupted)))
        there = model.layers[0](model.embed(corrupted).cumsum(1))
        for t in range(4):

            def patched(module, args, out, t=t):
                out = out.clone()
                out[:, t] = there[:, t]
                return out

            handle = model.layers[0].register_forward_hook(patched)
            expected = metric(model(clean)) - found.clean
            handle.remove()
            torch.testing.assert_close(found.effects["exact"]["layers.0"][:, t], expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_relevance_patching_by_default_on_a_llama(data, tmp_path):
    model = story_model(data)
    clean, corrupted = torch.tensor([[1, 317, 267, 326, 400, 281]]), torch.tensor([[1, 326, 267, 317, 400, 281]])
    found = whence.patching(model, clean, corrupted, whence.Logit(317, rather_than=326), progress=False)
    assert list(found.effects["relevance"]) == [f"model.layers.{i}" for i in range(5)]
    assert found.effects["relevance"]["model.layers.0"].shape == (1, 6)
    exact = whence.patching(
        model, clean, corrupted, whence.Logit(317, rather_than=326), estimator=["relevance", "exact"], progress=False
    )
    assert exact.correlation("relevance", "exact") > 0.8
    last = exact.effects["exact"]["model.layers.4"][:, -1]  # all that the head reads
    torch.testing.assert_close(last, exact.corrupted - exact.clean, rtol=1e-4, atol=1e-4)
    assert exact.save(tmp_path / "p.png").is_file()
    assert "correlation of relevance with exact" in repr(exact)
    assert exact.top(1)[0][0].startswith("model.layers.")


def test_wrong_patching_is_named():
    model, (clean, corrupted) = Mixer().eval(), tokens()
    with pytest.raises(errors.InputError, match="texts of as many tokens"):
        whence.patching(model, clean, corrupted[:, :3], components=["layers.0"])
    with pytest.raises(errors.SelectorError, match=r"no layer 'layer\.0'"):
        whence.patching(model, clean, corrupted, components=["layer.0"])
    with pytest.raises(errors.SelectorError, match="do not divide into 4 heads"):
        whence.patching(model, clean, corrupted, components={"layers.0": whence.Heads((), of=4)})
    with pytest.raises(errors.RuleError, match="by='relevence'"):
        whence.patching(model, clean, corrupted, components=["layers.0"], estimator="relevence")
    with pytest.raises(errors.RuleError, match="all heads are patched"):
        whence.patching(model, clean, corrupted, components={"layers.0": whence.Heads([0], of=2)})
    x = pictures(1).float()
    with pytest.raises(errors.SelectorError, match="no tokens to patch"):
        whence.patching(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).eval(), x, x * 0.5, 1, ["0"])
    with pytest.raises(errors.RuleError, match="choose 'places'"):
        whence.patching(model, clean, corrupted, components={"layers.0": "tokens"})
    with pytest.raises(errors.RuleError, match=r"by=\[\]"):
        whence.patching(model, clean, corrupted, estimator=[])
    model.spare = nn.Linear(2, 2).eval()
    with pytest.raises(errors.ModelError, match="layer 'spare' was not called"):
        whence.patching(model, clean, corrupted, components=["spare"], estimator="exact")


def test_layers_by_their_usual_names_are_patched_unasked():
    model, (clean, corrupted) = Mixer().eval(), tokens()
    assert list(whence.patching(model, clean, corrupted).effects["relevance"]) == ["layers.0", "layers.1"]


class Told(nn.Module):
    """A layer that gives a dict, and vectors without tokens."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3, bias=False)

        def forward(self, x):
            return {"hidden": self.linear(x), "width": 3}

    def __init__(self):
        super().__init__()
        self.layer, self.head = self.Layer(), nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.head(self.layer(x)["hidden"])


@pytest.mark.parametrize("parts", ["places", "channels"])
def test_vectors_have_one_place_and_dicts_are_patched(parts, tmp_path):
    model, (x, y) = Told().eval(), torch.randn(2, 4, 3)
    found = whence.patching(model, x, y, 1, {"layer": parts}, estimator=["relevance", "exact"], progress=False)
    assert found.effects["exact"]["layer"].shape == ((4, 1) if parts == "places" else (4, 1, 3))
    torch.testing.assert_close(found.flat("relevance"), found.flat("exact"), rtol=1e-4, atol=1e-5)
    found.save(tmp_path / "patching.png")


# interactions


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
    with pytest.raises(errors.RuleError, match="give 3 of the nodes 0 to 3"):
        whence.walks(model, x, ["interaction.0", "interaction.1"], 1, walks=[(0, 1)], fixed=(torch.eye(4),))
    with pytest.raises(errors.InputError, match="one graph"):
        whence.walks(model, torch.rand(2, 4, 3), ["interaction.0"], fixed=(torch.eye(4),))
    with pytest.raises(errors.RuleError, match="give some"):
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


# subspaces


def test_prca_finds_the_direction_that_carries_relevance():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2)).double().eval()
    x = torch.randn(400, 5, dtype=torch.float64)
    found = whence.subspaces(model, x, "0", target=1, progress=False)
    # c is the same everywhere, the weight of the output: R = aᵀc lies along E[a] and c alone
    a, c = model[0](x).detach(), model[1].weight[1].detach().expand(400, 6)
    values, vectors = np.linalg.eigh((a.T @ c + c.T @ a).numpy())
    assert abs(float(vectors[:, -1] @ found.direction(0).double().numpy())) == pytest.approx(1, abs=1e-4)
    assert float(found.relevance[0]) == pytest.approx(values[-1] / 800, rel=1e-3)
    e = whence.explain(model, x, 1, through=found.through(0))
    assert float(e.conservation.conditional_output.mean()) == pytest.approx(float(found.relevance[0]), rel=1e-3)
    whole = whence.subspaces(model, x, "0", target=1, n_dimensions=6, progress=False)
    assert float(whole.relevance[0]) == pytest.approx(whole.total, rel=1e-4)
    assert "1 of 1 dimensions" in repr(found)


def test_drsa_tells_apart_what_samples_of_two_kinds_use():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[2].weight.copy_(torch.ones(1, 4))
    x = torch.zeros(200, 4, dtype=torch.float64)
    x[:100, :2], x[100:, 2:] = torch.rand(100, 2, dtype=torch.float64), torch.rand(100, 2, dtype=torch.float64)
    found = whence.subspaces(model, (x, torch.zeros(200)), "1", algorithm="drsa", n_subspaces=2, n_dimensions=1, progress=False)
    carried = subspace_relevance(found.bases.double(), x, torch.ones(200, 4, dtype=torch.float64))
    first = carried[:100].sum(0) > carried[100:].sum(0)
    assert int(first.sum()) == 1  # each subspace is that of one kind
    assert float(carried.sum()) > 0.9 * float(x.sum())
    assert torch.allclose(found.bases[0].T @ found.bases[1], torch.zeros(1, 1), atol=1e-5)


def test_subspaces_are_conditions_and_prototypes(cnn):
    x = pictures(8)
    found = whence.subspaces(cnn, x, "3", target=2, algorithm="drsa", n_subspaces=2, n_dimensions=2, n_steps=20, progress=False)
    parts = [whence.explain(cnn, x, 2, through=found.through(k)).relevance for k in range(2)]
    both = {"3": whence.Directions(torch.cat(list(found.bases), 1).double())}
    torch.testing.assert_close(sum(parts), whence.explain(cnn, x, 2, through=both).relevance, rtol=1e-4, atol=1e-6)
    made = whence.prototype(
        cnn.float(),
        whence.objectives.Direction("3", found.direction(0), cosine=0),
        shape=(1, SIDE, SIDE),
        n_steps=3,
        progress=False,
    )
    assert made.images.shape == (1, 1, SIDE, SIDE)
    with pytest.raises(errors.RuleError, match="give fewer"):
        whence.subspaces(cnn, x.float(), "3", n_dimensions=9, progress=False)
    with pytest.raises(errors.RuleError, match="choose 'prca' or 'drsa'"):
        whence.subspaces(cnn, x.float(), "3", algorithm="pca", progress=False)


def test_subspaces_take_data_and_targets_as_evaluate_does(cnn):
    x, y = pictures(8), torch.arange(8) % 4
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3)
    found = [
        whence.subspaces(cnn, data, "3", target=target, progress=False, batch_size=3).relevance
        for data, target in [((x, y), y), (x, y.tolist()), (loader, y), (x, [3] * 8), (x, torch.tensor(3)), ((x, y), 3)]
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[3], found[4])
    assert torch.equal(found[3], found[5])
    with pytest.raises(errors.InputError, match="empty"):
        whence.subspaces(cnn, x[:0], "3", progress=False)
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=3, shuffle=True)
    with pytest.raises(errors.TargetError, match="does not shuffle"):
        whence.subspaces(cnn, shuffled, "3", target=y, progress=False)
