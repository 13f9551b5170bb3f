"""Ids and where they are looked up: tables, bags, one-hot vectors, ids that a network puts in itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from whence import LRP, Epsilon

pytestmark = pytest.mark.usefixtures("float64")


METHODS = ["lrp", "gradient_times_input", "integrated_gradients", "sensitivity", whence.SmoothGrad(n_samples=2)]


@pytest.fixture
def ids():
    ids = torch.randint(1, 9, (2, 5))
    ids[0, 3] = 0
    return ids


def written_out(bag, ids):
    """The same by `nn.Embedding`."""
    vectors = F.embedding(ids, bag.weight)
    kept = torch.ones_like(ids, dtype=torch.bool) if bag.padding_idx is None else ids != bag.padding_idx
    if bag.mode == "max":
        return vectors.masked_fill(~kept[..., None], -9e9).amax(1)
    sums = (vectors * kept[..., None]).sum(1)
    return sums if bag.mode == "sum" else sums / kept.sum(1, keepdim=True)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_bag_is_its_embeddings_pooled(ids, mode, padding, method):
    bag, layer = nn.EmbeddingBag(9, 4, mode=mode, padding_idx=padding), nn.Linear(4, 3)
    e = whence.explain(lambda ids: layer(bag(ids)), ids, 1, method=method)
    parts = whence.explain(lambda ids: layer(written_out(bag, ids)), ids, 1, method=method)
    assert torch.allclose(e.relevance, parts.relevance, atol=1e-10)
    assert torch.equal(e.output, layer(bag(ids))[:, 1])


def test_bags_in_one_row_with_the_places_where_they_begin(ids):
    bag, layer = nn.EmbeddingBag(9, 4), nn.Linear(4, 3)
    model = lambda text, offsets: layer(bag(text, offsets))  # noqa: E731
    padded = whence.explain(lambda ids: layer(bag(ids)), ids, 1)
    e = whence.explain(model, (ids.flatten(), torch.tensor([0, 5])), 1)
    assert torch.allclose(e.relevance[0].view(2, 5), padded.relevance)
    assert e.conservation.error.max() < 1e-10
    alone = whence.explain(model, (ids[0], torch.tensor([0])), 1)
    assert torch.allclose(alone.relevance[0], padded.relevance[0])
    assert alone.output.shape == (1,)


def test_weights_and_last_offsets_of_a_bag(ids):
    bag, share = nn.EmbeddingBag(9, 4, mode="sum", include_last_offset=True), torch.rand(10)
    model = lambda text, offsets: bag(text, offsets, per_sample_weights=share)  # noqa: E731
    e = whence.explain(model, (ids.flatten(), torch.tensor([0, 10])), lambda y: y[:, 1])
    assert torch.allclose(e.relevance[0], bag.weight[ids.flatten(), 1] * share)


@pytest.mark.parametrize(
    "hot",
    [
        lambda ids: F.one_hot(ids, 9).double(),
        lambda ids: F.one_hot(ids, 9).to(torch.float64),
        lambda ids: F.one_hot(ids, 9).long().type(torch.float64),
        lambda ids: F.one_hot(ids).float().double(),
    ],
)
def test_one_hot_vectors_times_a_table_are_looked_up(ids, hot):
    ids[0, 0] = 8
    table, layer = torch.randn(9, 4), nn.Linear(4, 3)
    looked_up = whence.explain(lambda ids: layer(table[ids].sum(1)), ids, 1)
    e = whence.explain(lambda ids: layer((hot(ids) @ table).sum(1)), ids, 1)
    assert torch.allclose(e.relevance.double(), looked_up.relevance, rtol=1e-5)


@pytest.mark.parametrize("method", [*METHODS, whence.FeatureAblation(baselines=0), whence.Shapley(baselines=0)], ids=str)
def test_sequences_as_one_hot_channels(ids, method):
    """DNA: the letters are channels, moved to where a convolution has them."""
    conv, layer = nn.Conv1d(9, 4, 3), nn.Linear(4, 3)
    e = whence.explain(
        lambda ids: layer(conv(F.one_hot(ids, 9).permute(0, 2, 1).double()).relu().amax(2)), ids, 1, method=method
    )
    assert e.relevance.shape == (2, 5)
    assert e.relevance.any()
    if method in ("lrp", "integrated_gradients"):
        assert e.conservation.error.max() < (1e-6 if method == "lrp" else 0.1)
    if isinstance(method, whence.Shapley):
        changed = ids.clone()
        changed[:, :] = 0
        difference = layer(conv(F.one_hot(ids, 9).mT.double()).relu().amax(2)) - layer(
            conv(F.one_hot(changed, 9).mT.double()).relu().amax(2)
        )
        assert torch.allclose(e.relevance.sum(1), difference[:, 1].detach())


def test_what_ids_of_the_networks_own_absorb_is_counted(ids):
    """Soft prompts, and padding that a network puts in."""
    table, layer = torch.randn(9, 4), nn.Linear(4, 3, bias=False)

    def prompted(ids):
        return layer(table[torch.cat([torch.full((2, 3), 7), F.pad(ids, (0, 1), value=2)], 1)].sum(1))

    e = whence.explain(prompted, ids, 1, method=LRP({nn.Linear: Epsilon(0)}))
    assert e.conservation.error.max() < 1e-10
    own = layer(3 * table[7] + table[2])[1].detach()
    assert torch.allclose(e.conservation.by_layer["ids created inside the model"], own.expand(2))


def test_deep_taylor_on_words_is_w_squared_by_hand():
    """king, man, queen, woman: R_i = Σ_j w_ij² / Σ_i w_ij² · R_j for unbounded real input, whatever the vector."""
    king, man, queen, woman = range(4)
    table = torch.tensor([[1.0, 1.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, 0.0]])  # (male, royal)
    weight = torch.tensor([[2.0, 0.5, -1.0, 0.5], [0.0, 1.0, 0.0, 1.0], [-1.0, 0.0, 2.0, 1.0]])  # of two words in a row
    top = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 1.0]])
    model = lambda ids: F.linear(F.relu(F.linear(table[ids].flatten(1), weight)), top)  # noqa: E731
    pairs = torch.tensor([[king, queen], [man, woman], [queen, king]])
    e = whence.explain(model, pairs, 0, method=LRP(whence.presets.deep_taylor()))
    for ids, relevance in zip(pairs, e.relevance, strict=True):
        hidden = (weight @ table[ids].flatten()).clamp(min=0)
        of_hidden = top[0] * hidden  # all weights are positive: z⁺ gives each its part
        shares = weight.square() / weight.square().sum(1, keepdim=True)
        assert torch.allclose(relevance, (shares * of_hidden[:, None]).sum(0).view(2, 2).sum(1))
    assert not torch.allclose(e.relevance, whence.explain(model, pairs, 0, method=LRP({F.linear: whence.ZPlus()})).relevance)


def test_rules_of_the_input_layer_reach_every_look_up_of_an_id():
    word, place, layer = nn.Embedding(9, 4), nn.Embedding(5, 4), nn.Linear(4, 3)
    ids = torch.randint(9, (2, 5))
    for rule in (whence.Flat(), whence.WSquare()):
        rules = LRP({whence.presets.input_layer: rule})
        e = whence.explain(lambda ids: layer(word(ids) + place.weight).sum(1), ids, 1, method=rules)
        vectors = whence.explain(lambda v: layer(v).sum(1), (word(ids) + place.weight).detach(), 1, method=rules)
        assert torch.allclose(e.relevance, vectors.relevance.sum(-1))
        assert e.conservation.error.max() < 1e-10
        several = list(whence.explain_targets(lambda ids: layer(word(ids)).sum(1), ids, [0, 1], method=rules))
        for target, one in enumerate(several):
            alone = whence.explain(lambda ids: layer(word(ids)).sum(1), ids, target, method=rules)
            assert torch.allclose(one.relevance, alone.relevance)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_of_nothing(ids, mode):
    bag, layer = nn.EmbeddingBag(9, 4, mode=mode), nn.Linear(4, 3)
    e = whence.explain(lambda text, offsets: layer(bag(text, offsets)), (ids[0], torch.tensor([0, 0])), lambda y: y[:, 1])
    assert torch.equal(e.output, layer(bag(ids[0], torch.tensor([0, 0])))[:, 1])
    assert torch.isfinite(e.relevance[0]).all()
    assert e.conservation.error.max() < 1e-10


@pytest.mark.parametrize(
    "on", [lambda hot: hot * 1.0, lambda hot: hot.sum(1).double(), lambda hot: hot / 2, lambda hot: hot + 1]
)
def test_one_hot_vectors_that_cannot_be_followed_are_refused(ids, on):
    layer, x = nn.Linear(9, 3), torch.randn(2, 5, 4)

    def model(ids, x):
        return layer(on(F.one_hot(ids, 9)).double().reshape(2, -1, 9)).sum(1) + x.sum((1, 2))[:, None]

    with pytest.raises(whence.errors.InputError, match=r"F.one_hot\(ids, n\).float\(\)"):
        whence.explain(model, (ids, x), 0)
    asked = whence.explain(lambda ids, x: x.sum((1, 2))[:, None] + F.one_hot(ids, 9).argmax(-1)[:, :1] * 0, (ids, x), 0)
    assert asked.relevance[0] is None


def test_long_vectors_of_a_bag_are_brought_down_first(ids):
    bag = nn.EmbeddingBag(9, 4, mode="sum", max_norm=0.1)
    e = whence.explain(bag.eval(), ids, 0)
    assert e.conservation.error.max() < 1e-9
    assert torch.allclose(e.output, bag(ids)[:, 0])


def test_weights_of_a_bag_that_are_explained_are_refused_by_what_can_be_done(ids):
    bag = nn.EmbeddingBag(9, 4, mode="sum")
    with pytest.raises(whence.errors.UnknownFunctionError, match=r"multiply the vectors of F\.embedding by the weights"):
        whence.explain(lambda ids, weights: bag(ids, per_sample_weights=weights), (ids, torch.rand(2, 5)), 0)


def test_what_rules_of_the_input_layer_give_to_ids_of_the_networks_own_is_counted(ids):
    table, layer = torch.randn(9, 4), nn.Linear(4, 3)
    padded = lambda ids: layer(table[F.pad(ids, (0, 2), value=3)]).relu().sum(1)  # noqa: E731
    e = whence.explain(padded, ids, 1, method=LRP({whence.presets.input_layer: whence.WSquare()}))
    assert e.conservation.by_layer["ids created inside the model"].abs().max() > 0
    assert e.conservation.error.max() < 1e-10
