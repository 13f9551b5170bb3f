"""Tables: the values, names and groups of columns, estimators as models, and the plots of many rows."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest, RandomForestClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Perceptron
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from torch import nn

import whence
from whence import errors, plots
from whence.core.columns import Column, columns_of_transformer
from whence.core.feature_table import FeatureTable
from whence.plotting.bars import Bars
from whence.plotting.text_escape import shorten_middle
from whence.plotting.waterfalls import Waterfall


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "age": rng.integers(18, 80, 120),
        "income": rng.normal(3e4, 8e3, 120).round(2),
        "color": rng.choice(["red", "green", "blue"], 120),
        "member": rng.random(120) > 0.5,
    })  # fmt: skip


@pytest.fixture(scope="module")
def labels(frame):
    return np.where(frame.age + 20 * (frame.color == "red") > 55, "yes", "no")


def transformer(**options):
    return ColumnTransformer(
        [("numbers", make_pipeline(StandardScaler()), ["age", "income"]), ("colors", OneHotEncoder(**options), ["color"])],
        remainder="passthrough",
    )


def test_a_pipeline_on_a_frame_answers_by_names(frame, labels, tmp_path):
    pipeline = Pipeline([("columns", transformer()), ("model", RandomForestClassifier(20, random_state=0))]).fit(frame, labels)
    e = whence.explain(pipeline, frame[:30], "yes", progress=False)
    assert e.target_names() == ["yes"] * 30
    assert isinstance(e.method, whence.Shapley)
    assert torch.allclose(e.output, torch.from_numpy(pipeline.predict_proba(frame[:30])[:, 1]))
    assert float(e.conservation.error.max()) < 1e-9
    rows = e.to_frame()
    assert rows[rows["sample"] == 0].feature.tolist() == ["age", "income", "color", "member"]
    assert rows[rows["sample"] == 0].value.tolist()[2] == frame.color[0]
    assert "age = " + str(frame.age[0]) in [name for name, _ in plots.waterfall(e, 0).panels[0].steps]
    assert plots.beeswarm(e).to_frame().feature[0] == "age"
    assert plots.beeswarm(e).save(tmp_path / "beeswarm.png").stat().st_size > 1000


def test_values_are_those_of_shaps_tree_explainer():
    shap = pytest.importorskip("shap")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 6))
    y = 2 * x[:, 0] + x[:, 1] * x[:, 2]
    forest, background = RandomForestRegressor(20, max_depth=5, random_state=0).fit(x, y), x[:40]
    e = whence.explain(forest, x[:15], method=whence.Shapley(background=background), progress=False)
    theirs = shap.TreeExplainer(forest, background, feature_perturbation="interventional")
    assert np.allclose(e.relevance, theirs.shap_values(x[:15], check_additivity=False), atol=1e-6)
    assert np.allclose(e.conservation.baseline, theirs.expected_value, atol=1e-6)
    assert e.target_names()[0] == "prediction"
    classifier = RandomForestClassifier(20, max_depth=5, random_state=0).fit(x, y > 0)
    e = whence.explain(classifier, x[:15], "True", method=whence.Shapley(background=background), progress=False)
    values = shap.TreeExplainer(classifier, background).shap_values(x[:15], check_additivity=False)[..., 1]
    assert np.allclose(e.relevance, values, atol=1e-6)


def test_values_of_a_linear_model_are_its_closed_form(frame):
    x = frame[["age", "income"]]
    model = LinearRegression().fit(x, 3 * x.age - 0.001 * x.income)
    e = whence.explain(model, x[:20], method=whence.Shapley(background=x), progress=False)
    assert np.allclose(e.relevance, (x[:20] - x.mean()) * model.coef_, atol=1e-8)


def test_estimators_are_explained_by_what_they_give(frame, labels):
    x, y = frame[["age", "income"]].to_numpy(float), labels
    background = whence.Shapley(background=x[:20])
    assert whence.explain(LogisticRegression().fit(x, y), x[:2], method=background).class_names == ["no", "yes"]
    machine = SVC().fit(x, y)
    e = whence.explain(machine, x[:2], method=background)
    assert np.allclose(e.output, machine.decision_function(x[:2]))
    assert e.target_names() == ["yes"] * 2
    forest = IsolationForest(n_estimators=10, random_state=0).fit(x)
    e = whence.explain(forest, x[:2], method=background, progress=False)
    assert np.allclose(e.output, forest.decision_function(x[:2]))
    explainer = whence.Explainer(machine)
    assert explainer(x[:12], progress=False).relevance.shape == (12, 2)
    assert whence.explain(Perceptron().fit(x, y), x[:2], method=background).relevance.shape == (2, 2)


def test_an_estimator_without_numbers_is_refused(frame, labels):
    class Labeller:
        classes_ = ("no", "yes")

        def fit(self):
            pass

        def predict(self, x):
            return np.array(["no"] * len(x))

    with pytest.raises(errors.InputError, match="Labeller predicts labels, without probabilities; fit it so that"):
        whence.explain(Labeller(), frame[["age"]].to_numpy(float))


def test_few_rows_are_no_background(frame, labels):
    x = frame[["age", "income"]]
    model = LogisticRegression().fit(x, labels)
    with pytest.raises(errors.InputError, match=r"each row with others, and the input has 1; pass method=whence\.Shapley"):
        whence.explain(model, x[:1])


@pytest.mark.parametrize("options", [{}, {"drop": "first"}])
def test_one_hot_columns_are_one_feature(frame, labels, options):
    columns = transformer(**options).fit(frame)
    x = torch.from_numpy(columns.transform(frame).astype("float32"))
    net = nn.Sequential(nn.Linear(x.shape[1], 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    e = whence.explain(net, x, feature_names=columns)
    table = FeatureTable.of(e)
    assert list(table.names) == ["numbers__age", "numbers__income", "color", "remainder__member"]
    assert [table.labels(row)[2] for row in range(len(table))] == frame.color.tolist()
    width = 3 - len(options)
    assert torch.allclose(table.relevance[:, 2], e.relevance[:, 2 : 2 + width].double().sum(1))
    assert torch.allclose(table.relevance.sum(1), e.relevance.double().sum(1))


def test_transformers_within_transformers_know_their_columns(frame):
    inner = make_pipeline(OneHotEncoder(handle_unknown="ignore"))
    columns = ColumnTransformer([("a", inner, [2]), ("b", "drop", ["age"]), ("c", "passthrough", ["income"])]).fit(frame)
    found = columns_of_transformer(Pipeline([("all", columns)]).fit(frame))
    assert [(c.feature, c.category) for c in found] == [("color", "blue"), ("color", "green"), ("color", "red"), ("", "")]
    with pytest.raises(errors.InputError, match="gives no names of its output columns"):
        columns_of_transformer(OneHotEncoder())


def test_a_masked_feature_counts_once():
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    x, mask = torch.randn(3, 5), torch.tensor([[0, 1, 1, 1, 2]])
    names = ["age", "color_red", "color_green", "color_blue", "income"]
    for method in (whence.Shapley(feature_mask=mask), whence.FeatureAblation(feature_mask=mask)):
        e = whence.explain(net, x, 1, method=method, feature_names=names)
        table = FeatureTable.of(e)
        assert list(table.names) == ["age", "color", "income"]
        assert torch.allclose(table.relevance.sum(1), e.conservation.relevance.double(), atol=1e-6)
        assert len(e.to_frame()) == 9
        assert torch.allclose(table.relevance[:, 1], e.relevance[:, 1].double())
    e = whence.explain(net, x, 1, method=whence.Shapley(feature_mask=mask, interactions="sii"), feature_names=names)
    assert list(e.panels(0)[-1].names) == ["age", "color", "income"]


def test_masks_that_differ_between_rows_are_read_row_by_row():
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).eval()
    mask = torch.tensor([[0, 0, 1], [0, 1, 1]])
    e = whence.explain(net, torch.randn(2, 3), 1, method=whence.Shapley(feature_mask=mask), feature_names=["a", "b", "c"])
    assert e.to_frame().feature.tolist() == ["a, b", "c", "a", "b, c"]
    with pytest.raises(errors.InputError, match=r"differs between the rows; take one of them, such as explanation\[0\]"):
        plots.beeswarm(e)
    assert len(plots.waterfall(e, 1).to_frame()) >= 4
    assert e.figure() is not None


def test_pixels_with_a_mask_have_their_group():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    x = torch.rand(1, 1, 4, 4)
    e = whence.explain(net, x, 1, method=whence.Shapley(feature_mask=whence.patches(x, 2)))
    rows = e.to_frame()
    assert rows.group.nunique() == 4
    assert np.isclose(rows.relevance.sum(), float(e.conservation.relevance[0]), atol=1e-6)


def test_a_waterfall_ends_at_the_output(frame):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    e = whence.explain(net, torch.randn(3, 4), feature_names=["a", "b", "c", "d"])
    charts = plots.waterfall(e).panels
    assert len({chart.limits for chart in charts}) == 1, "one scale"
    assert len({tuple(name[0] for name, _ in chart.steps) for chart in charts}) == 1, "one order"
    for i, chart in enumerate(charts):
        assert chart.start == ("zero", 0.0)
        bars = sum(amount for _, amount in [*chart.steps, *chart.others])
        assert np.isclose(chart.start[1] + bars, float(e.output[i]), atol=1e-5)
        assert np.isclose(chart.end[1], float(e.output[i]))
        assert [name for name, _ in chart.others] == ["absorbed by biases"]
    rows = plots.waterfall(e, 0).to_frame()
    assert rows.bar.tolist()[-1] == "output"
    many = whence.explain(nn.Linear(40, 1).eval(), torch.randn(2, 40), feature_names=[f"x{i}" for i in range(40)])
    (chart,) = plots.waterfall(many, 0).panels
    assert len(chart.steps) == plots_limit() + 1
    assert chart.steps[-1][0] == "25 other features"
    with pytest.raises(errors.InputError, match="no row 7; the explanation has 3"):
        plots.waterfall(e, 7)


def plots_limit():
    from whence.core.feature_plots import MAX_FEATURES

    return MAX_FEATURES


def test_few_rows_are_waterfalls_and_many_a_beeswarm(tmp_path):
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    e = whence.explain(net, torch.randn(30, 3), feature_names=["a", "b", "c"])
    assert isinstance(e[:2].panels(1)[0], Waterfall)
    assert e.figure().subfigs[0].axes[0].get_xlabel().startswith("relevance (right: for")
    assert e.save(tmp_path / "e.html").stat().st_size > 1000
    no_sum = whence.explain(net, torch.randn(2, 3), method="sensitivity", feature_names=["a", "b", "c"])
    assert isinstance(no_sum.panels(0)[0], Bars)


@pytest.mark.parametrize("plot", [plots.beeswarm, plots.bar, plots.heatmap, lambda e: plots.scatter(e, "b"), plots.waterfall])
@pytest.mark.parametrize("rows", [1, 12])
def test_every_plot_has_a_figure_and_its_numbers(plot, rows, tmp_path):
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    found = plot(whence.explain(net, torch.randn(rows, 3), feature_names=["a", "b", "c"]))
    assert found.save(tmp_path / "plot.png").stat().st_size > 1000
    assert len(found.to_frame()) > 0
    assert repr(found).startswith("Plot of ")


def test_statistics_of_features_are_those_of_their_relevance():
    net = nn.Linear(3, 1, bias=False).eval()
    x = torch.randn(50, 3)
    e = whence.explain(net, x, feature_names=["a", "b", "c"])
    rows = {row["feature"]: row for row in plots.bar(e).table}
    expected, signs = (x * net.weight).detach(), net.weight.detach()[0].sign().tolist()
    for i, name in enumerate("abc"):
        assert np.isclose(rows[name]["mean_abs_relevance"], float(expected[:, i].abs().mean()), atol=1e-5)
        assert np.isclose(rows[name]["correlation"], signs[i], atol=1e-5)


def test_a_scatter_of_categories_has_their_names(frame, labels):
    pipeline = Pipeline([("columns", transformer()), ("model", LogisticRegression())]).fit(frame, labels)
    e = whence.explain(pipeline, frame[:30], "yes", progress=False)
    found = plots.scatter(e, "color")
    assert found.panels[0].categories == ["blue", "green", "red"]
    assert [row["value"] for row in found.table] == frame.color[:30].tolist()
    with pytest.raises(errors.InputError, match="no feature 'colour'; choose one of age"):
        plots.scatter(e, "colour")


def test_what_is_no_table_is_refused():
    e = whence.explain(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), torch.rand(1, 1, 4, 4))
    for plot in (plots.beeswarm, plots.bar, plots.heatmap, plots.waterfall):
        with pytest.raises(errors.InputError, match=r"of table rows \[N, columns\], got relevance of shape \[1, 1, 4, 4\]"):
            plot(e)
    with pytest.raises(errors.InputError, match=r"expected an Explanation, as whence\.explain returns, got Tensor"):
        plots.beeswarm(torch.zeros(2, 2))
    with pytest.raises(errors.InputError, match="max_features=0; expected an int of at least 1"):
        plots.bar(whence.explain(nn.Linear(3, 1).eval(), torch.randn(2, 3)), max_features=0)


def test_several_inputs_are_one_table():
    model = lambda a, b: a.sum(1, keepdim=True) * 2 + b[:, :1]  # noqa: E731
    e = whence.explain(model, {"a": torch.randn(3, 2), "b": torch.randn(3, 2)}, 0, feature_names={"a": ["x", "y"]})
    table = FeatureTable.of(e)
    assert list(table.names) == ["a: x", "a: y", "b: feature 0", "b: feature 1"]
    assert torch.allclose(table.relevance.sum(1), e.conservation.relevance.double())


def test_files_keep_columns_and_masks(frame, labels, tmp_path):
    pipeline = Pipeline([("columns", transformer()), ("model", LogisticRegression())]).fit(frame, labels)
    e = whence.explain(pipeline, frame[:12], "yes", progress=False)
    masked = whence.explain(
        nn.Linear(3, 1).eval(), torch.randn(2, 3), method=whence.Shapley(feature_mask=torch.tensor([[0, 0, 1]]))
    )
    for suffix in (".npz", ".safetensors"):
        for one in (e, masked):
            assert whence.load(one.save(tmp_path / f"e{suffix}")).to_frame().equals(one.to_frame())


def test_frames_of_samples_and_layers():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    e = whence.explain(net, torch.randn(2, 3), layers=["1"])
    samples, layers = e.to_frame("samples"), e.to_frame("layers")
    assert np.allclose(samples.output, samples.relevance + samples.absorbed, atol=1e-5)
    assert np.allclose(layers.groupby("sample").absorbed.sum(), samples.absorbed, atol=1e-5)
    at_layer = layers[layers.layer == "1"].relevance
    assert np.allclose(at_layer, e.layers["1"].sum(1), atol=1e-5)
    with pytest.raises(errors.InputError, match="of='pixels'; choose one of features, samples, layers"):
        e.to_frame("pixels")


def test_values_are_written_as_people_write_them():
    plain = Column("x")
    assert [plain.format(v) for v in (62.0, 29128.68, 0.5, 0.00012, -3.25, 1e12, float("nan"))] == [
        "62", "29,129", "0.500", "0.00012", "-3.250", "1e+12", "missing",
    ]  # fmt: skip
    assert Column("x", categories=("a", "b")).format(1.0) == "b"
    assert shorten_middle("number_of_children_in_household_2019", 20) == "number_of_…hold_2019"
    assert len(shorten_middle("a" * 100)) == 40


@pytest.mark.filterwarnings("ignore:pandas.DataFrame with sparse columns")
def test_sparse_indicators_keep_their_values(frame, labels):
    wide = pd.get_dummies(frame[["age", "color"]], sparse=True)
    model = LogisticRegression(max_iter=999).fit(wide, labels)
    e = whence.explain(model, wide[:12], "yes", progress=False)
    shown = [[label == "True" for label in row[1:]] for row in map(FeatureTable.of(e).labels, range(12))]
    assert shown == wide.iloc[:12, 1:].to_numpy().astype(bool).tolist()


def test_a_transformer_is_matched_with_a_frame_by_name(frame, labels):
    columns = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["color"]), remainder="passthrough", verbose_feature_names_out=False
    ).fit(frame[["color", "age"]])
    encoded = pd.DataFrame(columns.transform(frame[["color", "age"]]), columns=columns.get_feature_names_out())
    encoded = encoded[["age", "color_blue", "color_green", "color_red"]]
    model = LogisticRegression(max_iter=999).fit(encoded, labels)
    e = whence.explain(model, encoded[:12], "yes", feature_names=columns, progress=False)
    assert FeatureTable.of(e).captions(0) == [f"age = {frame.age[0]}", f"color = {frame.color[0]}"]
    with pytest.raises(errors.InputError, match=r"has the columns color_blue, .*, the frame age, b, c, d"):
        whence.explain(model, encoded.set_axis(["age", "b", "c", "d"], axis=1)[:12], feature_names=columns)


def test_values_of_a_group_that_is_no_one_hot_are_written_out(frame):
    net = nn.Linear(3, 1).eval()
    method = whence.Shapley(feature_mask=torch.tensor([[0, 0, 1]]))
    e = whence.explain(
        net, torch.tensor([[0.0, 0.0, 3.0], [1.0, 0.0, 3.0]]), method=method, feature_names=["smoker", "children", "age"]
    )
    assert FeatureTable.of(e).captions(0) == ["smoker, children = 0, 0", "age = 3"]
    assert FeatureTable.of(e).captions(1) == ["smoker, children = 1, 0", "age = 3"]


def test_steps_that_mix_columns_end_their_origins(frame):
    encoder = make_column_transformer((OneHotEncoder(sparse_output=False), ["color"]), ("passthrough", ["age"]))
    mixed = make_pipeline(encoder, PCA(4)).fit(frame[["color", "age"]])
    assert [(c.name, c.feature) for c in columns_of_transformer(mixed)] == [(f"pca{i}", "") for i in range(4)]
    scaled = make_pipeline(encoder, StandardScaler()).fit(frame[["color", "age"]])
    assert [c.category for c in columns_of_transformer(scaled)] == ["blue", "green", "red", ""]


def test_features_of_encoders_that_know_no_names_stay_apart(frame):
    inner = [
        make_pipeline(SimpleImputer(strategy="most_frequent"), ColumnTransformer([("oh", OneHotEncoder(), [0])])) for _ in "ab"
    ]
    both = ColumnTransformer([("a", inner[0], ["color"]), ("b", inner[1], ["member"])]).fit(frame.astype({"member": str}))
    families = [c.feature for c in columns_of_transformer(both)]
    assert len(set(families[:3])) == len(set(families[3:])) == 1
    assert families[0] != families[3]


@pytest.mark.parametrize("mask", [np.array([False, False, True, False]), [2], ["color"], slice(2, 3)])
def test_parts_name_their_columns_in_any_way(frame, mask):
    columns = ColumnTransformer([("oh", OneHotEncoder(), mask)], remainder="drop").fit(frame)
    assert [c.feature for c in columns_of_transformer(columns)] == ["color"] * 3


def test_an_encoder_behind_added_columns_names_none(frame):
    given = frame[["color", "member"]].astype(object)
    given.loc[0, "color"] = np.nan
    part = make_pipeline(SimpleImputer(strategy="most_frequent", add_indicator=True), OneHotEncoder())
    found = columns_of_transformer(make_column_transformer((part, ["color", "member"])).fit(given))
    assert len(found) == len({c.name for c in found})


def test_an_unknown_category_is_not_called_the_dropped_one(frame):
    columns = transformer(drop="first", handle_unknown="ignore").fit(frame)
    assert columns_of_transformer(columns)[2].dropped == "blue or unknown"


def test_names_of_groups_end_at_separators_and_stay_apart():
    net, x, mask = nn.Linear(4, 2).eval(), torch.randn(3, 4), torch.tensor([[0, 0, 1, 2]])
    names = ["sensor_10", "sensor_11", "sensor_1", "age"]
    e = whence.explain(net, x, 1, method=whence.FeatureAblation(feature_mask=mask), feature_names=names)
    assert list(FeatureTable.of(e).names) == ["sensor", "sensor_1", "age"]
    e = whence.explain(net, x, 1, method=whence.FeatureAblation(feature_mask=torch.tensor([[0, 0, 1, 1]])))
    assert len(set(FeatureTable.of(e).names)) == 2


def test_integers_that_are_labels_and_indices_are_refused(frame):
    x, y = frame[["age", "income"]].to_numpy(float), np.where(frame.age > 50, 2, 1)
    model, background = LogisticRegression(max_iter=999).fit(x, y), whence.Shapley(background=x[:20])
    with pytest.raises(errors.TargetError, match=r"labels of the model are 1, 2, .*pass names of outputs as texts: target='1'"):
        whence.explain(model, x[:3], 1, method=background)
    with pytest.raises(errors.TargetError, match="the labels of the model are 1, 2"):
        whence.explain(model, x[:3], y[:3], method=background)
    e = whence.explain(model, x[:3], [str(label) for label in y[:3]], method=background)
    assert np.allclose(e.output, model.predict_proba(x[:3])[np.arange(3), y[:3] - 1])


def test_pairs_of_classes_are_no_classes(frame):
    x, y = frame[["age", "income"]].to_numpy(float), np.digitize(frame.age, [40, 60])
    with pytest.raises(errors.InputError, match="compares pairs of classes; fit it with decision_function_shape='ovr'"):
        whence.explain(SVC(decision_function_shape="ovo").fit(x, y), x)


def test_the_rows_of_a_frame_with_categories_run_together(frame, labels):
    calls = []
    pipeline = Pipeline([("columns", transformer()), ("model", LogisticRegression())]).fit(frame, labels)

    def counted(rows):
        calls.append(len(rows))
        return pipeline.predict_proba(rows)

    whence.explain(counted, frame[:20], 1, method=whence.Shapley(background=frame[20:50]), progress=False)
    assert len(calls) < 20, "2^4 coalitions of 30 background rows, in few batches"


def test_large_integers_and_odd_objects_of_a_frame_are_refused():
    f = lambda rows: rows.iloc[:, 1].to_numpy(float)  # noqa: E731
    with pytest.raises(errors.InputError, match=r"the column id has integers above 2\*\*53"):
        whence.explain(f, pd.DataFrame({"id": [2**60 + i for i in range(12)], "v": range(12)}))
    with pytest.raises(errors.InputError, match="the column id has values of type list, which are no categories"):
        whence.explain(f, pd.DataFrame({"id": [[i] for i in range(12)], "v": range(12)}))
    mixed = pd.DataFrame({"id": [1, True] * 6, "v": range(12)}, dtype=object)
    assert FeatureTable.of(whence.explain(f, mixed.astype({"v": int}), progress=False)).labels(1)[0] == "True"


def test_predicted_classes_are_drawn_apart(frame, labels):
    x = frame[["age", "income"]]
    e = whence.explain(LogisticRegression(max_iter=999).fit(x, labels), x[:40], progress=False)
    assert {panel.title.partition(":")[0] for panel in plots.beeswarm(e).panels} == {"yes", "no"}
    assert sum(len(panel.relevance) for panel in plots.beeswarm(e).panels) == 40
    assert len(plots.bar(e).panels) == 2


def test_a_mask_that_separates_all_columns_of_one_row_is_kept():
    net, x = nn.Linear(4, 2, bias=False).eval(), torch.randn(3, 4)
    mask = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1]])
    e = whence.explain(net, x, 0, method=whence.Shapley(feature_mask=mask), feature_names=["a", "b", "c", "d"])
    rows = e.to_frame()
    assert rows["sample"].tolist() == [0, 1, 1, 1, 1, 2, 2]
    assert np.allclose(rows.groupby("sample").relevance.sum(), e.conservation.relevance, atol=1e-6)
    with pytest.raises(errors.InputError, match="differs between the rows"):
        plots.bar(e)


@pytest.mark.parametrize("labels", [[0, 1], ["no", "yes"], [-1.0, 1.0]])
def test_the_only_output_of_a_binary_decision_is_asked_for_by_its_label(frame, labels):
    x = frame[["age", "income"]].to_numpy(float)
    machine, background = SVC().fit(x, np.where(frame.age > 50, *labels[::-1])), whence.Shapley(background=x[:20])
    e = whence.explain(machine, x[:3], str(labels[1]), method=background)
    assert np.allclose(e.output, machine.decision_function(x[:3]))
    for target in (0, 1, whence.Logit(0)):
        with pytest.raises(errors.TargetError, match="an integer may be a label or an index"):
            whence.explain(machine, x[:3], target, method=background)


def test_labels_that_read_as_numbers_are_ambiguous_in_any_type(frame):
    x, y = frame[["age", "income"]].to_numpy(float), np.where(frame.age > 50, 2, 1)
    for of_type in (float, str):
        model = LogisticRegression(max_iter=999).fit(x, y.astype(of_type))
        for target in (1, whence.Logit(1), whence.Logit("1", rather_than=0)):
            with pytest.raises(errors.TargetError, match="an integer may be a label or an index"):
                whence.explain(model, x[:3], target, method=whence.Shapley(background=x[:20]))


def test_functions_of_the_whole_frame_are_run_alone():
    frequencies = lambda rows: rows["c"].map(rows["c"].value_counts(normalize=True)).to_numpy(float)  # noqa: E731
    rows = pd.DataFrame({"a": np.arange(6.0), "c": list("xxxxyz")})
    found = [
        whence.explain(frequencies, rows[2:5], method=whence.Shapley(background=rows, batch_size=size), progress=False)
        for size in (None, 1)
    ]
    assert torch.allclose(found[0].relevance, found[1].relevance)
