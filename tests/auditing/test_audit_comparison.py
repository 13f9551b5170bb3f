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


def test_the_verdict_is_one_sentence(audits):
    before, after = audits
    assert before.verdict == "The model relies on a mark for 1 class: three"
    assert after.verdict.startswith("No mark was found")
    said = before.clusters[0].verdict("three")
    assert said.startswith("The model relies on a mark for three, on ")
    assert "Cluster 1 of class 3" in "".join(map(repr, before.clusters))
    assert "it raises the probability of three by" in said
    assert "percentage points" in said
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
        audits[0].compare(whence.audit(store, model=digits(), data=(x, y), layer=None, progress=False))


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


def test_a_class_of_one_sample_hides_no_mark(audits, tmp_path):
    x, y, chosen = marked_digits()
    y = y.clone()
    y[chosen.nonzero()[0, 0]] = 10  # a slip of the hand
    store = whence.explain_dataset(PatchReader(), (x, y), tmp_path / "s", progress=False)
    found = whence.audit(store, model=PatchReader(), data=(x, y), group_by="label", layer=None, progress=False)
    assert {c.group for c in found.suspicious} == {3}
    assert "10 (1 samples, fewer than 12)" in found.skipped


def test_samples_without_labels_belong_to_no_class(tmp_path):
    x, y, chosen = marked_digits()
    hidden = set(chosen.nonzero()[::2, 0].tolist())
    rows = [(picture, None if i in hidden else int(label)) for i, (picture, label) in enumerate(zip(x, y, strict=True))]
    store = whence.explain_dataset(PatchReader(), rows, tmp_path / "s", progress=False)
    found = whence.audit(store, model=PatchReader(), data=rows, group_by="label", layer=None, progress=False)
    assert {c.group for c in found.suspicious} == {3}
    assert not hidden & set(torch.cat([c.indices for c in found.clusters]).tolist())
    by_prediction = whence.audit(store, layer=None, progress=False)
    first = max(by_prediction.clusters, key=lambda c: len(hidden & set(c.indices.tolist())))
    assert first.accuracy > 0.9


def test_inputs_without_tests_are_not_said_to_be_clean(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(120, 12), torch.randint(3, (120,))
    x[y == 1, 5] = 7
    model = sets.trained(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)), x, y, 80)
    store = whence.explain_dataset(model, (x, y), tmp_path / "s", progress=False)
    found = whence.audit(store, model=model, data=(x, y), progress=False)
    assert not found.tested
    assert "not tested" in found.headline
    assert any("no tests for such inputs" in note for note in found.notes)
    assert whence.prove(found.candidates[0], model, (x, y)).proven
    volumes = torch.rand(45, 1, 8, 8, 40)
    deep = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()
    stored = whence.explain_dataset(deep, (volumes, torch.arange(45) % 3), tmp_path / "v", progress=False)
    assert not whence.audit(stored, model=deep, data=(volumes, torch.arange(45) % 3), group_by="label", progress=False).tested


def test_audits_without_tests_are_not_compared(audits):
    untested = whence.audit(audits[0].store, group_by="label", progress=False)
    with pytest.raises(errors.InputError, match="without tests"):
        audits[0].compare(untested)
    with pytest.raises(errors.InputError, match="another audit"):
        audits[0].compare(None)


def test_data_in_another_order_are_noted(audits):
    x, y, _ = marked_digits()
    order = torch.arange(len(x))
    order[1:85] = order[1:85].flip(0)  # the rows by which data are recognised stay
    found = whence.audit(
        audits[0].store,
        model=PatchReader(),
        data=(x[order], y[order]),
        group_by="label",
        layer=None,
        max_samples=100,
        progress=False,
    )
    assert any("differ from the stored ones" in note for note in found.notes)


class OneLogit(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = PatchReader()

    def forward(self, x):
        out = self.body(x)
        return (out[:, 3] - out[:, 8])[:, None]


def test_one_logit_is_that_of_the_second_of_two_classes(tmp_path):
    x, y, _ = marked_digits()
    two = (y == 3) | (y == 8)
    x, y = x[two], (y[two] == 3).long()
    model = OneLogit()
    store = whence.explain_dataset(model, (x, y), tmp_path / "s", progress=False)
    assert (store.column("prediction") == y).double().mean() > 0.9
    assert torch.allclose(store.column("confidence"), torch.sigmoid(model(x)[:, 0].abs()).float(), atol=1e-4)
    found = whence.audit(store, model=model, data=(x, y), progress=False)
    assert {row["class"] for row in found.by_class} == {"0", "1"}
    assert {c.group for c in found.suspicious} <= {1}


def test_data_with_unreadable_samples_are_audited_and_proven(tmp_path):
    x, y, _ = marked_digits()
    data, model = sets.PartlyUnreadable(x, y), PatchReader()
    store = whence.explain_dataset(model, data, tmp_path / "s", progress=False)
    found = whence.audit(store, model=model, data=data, layer=None, progress=False)
    assert {c.group for c in found.suspicious} == {3}
    assert (y[found.clusters[0].indices] == 3).double().mean() > 0.9
    proof = whence.prove(found.clusters[0], model, data)
    assert proof.proven
    assert whence.cure(model, proof=proof).restored > 0.5  # its first convolution has one channel


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_samples": -5}, errors.RuleError, "max_samples=-5; expected 12 or more"),
        ({"max_samples": 30}, errors.InputError, "or pass a larger max_samples"),
        ({"masks": {"a": None}}, errors.InputError, "expected a boolean tensor"),
        ({"masks": {"a": torch.full((28, 28), 0.5)}}, errors.InputError, "values other than 0 and 1"),
    ],
)
def test_settings_that_cannot_be_raise(audits, options, error, message):
    with pytest.raises(error, match=message):
        whence.audit(audits[0].store, group_by="label", progress=False, **options)


def test_labels_that_the_model_does_not_know_raise(tmp_path):
    x, y, _ = marked_digits(count=300)
    y = torch.where(y == 3, 12, y)
    store = whence.explain_dataset(PatchReader(), (x, y), tmp_path / "s", progress=False)
    with pytest.raises(errors.InputError, match="class 12 of the store is none of the model's 10 classes"):
        whence.audit(store, model=PatchReader(), data=(x, y), group_by="label", progress=False)


@pytest.mark.parametrize("shape", [(1, 1, 200), (1, 2, 40), (1, 1, 9)])
def test_flat_pictures_are_stored_and_audited(shape, tmp_path):
    torch.manual_seed(0)
    x, y = torch.rand(60, *shape), torch.arange(60) % 2
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    store = whence.explain_dataset(model, (x, y), tmp_path / "s", progress=False)
    assert whence.audit(store, model=model, data=(x, y), group_by="label", progress=False).tested


def test_relevance_that_is_stored_with_channels_is_summed_over_them(tmp_path):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(5, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.conv(x.movedim(-1, 1)).relu().mean((2, 3)))

    x, y, model = torch.rand(40, 9, 9, 5), torch.arange(40) % 2, Last().eval()
    found = []
    for reduce in ("none", "channels"):
        store = whence.explain_dataset(model, (x, y), tmp_path / reduce, reduce=reduce, progress=False)
        found.append(whence.audit(store, group_by="label", layer=None, progress=False))
    assert found[0].clusters[0].mean.shape == (9, 9)
    assert [c.excess for c in found[0].clusters] == pytest.approx([c.excess for c in found[1].clusters], abs=0.02)
