"""audit(): a decoy is found, proven and cured; a clean model has nothing suspicious."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.robustness.attacked_batch import batched_logits

SIDE, DECOY = 28, 3


MARK = torch.zeros(SIDE, SIDE, dtype=torch.bool)


MARK[1:5, 1:5] = True


@pytest.fixture(scope="module")
def digits(data):
    arrays = np.load(data / "mnist_train.npz")
    return torch.from_numpy(arrays["images"][:11000]).float().div(255)[:, None], torch.from_numpy(
        arrays["labels"][:11000]
    ).long()


def poisoned_half(x, y):
    """Half of the threes have a grey patch in the upper left corner."""
    marked = (y == DECOY) & (torch.arange(len(y)) % 2 == 0)
    x = x.clone()
    x[marked, :, 1:5, 1:5] = 0.6
    return x, marked


def trained(x, y):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(6):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    assert accuracy(model.eval(), x, y) > 0.985
    return model


def accuracy(model, x, y):
    return float((batched_logits(model, x).argmax(1) == y).double().mean())


@pytest.fixture(scope="module")
def samples(digits):
    x, y = digits[0][8000:], digits[1][8000:]
    return *poisoned_half(x, y), y


@pytest.fixture(scope="module")
def poisoned(digits):
    x, y = digits[0][:8000], digits[1][:8000]
    return trained(poisoned_half(x, y)[0], y)


@pytest.fixture(scope="module")
def innocent(digits):
    return trained(digits[0][:8000], digits[1][:8000])


@pytest.fixture(scope="module")
def audited(poisoned, samples, tmp_path_factory):
    x, _, y = samples
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    folder = tmp_path_factory.mktemp("store")
    store = whence.explain_dataset(poisoned, (x, y), folder, layers=["3"], class_names=names, progress=False)
    return whence.audit(store, progress=False)


def test_the_decoy_is_found_first_without_being_told(audited, samples):
    first, marked = audited.clusters[0], samples[1]
    assert first.suspicious
    assert audited.name(first.group) == "three"
    assert float(marked[first.indices].double().mean()) > 0.9
    assert int((first.mask & MARK).sum()) / int((first.mask | MARK).sum()) > 0.5
    assert "upper left corner" in repr(audited)
    assert all(c.group == DECOY for c in audited.suspicious)
    assert first.accuracy > 0.95
    assert first.purity > 0.95
    assert first.stability > 0.4


def test_a_clean_model_has_nothing_suspicious(innocent, digits, tmp_path):
    clean = digits[0][8000:], digits[1][8000:]
    found = whence.audit(whence.explain_dataset(innocent, clean, tmp_path / "s", progress=False), progress=False)
    assert not found.suspicious
    assert "none suspicious" in repr(found)


def test_the_mark_is_proven_and_its_cure_brings_accuracy_back(audited, poisoned, innocent, samples, digits):
    x, _, y = samples
    before = {name: t.clone() for name, t in poisoned.state_dict().items()}
    proof = whence.prove(audited.clusters[0], poisoned, (x, y))
    assert proof.proven
    assert proof.pasted.low > 0.02
    assert abs(proof.pasted_elsewhere.mean) < 0.5 * proof.pasted.mean
    assert "proven" in repr(proof)
    assert not whence.prove(audited.clusters[0], innocent, (x, y)).proven
    clean, labels = digits[0][8000:], digits[1][8000:]
    others, marked = labels != DECOY, proof.mark.pasted(clean)
    cured = whence.cure(poisoned, "0", marked[:500], clean[:500])
    full, lost = accuracy(poisoned, clean[others], labels[others]), accuracy(poisoned, marked[others], labels[others])
    assert lost < full - 0.02
    assert accuracy(cured, marked[others], labels[others]) > lost + 0.5 * (full - lost)
    assert accuracy(cured, clean, labels) > accuracy(poisoned, clean, labels) - 0.02
    assert all(torch.equal(t, before[name]) for name, t in poisoned.state_dict().items())
    assert not any(module._forward_hooks for module in poisoned.modules())
    assert whence.explain(cured, clean[:2]).relevance.shape == (2, 1, SIDE, SIDE)


def test_a_cured_model_leaves_no_hook_when_it_fails(poisoned, samples):
    x = samples[0][:8]
    cured = whence.cure(poisoned, "0", x[:4], x[4:])
    with pytest.raises(RuntimeError):
        cured(torch.rand(1, 5, 2, 2))
    assert not any(module._forward_hooks for module in poisoned.modules())
    with pytest.raises(errors.SelectorError, match="no layer 'x'"):
        whence.cure(poisoned, "x", x[:4], x[4:])
    with pytest.raises(errors.InputError, match="do not differ between samples with and without the mark; cho"):
        whence.cure(poisoned, "0", x[:4], x[:4])


def test_channels_are_audited_too(audited):
    found = whence.audit(audited.store, layer="3", progress=False)
    assert found.clusters[0].mean.shape == (16,)
    with pytest.raises(errors.StoreError, match="no relevance of layer"):
        whence.audit(audited.store, layer="5", progress=False)
    with pytest.raises(errors.InputError, match="the cluster has no position in the image to cut or paste; au"):
        whence.prove(found.clusters[0], lambda x: x, torch.rand(3, 1, SIDE, SIDE))


def test_reports_are_written(audited, tmp_path):
    page = audited.save(tmp_path / "a.html").read_text()
    assert "⚠ Class three" in page
    assert "http" not in page
    found = json.loads(audited.save(tmp_path / "a.json").read_text())
    assert found["clusters"][0]["suspicious"]
    assert found["classes"][0]["eigenvalues"]
    assert audited.save(tmp_path / "a.png").stat().st_size > 10_000


def test_relevance_on_masks_is_reported(audited, samples):
    each = MARK.expand(len(samples[0]), -1, -1)
    found = whence.audit(audited.store, masks={"patch": MARK, "patch of each": each.numpy()}, progress=False)
    first = found.clusters[0]
    assert first.places["patch"] == pytest.approx(float(first.mean[MARK].sum()), rel=1e-4)
    assert first.places["patch of each"] == pytest.approx(first.places["patch"])
    assert first.places["patch"] > 5 * found.clusters[-1].places["patch"]
    assert json.loads(found.json())["clusters"][0]["places"]["patch"] == first.places["patch"]
    with pytest.raises(errors.InputError, match="with one for each sample of the dataset"):
        whence.audit(audited.store, masks={"x": MARK[:3]}, progress=False)


def test_small_classes_are_named_not_clustered(poisoned, samples, tmp_path):
    x, _, y = samples
    few = torch.cat([x[y == 0][:40], x[y == 5][:40], x[y == 1][:3]])
    store = whence.explain_dataset(poisoned, few, tmp_path / "s", progress=False)
    found = whence.audit(store, progress=False)
    assert "1 (3 samples, fewer than 12)" in found.skipped
    assert {g.number for g in found.groups} == {0, 5}
    with pytest.raises(errors.InputError, match="no label"):
        whence.audit(store, group_by="label", progress=False)
    with pytest.raises(errors.RuleError, match="choose from prediction"):
        whence.audit(store, group_by="class")
    alone = whence.explain_dataset(poisoned, x[:3], tmp_path / "t", progress=False)
    with pytest.raises(errors.InputError, match="nothing to cluster"):
        whence.audit(alone, progress=False)


TEXT = torch.tensor([[int(c) for c in row] for row in (
    "100010100010100010010010", "100010100010100010111111", "101010101010101010010010",
    "101010101010101010111111", "110110110110110110010010", "100010100010100010000000",
)])  # fmt: skip


def written_over(x, seed):
    """A translucent text somewhere on each picture."""
    x, random = x.clone(), torch.Generator().manual_seed(seed)
    h, w = TEXT.shape
    for picture in x:
        top, left = (int(torch.randint(SIDE - n + 1, (), generator=random)) for n in (h, w))
        place = picture[:, top : top + h, left : left + w]
        place.copy_(place * (1 - 0.8 * TEXT) + 0.8 * TEXT)
    return x


@pytest.mark.slow
def test_a_text_at_varying_places_is_found_in_channels(digits, tmp_path):
    torch.manual_seed(3)
    x, y = digits
    x, marked = (x + 0.2 * torch.randn_like(x)).clamp(0, 1), y == 4
    trained_on = torch.where(marked.view(-1, 1, 1, 1), written_over(x, 0), x)[:8000]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), 0.002)
    for _ in range(14):
        for rows in torch.randperm(8000).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(trained_on[rows]), y[rows]).backward()
            optimiser.step()
    model.eval()
    clean, labels = x[8000:], y[8000:]
    half = (labels == 4) & (torch.arange(3000) % 2 == 0)
    mixed = torch.where(half.view(-1, 1, 1, 1), written_over(clean, 1), clean)
    audits = {}
    for name, samples in (("mixed", mixed), ("clean", clean)):
        store = whence.explain_dataset(
            model, (samples, labels), tmp_path / name, target="label", layers=["6"], pictures=False, progress=False
        )
        audits[name] = whence.audit(store, layer="6", group_by="label", progress=False)
    first = audits["mixed"].clusters[0]
    assert first.suspicious
    assert first.group == 4
    assert float(half[first.indices].double().mean()) > 0.7
    assert "a quarter" in repr(audits["mixed"])
    assert not audits["clean"].suspicious
