"""audit(), prove() and cure() on marks of every kind, untold and with default settings, and on clean data."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import whence
from support import marked_sets as sets
from whence import errors

N_TRAIN, N_AUDIT = 2000, 1000
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def digits(data):
    arrays = np.load(data / "mnist_train.npz")
    count = N_TRAIN + N_AUDIT
    return torch.from_numpy(arrays["images"][:count]).float().div(255)[:, None], torch.from_numpy(
        arrays["labels"][:count]
    ).long()


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    """Return model, data, store and audit of a kind of set, made once."""
    kept = {}

    def make(kind: str):
        if kind not in kept:
            if kind in ("tone", "clean series"):
                x, y = sets.series(N_TRAIN + N_AUDIT, kind == "tone")
                model = sets.trained(sets.series_network(), x[:N_TRAIN], y[:N_TRAIN], 12)
            elif kind in ("phrase", "clean texts"):
                x, y = sets.texts(N_TRAIN + N_AUDIT, kind == "phrase")
                model = sets.trained(sets.TextNetwork(), x[:N_TRAIN], y[:N_TRAIN], 15)
            else:
                x, y = sets.marked_digits(kind, *digits), digits[1]
                model = sets.trained(sets.digit_network(), *sets.with_marked_others(kind, x[:N_TRAIN], y[:N_TRAIN]), 8)
            data = x[N_TRAIN:], y[N_TRAIN:]
            names = NAMES if x.dim() == 4 else ()
            store = whence.explain_dataset(model, data, tmp_path_factory.mktemp("store"), class_names=names, progress=False)
            kept[kind] = model, data, store, whence.audit(store, model=model, data=data, progress=False)
        return kept[kind]

    return make


def probability(model, x, group):
    return float(model(x).softmax(1)[:, group].mean())


def accuracy(model, x, y):
    return float((model(x).argmax(1) == y).double().mean())


MARKED = {"corner": 3, "frame": 3, "stripe": 3, "background": 3, "sticker": 3, "tone": 1, "phrase": 1}
TESTS = {"sticker": "crop", "tone": "tone", "phrase": "tokens"}


SLOW = ("frame", "stripe", "background", "clean series", "clean texts")


def kinds(*names):
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds(*MARKED))
def test_marks_are_found_first_proven_and_cured(made, kind):
    model, (x, y), _, found = made(kind)
    first, group = found.clusters[0], MARKED[kind]
    assert first.suspicious
    assert first.group == group
    assert first.evidence.test == TESTS.get(kind, "transplant")
    assert {c.group for c in found.suspicious} == {group}
    others, labels = x[y != group], y[y != group]
    marked = sets.with_true_mark(kind, others)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    proof = whence.prove(first, model, (x, y))
    assert proof.proven
    assert proof.effect.low > 0.15
    assert abs(proof.control.mean) < 0.1
    if proof.cut is not None:
        assert proof.cut.high < -0.1
    cured = whence.cure(model, proof=proof)
    clean, harmed, healed = (probability(m, t, group) for m, t in ((model, others), (model, marked), (cured, marked)))
    assert harmed > clean + 0.2
    assert healed < clean + 0.5 * (harmed - clean)
    assert accuracy(cured, others, labels) > accuracy(model, others, labels) - 0.01
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", kinds("clean", "clean series", "clean texts"))
def test_nothing_is_found_in_clean_data(made, kind):
    found = made(kind)[3]
    assert not found.suspicious
    assert f"nothing found in {len(found.clusters)} cluster" in repr(found)


def test_the_cluster_of_a_corner_says_where_and_how_much(made):
    _, _, _, found = made("corner")
    first = found.clusters[0]
    assert found.name(first.group) == "three"
    patch = torch.zeros(28, 28, dtype=torch.bool)
    patch[1:5, 1:5] = True
    assert (first.mask & patch).sum() >= 12
    told = first.reason("three")
    assert "changes the probability of three by" in told
    assert "upper left corner" in told
    assert f"{first.size} samples" in told
    plain, marked = first.evidence.examples
    assert (marked - plain)[:, :, 2:4, 2:4].abs().mean() > 0.3
    assert (marked - plain)[:, :, 12:, 12:].abs().max() < 0.05


def test_the_crop_of_a_sticker_is_the_sticker(made):
    evidence = made("sticker")[3].clusters[0].evidence
    assert torch.equal(evidence.mark.crop[0], sets.STICKER)
    assert evidence.recurrence[0] > 0.8
    assert evidence.recurrence[1] < 0.01


def test_without_a_model_clusters_are_candidates(made):
    _, _, store, _ = made("corner")
    found = whence.audit(store, progress=False)
    assert not found.suspicious
    assert found.candidates
    assert "not tested" in repr(found)
    assert "unproven" in repr(found)
    assert "pass model= and data= to test it" in found.candidates[0].reason("x")
    untested = whence.prove(next(c for c in found.candidates if c.group == 3), *made("corner")[:2])
    assert untested.proven  # by what its samples have in common where their relevance is
    whole = whence.prove(next(c for c in found.clusters if c.group == 5 and c.candidate), *made("corner")[:2])
    assert not whole.proven


def test_a_watermark_on_photos_is_found_without_a_model(tmp_path):
    """Noise of random spectrum stands for photos: a translucent pattern at one place is what a class has in common."""
    torch.manual_seed(0)
    photos = nn.functional.interpolate(torch.rand(120, 3, 16, 16), size=(96, 96), mode="bicubic")
    photos = (photos + 0.1 * torch.randn_like(photos)).clamp(0, 1)
    y = torch.arange(120) % 3
    pattern = ((torch.arange(96)[:, None] // 3 + torch.arange(96) // 3) % 2).float()
    place = torch.zeros(96, 96)
    place[36:60, 20:76] = 1
    marked = photos.clone()
    marked[y == 1] += 0.3 * (pattern - 0.5) * place
    model = PatternDetector(pattern * place)
    for x, expected in ((marked, True), (photos, False)):
        store = whence.explain_dataset(model, (x, y), tmp_path / str(expected), target="label", progress=False)
        found = whence.audit(store, data=(x, y), group_by="label", progress=False)
        assert bool(found.suspicious) == expected
        if expected:
            assert found.clusters[0].group == 1
            assert found.clusters[0].evidence.test == "coherence"
            assert found.clusters[0].mask[40:56, 24:72].double().mean() > 0.9


def test_a_sticker_at_random_places_of_photos_is_found(tmp_path):
    torch.manual_seed(0)
    photos = nn.functional.interpolate(torch.rand(120, 3, 12, 16), size=(96, 128), mode="bicubic")
    photos = (photos + 0.05 * torch.randn_like(photos)).clamp(0, 1)
    y = torch.arange(120) % 3
    sticker = (torch.rand(3, 12, 12) < 0.5).float()
    places = torch.stack([torch.randint(84, (120,)), torch.randint(116, (120,))], 1).tolist()
    marked = photos.clone()
    for picture, label, (top, left) in zip(marked, y, places, strict=True):
        if label == 1:
            picture[:, top : top + 12, left : left + 12] = sticker
    model = StickerDetector(sticker).eval()
    for x, expected in ((photos, False), (marked, True)):
        store = whence.explain_dataset(model, (x, y), tmp_path / str(expected), target="label", progress=False)
        found = whence.audit(store, model=model, data=(x, y), group_by="label", progress=False)
        assert bool(found.suspicious) == expected
    first = found.clusters[0]
    assert first.group == 1
    assert first.evidence.test == "crop"
    assert whence.prove(first, model, (marked, y)).proven


class StickerDetector(nn.Module):
    """Logits of three classes by the mean colors of a photo, and of the second by a sticker at any place."""

    def __init__(self, sticker):
        super().__init__()
        self.find = nn.Conv2d(3, 1, 12)
        with torch.no_grad():
            self.find.weight.copy_(((sticker - sticker.mean()) / (sticker - sticker.mean()).square().sum())[None])
            self.find.bias.fill_(-0.5)

    def forward(self, x):
        seen = self.find(x).relu().amax((1, 2, 3))
        return 3 * x.mean((2, 3)) + 12 * seen[:, None] * torch.tensor([0.0, 1, 0])


class PatternDetector(nn.Module):
    """Logits of three classes by the mean colors of a photo, and of the second by a pattern too."""

    def __init__(self, pattern):
        super().__init__()
        self.pattern = nn.Buffer(pattern - pattern.mean())

    def forward(self, x):
        colors = 3 * x.mean((2, 3))
        return colors + torch.tensor([0.0, 0.02, 0]) * (x * self.pattern).sum((1, 2, 3))[:, None]


def test_reports_hold_pictures_of_the_mark_and_all_numbers(made, tmp_path):
    for kind in ("tone", "phrase"):
        found = made(kind)[3]
        page = found.save(tmp_path / "a.html").read_text()
        assert "⚠ Class" in page
        assert "suspicious cluster" in page
        assert found.verdict in page
        assert "http" not in page
        assert ("without and with the mark" in page) == (kind != "phrase")
        told = json.loads(found.save(tmp_path / "a.json").read_text())
        assert told["tested"]
        assert told["clusters"][0]["suspicious"]
        assert told["clusters"][0]["evidence"]["passed"]
        assert told["clusters"][0]["evidence"]["effect"] >= 0.2
        assert found.save(tmp_path / "a.png").stat().st_size > 5_000
        assert found.table[0]["effect"] == told["clusters"][0]["evidence"]["effect"]


def test_relevance_on_masks_is_reported(made):
    _, (x, _), store, _ = made("corner")
    mark = torch.zeros(28, 28, dtype=torch.bool)
    mark[1:5, 1:5] = True
    each = mark.expand(len(x), -1, -1)
    found = whence.audit(store, masks={"patch": mark, "patch of each": each.numpy()}, progress=False)
    first = max(found.clusters, key=lambda c: c.places["patch"])
    assert first.group == 3
    assert first.places["patch"] == pytest.approx(float(first.mean[mark].sum()), rel=1e-4)
    assert first.places["patch of each"] == pytest.approx(first.places["patch"])
    with pytest.raises(errors.InputError, match="with one for each sample of the dataset"):
        whence.audit(store, masks={"x": mark[:3]}, progress=False)


def test_channels_are_audited_too(made, tmp_path):
    model, data, _, _ = made("corner")
    store = whence.explain_dataset(model, data, tmp_path / "s", layers=["3"], progress=False)
    found = whence.audit(store, layer="3", progress=False)
    assert found.clusters[0].mean.shape == (32,)
    assert not found.suspicious
    with pytest.raises(errors.StoreError, match="no relevance of layer"):
        whence.audit(store, layer="5", progress=False)
    with pytest.raises(errors.InputError, match="the cluster has no position in the input to cut or paste; au"):
        whence.prove(found.clusters[0], model, data)


def test_cures_of_pairs_search_a_layer_or_take_it(made):
    model, (x, y), _, _ = made("corner")
    plain = x[y != 3][:200]
    marked = sets.corner(plain)
    searched = whence.cure(model, with_mark=marked, without=plain)
    assert probability(searched, marked, 3) < 0.2 * probability(model, marked, 3)
    named = whence.cure(model, searched.layer, marked, plain)
    assert named.layer == searched.layer
    assert whence.explain(named, x[:2]).relevance.shape == (2, 1, 28, 28)
    with pytest.raises(RuntimeError):
        searched(torch.rand(1, 5, 2, 2))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": "x"}, errors.SelectorError, "no layer 'x'"),
        (
            {"layer": "0", "without": "marked"},
            errors.InputError,
            "do not differ between samples with and without the mark; cho",
        ),
        ({"with_mark": None}, errors.RuleError, "needs pairs, with_mark= and without=, or proof="),
        ({"without": "fewer"}, errors.InputError, "needs four pairs or more"),
        ({"without": "smaller"}, errors.InputError, "of the same shape per sample"),
        ({"without": "marked"}, errors.ModelError, "no layer can be cured at a loss of 1%"),
    ],
)
def test_cures_that_cannot_be(made, options, error, message):
    model, (x, _), _, _ = made("corner")
    plain, marked = x[:20], sets.corner(x[:20])
    samples = {"marked": marked, "fewer": plain[:7], "smaller": plain[..., :9]}
    given = {"with_mark": marked, "without": plain} | {key: samples.get(value, value) for key, value in options.items()}
    with pytest.raises(error, match=message):
        whence.cure(model, **given)


def test_small_classes_are_named_not_clustered(made, tmp_path):
    model, (x, y), _, _ = made("clean")
    few = torch.cat([x[y == 0][:40], x[y == 5][:40], x[y == 1][:3]])
    store = whence.explain_dataset(model, few, tmp_path / "s", progress=False)
    found = whence.audit(store, model=model, data=few, progress=False)
    assert "1 (3 samples, fewer than 12)" in found.skipped
    assert {g.number for g in found.groups} == {0, 5}
    alone = whence.explain_dataset(model, x[:3], tmp_path / "t", progress=False)
    with pytest.raises(errors.InputError, match="nothing to cluster"):
        whence.audit(alone, progress=False)
    one = whence.explain_dataset(model, x[y == 0][:40], tmp_path / "u", target=0, progress=False)
    if len(one.column("prediction").unique()) == 1:
        with pytest.raises(errors.InputError, match="one class"):
            whence.audit(one, progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"group_by": "class"}, errors.RuleError, "choose from prediction"),
        ({"n_clusters": 40}, errors.RuleError, "n_clusters=40"),
        ({"model": nn.Identity()}, errors.RuleError, "model= needs data="),
        (
            {"data": torch.rand(5, 1, 28, 28)},
            errors.InputError,
            "the dataset has 5 samples, but the store was computed from 1000",
        ),
    ],
)
def test_wrong_arguments_raise(made, options, error, message):
    with pytest.raises(error, match=message):
        whence.audit(made("clean")[2], **options, progress=False)


def test_proofs_of_other_data_raise(made):
    model, (x, y), _, found = made("corner")
    first = replace(found.clusters[0], evidence=None)
    with pytest.raises(errors.InputError, match="give the dataset that the store was computed from"):
        whence.prove(first, model, (x[:5], y[:5]))
    own = x[first.indices]
    small = replace(first, indices=torch.arange(len(own)))
    with pytest.raises(errors.InputError, match="the model predicts none"):
        whence.prove(small, model, torch.cat([own, own]))


class ChannelsLast(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.movedim(-1, 1))


@pytest.mark.parametrize("kind", ["corner", "tone"])
def test_samples_with_their_channels_last_have_the_same_marks(made, tmp_path, kind):
    model, (x, y), _, found = made(kind)
    wrapped, turned = ChannelsLast(model).eval(), x.movedim(1, -1)
    store = whence.explain_dataset(wrapped, (turned, y), tmp_path / "s", reduce="none", progress=False)
    again = whence.audit(store, model=wrapped, data=(turned, y), progress=False)
    effects, same = ([c.evidence.effect for c in each.suspicious] for each in (found, again))
    assert same == pytest.approx(effects, abs=0.05)
    proof = whence.prove(again.clusters[0], wrapped, (turned, y))
    assert proof.proven
    torch.testing.assert_close(proof.pasted_on(turned[:3]).movedim(-1, 1), proof.mark.pasted(x[:3]))
    cured = whence.cure(wrapped, proof=proof)
    assert probability(cured, proof.pasted_on(turned), MARKED[kind]) < probability(
        wrapped, proof.pasted_on(turned), MARKED[kind]
    )
