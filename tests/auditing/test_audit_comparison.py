"""Verdicts for readers, comparisons of audits, differing data and models, large stores, parts of classes, and bad input."""

import json

import pytest
import torch
from torch import nn

import whence
from support import marked_sets as sets
from whence import errors
from whence.models.digits import digits


class PatchReader(nn.Module):
    """The bundled digit network, whose logit of one class is raised by a bright patch in the corner."""

    def __init__(self, strength=12.0, group=3):
        super().__init__()
        self.digits, self.patch = digits(), nn.Conv2d(1, 1, 4, bias=False)
        self.register_buffer("group", nn.functional.one_hot(torch.tensor(group), 10) * strength)
        with torch.no_grad():
            self.patch.weight.fill_(1 / 16)
        self.eval().requires_grad_(False)

    def forward(self, x):
        seen = (self.patch(x[:, :, 1:5, 1:5]).flatten(1) - 0.4).relu()
        return self.digits(x) + seen * self.group


def marked_digits(share=1.0, count=600):
    x, y = sets.moved_digits(count)
    chosen = (y == 3) & (torch.rand(count, generator=torch.Generator().manual_seed(1)) < share)
    x[chosen] = 0.3 * x[chosen]
    x[chosen, :, 1:5, 1:5] = 1
    return x, y, chosen


@pytest.fixture(scope="module")
def audits(tmp_path_factory):
    """Audits of a model that reads the mark, and of one that does not, on the same data."""
    x, y, _ = marked_digits()
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    found = []
    for model in (PatchReader(), PatchReader(0.0)):
        folder = tmp_path_factory.mktemp("store")
        store = whence.explain_dataset(model, (x, y), folder, class_names=names, target="label", progress=False)
        found.append(whence.audit(store, model=model, data=(x, y), group_by="label", progress=False))
    return found


def test_the_verdict_is_one_sentence(audits, tmp_path):
    before, after = audits
    assert before.verdict == "The model recognises 1 class by a mark rather than by what the samples show: three"
    assert after.verdict.startswith("No mark was found")
    said = before.clusters[0].verdict("three")
    assert said.startswith("The model recognises three by a mark, on ")
    assert "it raises the probability of three by" in said
    assert "percentage points" in said
    assert before.verdict in before.save(tmp_path / "a.html").read_text()
    plain = json.loads(before.json())
    assert plain["verdict"] == before.verdict
    assert plain["clusters"][0]["verdict"] == said
    assert whence.audit(before.store, progress=False).verdict.startswith("Whether a mark decides predictions is not known")


def test_classes_are_listed(audits):
    rows = {row["class"]: row for row in audits[0].by_class}
    assert rows["three"]["suspicious"] >= 1
    assert rows["three"]["largest_effect"] == audits[0].clusters[0].evidence.effect
    assert rows["three"]["with_mark"] <= rows["three"]["samples"]
    assert all(row["suspicious"] == 0 for name, row in rows.items() if name != "three")


def test_two_audits_are_compared(audits, tmp_path):
    before, after = audits
    found = before.compare(after)
    assert {change.outcome for change in found.changes} == {"gone"}
    assert len(found.of("gone")) == len(before.suspicious)
    assert found.table[0]["effect_before"] > 0.35
    assert found.table[0]["effect_after"] is None or found.table[0]["effect_after"] < 0.1
    assert repr(found).startswith(f"Comparison of audits: {len(before.suspicious)} suspicious cluster")
    assert {change.outcome for change in after.compare(before).changes} == {"new"}
    same = before.compare(before)
    assert {change.outcome for change in same.changes} == {"remains"}
    assert same.of("remains")[0].after is before.suspicious[0]
    assert found.save(tmp_path / "c.png").stat().st_size > 3000
    assert not after.compare(after).changes
    assert after.compare(after).save(tmp_path / "d.png").exists()


def test_audits_of_different_data_are_not_compared(audits, tmp_path):
    x, y = sets.moved_digits(200, 5)
    store = whence.explain_dataset(digits(), (x, y), tmp_path / "s", progress=False)
    with pytest.raises(errors.InputError, match="different datasets"):
        audits[0].compare(whence.audit(store, progress=False))


def test_another_model_or_other_data_are_noted(audits):
    x, y, _ = marked_digits()
    store = audits[0].store
    assert not audits[0].notes
    other = whence.audit(store, model=PatchReader(1.0), data=(x, y), group_by="label", progress=False)
    assert any("the model is not the one that was explained" in note for note in other.notes)
    assert "note: the model is not" in repr(other)
    shuffled = whence.audit(store, data=(x.flip(0), y.flip(0)), group_by="label", progress=False)
    assert any("the data differ" in note for note in shuffled.notes)
    assert "the data differ" in json.loads(shuffled.json())["notes"][0]


def test_a_random_part_of_a_large_store_is_audited(audits):
    x, y, _ = marked_digits()
    found = whence.audit(
        audits[0].store, model=PatchReader(), data=(x, y), group_by="label", max_samples=300, layer=None, progress=False
    )
    assert found.headline.startswith("Audit of 300 of 600 explanations")
    assert {c.group for c in found.suspicious} == {3}
    for cluster in found.clusters:
        assert torch.equal(found.store.index[cluster.rows], cluster.indices)
        assert (y[cluster.indices] == cluster.group).all()
    assert sum(len(g.rows) for g in found.groups) <= 300


def test_a_mark_on_half_of_a_class_is_found_where_it_is(tmp_path):
    x, y, chosen = marked_digits(0.5)
    model = PatchReader()
    store = whence.explain_dataset(model, (x, y), tmp_path / "s", progress=False, target="label")
    found = whence.audit(store, model=model, data=(x, y), group_by="label", progress=False)
    assert {c.group for c in found.suspicious} == {3}
    assert chosen[found.clusters[0].indices].double().mean() > 0.95


def test_classes_of_unequal_size_and_samples_without_labels(tmp_path):
    x, y, _ = marked_digits(count=900)
    rows = torch.cat([(y == 0).nonzero()[:, 0], (y == 3).nonzero()[:13, 0], (y == 1).nonzero()[:, 0]])
    model = PatchReader()
    store = whence.explain_dataset(model, x[rows], tmp_path / "s", progress=False)
    found = whence.audit(store, model=model, data=x[rows], progress=False)
    assert {row["class"]: row["samples"] for row in found.by_class}["3"] >= 13
    assert all(c.accuracy is None and c.purity is None for c in found.clusters)
    with pytest.raises(errors.InputError, match="the samples have no label"):
        whence.audit(store, group_by="label", progress=False)


def test_columns_asked_twice_are_read_once(audits):
    store = audits[0].store
    assert len(store.columns(["label", "label"])["label"]) == len(store)
    with pytest.raises(errors.StoreError, match="no column 'nothing'"):
        store.columns(["label", "nothing"])
