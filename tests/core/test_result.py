"""Results are drawn, saved and read as tables alike, whatever call returned them."""

import csv
import json
from io import BytesIO

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence.models.digits import digit_samples, digits

STEPS = {"n_steps": 4, "progress": False}


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, adjacency):
        return self.two(adjacency @ torch.relu(self.one(adjacency @ x))).sum(0, keepdim=True)


def made() -> dict:
    """A result of each kind, by the name of its class."""
    model, (x, y) = digits(), digit_samples()
    small = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    row = torch.rand(1, 4)
    found = [
        whence.explain(model, x[:2]),
        whence.compare(model, x[:1], ["lrp", "sensitivity"]),
        whence.evaluate(model, (x[:6], y[:6]), ["lrp"], ["sparseness"], progress=False),
        whence.prototype(model, [0, 1], shape=(1, 28, 28), **STEPS),
        whence.top_samples(model, [0, 1], x, n_samples=3, progress=False),
        whence.attack(model, x[:2], y[:2], whence.attacks.FGSM(0.2)),
        whence.explain_attack(model, x[:2], y[:2], whence.attacks.FGSM(0.2)),
        whence.attack_explanation(model, x[:2], epsilon=0.05, n_queries=4, progress=False),
        whence.attacks.feature_scores(model, x[:20], y[:20], epsilon=0.1, layer="3", n_steps=2, progress=False),
        whence.concepts(model, x[:1], channels=2, progress=False),
        whence.flow(small, row),
        whence.attribution_graph(model, x[:1], ["0", "2"], n_channels=2),
        whence.subspaces(model, x[:4], "3", target=0, progress=False),
        whence.explain_similarity(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)).eval(), x[:1], x[1:2], progress=False),
        whence.patching(small, row, torch.rand(1, 4), 1, ["0"], progress=False),
        whence.walks(Graph().eval(), torch.rand(3, 3), ["one", "two"], 1, fixed=(torch.eye(3),)),
        whence.shapley_values(lambda coalitions: coalitions.sum(1).float() ** 2, 3, interactions="sii"),
    ]
    return {type(result).__name__: result for result in found}


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    return made()


KINDS = ["Explanation", "Comparison", "Evaluation", "Prototypes", "TopSamples", "AttackResult", "AttackExplanation",
         "ExplanationAttackResult", "FeatureScores", "Concepts", "RelevanceFlow", "AttributionGraph", "Subspaces",
         "SimilarityExplanation", "Patching", "WalkRelevance", "ShapleyValues"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_result_has_a_picture_a_table_and_files(results, kind, tmp_path):
    result = results[kind]
    assert isinstance(result, whence.results.Result)
    rows = list(result.table)
    assert rows
    assert result.save(tmp_path / "r.png").stat().st_size > 1000
    with result.save(tmp_path / "r.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    json.loads(result.save(tmp_path / "r.json").read_text())
    pandas = pytest.importorskip("pandas")
    frame = result.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(rows)


def test_the_table_of_an_explanation_names_features_and_adds_up():
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    x = torch.rand(2, 3)
    e = whence.explain(net, x, 1, feature_names=["age", "income", "debt"])
    rows = e.table
    assert [row["feature"] for row in rows] == ["age", "income", "debt"] * 2
    np.testing.assert_allclose([row["value"] for row in rows], x.flatten().tolist())
    torch.testing.assert_close(torch.tensor([row["relevance"] for row in rows]).view(2, 3), e.relevance.detach())


def test_without_pandas_the_package_is_named(results, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(whence.errors.MissingPackageError, match="pip install pandas"):
        results["Explanation"].to_frame()


def test_suffixes_in_any_case_and_file_objects(tmp_path):
    e = whence.explain(torch.nn.Linear(3, 2).eval(), torch.randn(2, 3), 1)
    for name in ("a.PNG", "b.Npz", "c.CSV", "d.HTML", "e.SafeTensors"):
        assert e.save(tmp_path / name) == tmp_path / name
        assert (tmp_path / name).stat().st_size > 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PNG", "b.Npz", "c.CSV", "d.HTML", "e.SafeTensors"]
    assert torch.equal(whence.load(tmp_path / "b.Npz").relevance, e.relevance)
    buffer = BytesIO()
    assert e.save(buffer) is buffer
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_without_a_display_show_says_how_to_save(monkeypatch, capsys):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    whence.explain(torch.nn.Linear(3, 2).eval(), torch.randn(2, 3), 1).show()
    assert capsys.readouterr().err == "there is no display to show the figure on; save it: .save('figure.png')\n"
