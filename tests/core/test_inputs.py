"""Kinds of inputs: data frames and pipelines, missing values, conditions that hold or not, nesting, unbatched pictures."""

import numpy as np
import pytest
import torch
from torch import nn

import whence
from whence.core.tables import TableFormat
from whence.errors import InputError

pd = pytest.importorskip("pandas")


def people(n=60):
    r = np.random.default_rng(0)
    return pd.DataFrame({
        "age": r.normal(size=n),
        "children": r.integers(0, 5, n),
        "owner": r.random(n) > 0.5,
        "town": r.choice(["u", "v"], n),
        "grade": pd.Categorical(r.choice(["x", "y", "z"], n)),
    })  # fmt: skip


def pipeline(frame):
    compose = pytest.importorskip("sklearn.compose")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = compose.make_column_transformer(
        (StandardScaler(), ["age", "children"]), (OneHotEncoder(handle_unknown="ignore"), ["town", "grade"]),
        ("passthrough", ["owner"]),
    )  # fmt: skip
    y = (frame.age + (frame.town == "u") > 0.3).astype(int)
    return make_pipeline(columns, LogisticRegression()).fit(frame, y)


def test_frames_are_restored_with_their_columns_dtypes_and_missing_values():
    frame = people()
    frame.loc[3, "town"] = None
    frame["when"] = pd.date_range("2026-01-01", periods=60)
    frame["score"] = pd.array([None, *range(59)], dtype="Int64")
    table = TableFormat.of(frame)
    pd.testing.assert_frame_equal(table.decode(table.encode(frame)), frame, check_dtype=False)
    assert (table.decode(table.encode(frame)).dtypes[:5] == frame.dtypes[:5]).all()
    halves = table.decode(table.encode(frame) * 0 + 0.5)
    assert (halves["children"] == 0.5).all()  # a mean of integers stays a fraction
    with pytest.raises(InputError, match="expected age, children"):
        table.encode(frame[["children", "age"]])


def test_a_pipeline_with_named_columns_and_categories_gets_a_frame():
    frame = people()
    model = pipeline(frame)
    e = whence.explain(model.predict_proba, frame[:3], 1, method=whence.Shapley(background=frame), progress=False)
    expected = model.predict_proba(frame[:3])[:, 1] - model.predict_proba(frame)[:, 1].mean()
    assert torch.allclose(e.relevance.sum(1), torch.tensor(expected), atol=1e-8)
    assert e.feature_names[""] == list(frame.columns)
    removed = whence.FeatureAblation(baselines=frame[5:6])
    e = whence.explain(model.predict_proba, frame[:3], 1, method=removed, progress=False)
    for i, column in enumerate(frame):  # by hand
        other = frame[:3].copy()
        other[column] = frame[column].iloc[5]
        change = model.predict_proba(frame[:3])[:, 1] - model.predict_proba(other.astype(frame.dtypes))[:, 1]
        assert np.allclose(e.relevance[:, i], change)
    with pytest.raises(InputError, match="columns town, grade are categories"):
        whence.explain(model.predict_proba, frame[:3], 1, method=whence.FeatureAblation())


def test_a_function_of_arrays_gets_an_array_from_a_frame_of_numbers():
    frame = people()[["age", "children"]]
    f = lambda a: torch.from_numpy(a)[:, :1] * 2  # noqa: E731
    e = whence.explain(f, frame[:4], 0, method="feature_ablation", progress=False)
    assert torch.allclose(e.relevance[:, 0], 2 * torch.tensor(frame["age"][:4].to_numpy()))
    with pytest.raises(whence.errors.ModelError, match="KeyError"):
        whence.explain(lambda frame: frame["height"], frame[:4], 0, method="feature_ablation")


@pytest.mark.parametrize("as_frame", [True, False])
def test_missing_values_reach_models_that_take_them(as_frame):
    ensemble = pytest.importorskip("sklearn.ensemble")
    frame = people(200)[["age", "children"]].astype(float)
    frame.iloc[::3, 0] = np.nan
    given = frame if as_frame else frame.to_numpy()
    y = (frame.age.isna() | (frame.children > 2)).astype(int)
    model = ensemble.HistGradientBoostingClassifier(max_iter=10).fit(given, y)
    method = whence.Shapley(background=given[:50])
    e = whence.explain(model.predict_proba, given[:4], 1, method=method, progress=False)
    mean = model.predict_proba(given[:50])[:, 1].mean()
    assert np.allclose(e.relevance.sum(1), model.predict_proba(given[:4])[:, 1] - mean)
    assert e.relevance[0].abs().max() > 0.05
    with pytest.raises(InputError, match="NaN or infinite"):
        whence.explain(lambda x: x, torch.tensor([[1.0, torch.nan]]), 0)
    with pytest.raises(InputError, match="NaN or infinite"):
        whence.explain(model.predict_proba, np.array([[1.0, np.inf]]), 1, method=whence.Shapley())


@pytest.mark.parametrize("method", [whence.Shapley(baselines=0), whence.FeatureAblation(baselines=False)])
def test_a_table_of_conditions(method):
    x, w = torch.rand(2, 6) > 0.5, torch.arange(6.0)
    e = whence.explain(lambda x: x.float() @ w[:, None], x, 0, method=method, progress=False)
    assert torch.allclose(e.relevance.float(), x * w)


@pytest.mark.parametrize("nested", [{"image": {"left": torch.rand(2, 3)}}, ([torch.rand(2, 3)],)])
def test_nested_inputs_are_named(nested):
    with pytest.raises(InputError, match="without further nesting: wrap the model"):
        whence.explain(lambda image: image, nested, 0)


def test_an_unbatched_picture_is_pointed_out():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(-3), nn.Linear(4, 3)).eval()
    assert "give it and the outputs a batch dimension" in whence.explain(net, torch.rand(3, 16, 16)).note
    assert "give it and the outputs a batch dimension" in whence.explain(nn.Linear(3, 3), torch.randn(3)).note
    assert whence.explain(lambda x: 2 * x, torch.randn(3)).note == ""  # three samples of one number
    with pytest.raises(whence.errors.TargetError, match=r"output has shape \(5,\); .* x\[None\]"):
        whence.explain(nn.Linear(3, 5), torch.randn(3))
    series = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16, 2)).eval()
    assert whence.explain(series, torch.rand(3, 16, 16)).note == ""  # three samples


def test_fewer_outputs_than_rows_are_pointed_out():
    net, nodes = nn.Linear(4, 2).eval(), torch.randn(5, 4)
    e = whence.explain(lambda nodes: net(nodes).mean(0, keepdim=True), nodes, 1)
    assert e.note == "one output for all 5 rows of the input"
    assert torch.allclose(e.relevance.sum() + e.conservation.absorbed, e.output)
    assert whence.explain(net, nodes, 1).note == ""


def test_missing_entries_and_categories_of_other_frames_are_restored():
    frame = pd.DataFrame({"s": np.array(["x", "y", np.nan], dtype=object)}, dtype=object)
    restored = TableFormat.of(frame)
    again = restored.decode(restored.encode(frame))
    assert isinstance(again["s"].iloc[2], float)  # NaN, not None
    row = pd.DataFrame({"s": pd.Categorical(["x"])})
    others = pd.DataFrame({"s": pd.Categorical(["x", "y", "z"])})
    table = TableFormat.of(row)
    assert table.decode(table.encode(others))["s"].tolist() == ["x", "y", "z"]
    nullable = pd.DataFrame({"b": pd.array([True, None, False], dtype="boolean")})
    table = TableFormat.of(nullable)
    pd.testing.assert_frame_equal(table.decode(table.encode(nullable)), nullable)


def test_an_array_of_integers_is_compared_with_fractions():
    x, seen = np.array([[3, 1], [0, 2], [1, 4], [2, 2]]), []

    def f(z):
        seen.append(z.dtype)
        return np.stack([0 * z[:, 0], z @ np.array([1.0, 10.0])], 1)

    e = whence.explain(f, x[:1], 1, method=whence.Shapley(background=x.mean(0, keepdims=True)), progress=False)
    assert torch.allclose(e.relevance.double(), torch.tensor([[1.5, -12.5]], dtype=torch.float64))
    assert seen[0] == x.dtype  # as given, where nothing is a fraction


def test_labels_and_rows_are_refused_in_words():
    frame = people()[["age", "children"]]
    with pytest.raises(whence.errors.ModelError, match="explain predict_proba or decision_function"):
        whence.explain(lambda frame: np.asarray(frame["age"] > 0), frame[:4], method="feature_ablation")
    with pytest.raises(InputError, match=r"frame.iloc\[:1\]"):
        whence.explain(lambda frame: frame["age"], frame.iloc[0], method="feature_ablation")
    with pytest.raises(InputError, match=r"got a Series; pass frame.iloc\[:1\]"):
        whence.explain(lambda frame: frame["age"], frame[:4], method=whence.FeatureAblation(baselines=frame.iloc[0]))


def test_evaluation_refuses_categories_that_it_would_replace_by_numbers():
    frame = people()
    model = pipeline(frame)
    with pytest.raises(InputError, match="town, grade are categories, which no number can replace"):
        whence.evaluate(model.predict_proba, frame[:4], [whence.Shapley(background=frame)], ["srg"], target=1, progress=False)
