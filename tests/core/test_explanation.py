"""Names: of features, classes, words, methods and settings; data of NumPy and data frames; explanations read back."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC
from torch import nn

import whence
from whence import errors

NAMES = ["age", "income", "debt", "years"]


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    X = random.normal(size=(60, 4))
    return X, (X[:, 0] + X[:, 1] ** 2 > 0.5).astype(int)


class Frame:
    """As much of a pandas data frame as is asked for."""

    def __init__(self, values, columns):
        self.values, self.columns = values, columns

    def to_numpy(self):
        return self.values


def test_features_and_classes_have_names(net, tmp_path):
    e = whence.explain(net, torch.randn(2, 4), 1, feature_names=NAMES, class_names=["no", "yes", "perhaps"])
    assert e.target_names() == ["yes", "yes"]
    (chart,) = e.panels(0)
    assert sorted(name.partition(" = ")[0] for name, _ in chart.steps) == sorted(NAMES)
    assert e.save(tmp_path / "bars.png").stat().st_size > 1000
    prepared = whence.Explainer(net, feature_names=NAMES, class_names=["no", "yes", "perhaps"])
    assert prepared(torch.randn(2, 4)).feature_names == {"": NAMES}


def test_the_largest_twenty_are_drawn_and_the_others_summed():
    from matplotlib.figure import Figure

    from whence.plotting.bars import Bars

    values = torch.linspace(-1, 2, 50)
    figure = Figure()
    Bars(values, "", [f"f{i}" for i in range(50)]).draw(figure.subfigures(1, 1), 7)
    (axis,) = figure.subfigs[0].axes
    labels, lengths = [t.get_text() for t in axis.get_yticklabels()], [bar.get_width() for bar in axis.patches]
    assert labels[0] == "f49"
    assert labels[-1] == "30 others"
    assert len(lengths) == 21
    assert np.isclose(sum(lengths), float(values.sum()), atol=1e-5)


def test_names_that_do_not_fit_are_refused(net):
    with pytest.raises(errors.InputError, match=r"3 feature_names for an input of shape \(2, 4\)"):
        whence.explain(net, torch.randn(2, 4), 1, feature_names=NAMES[:3])
    with pytest.raises(errors.InputError, match="key 'pixel' that is not an input; did you mean 'pixels'"):
        whence.explain(lambda pixels: net(pixels), {"pixels": torch.randn(2, 4)}, 1, feature_names={"pixel": NAMES})


def test_series_are_lines_and_several_inputs_are_titled_by_their_names(tmp_path):
    from whence.plotting.heatmaps import Heatmap
    from whence.plotting.time_series import TimeSeries

    model = lambda ecg, photo: ecg.sum((1, 2))[:, None] * photo.sum((1, 2, 3))[:, None]  # noqa: E731
    inputs = {"ecg": torch.randn(2, 3, 100), "photo": torch.rand(2, 3, 16, 16)}
    e = whence.explain(model, inputs, 0, feature_names={"ecg": ["I", "II", "III"]})
    ecg, photo = e.panels(0)
    assert isinstance(ecg, TimeSeries)
    assert isinstance(photo, Heatmap)
    assert ecg.title.startswith("ecg: ")
    assert photo.title.startswith("photo: ")
    assert e.save(tmp_path / "both.png").stat().st_size > 1000
    flat = whence.explain(lambda x: x.flatten(1).sum(1), torch.randn(1, 28, 28))
    assert isinstance(flat.panels(0)[0], Heatmap)


def test_words_are_told_by_a_list_or_a_function():
    table = nn.Embedding(9, 3)
    e = whence.explain(lambda ids: table(ids).sum(1), torch.tensor([[1, 4, 2]]), 0)
    assert e.with_tokens(["not", " so", " bad"]).tokens_of(0) == ["not", " so", " bad"]
    assert e.with_tokens([["not", " so", " bad"]]).tokens_of(0) == ["not", " so", " bad"]
    assert e.with_tokens(lambda ids: [f"w{i}" for i in ids]).tokens_of(0) == ["w1", "w4", "w2"]
    with pytest.raises(errors.InputError, match="one string per token"):
        e.with_tokens(["not", " so"])
    with pytest.raises(errors.InputError, match="a function of ids or a list of strings, got int"):
        e.with_tokens(3)


def test_interactions_are_drawn(net, tmp_path):
    from whence.plotting.interactions import InteractionMatrix

    x = torch.randn(1, 4)
    e = whence.explain(net, x, 1, method=whence.Shapley(background=torch.randn(20, 4), interactions="sii"), feature_names=NAMES)
    assert isinstance(e.panels(0)[-1], InteractionMatrix)
    assert list(e.panels(0)[-1].names) == NAMES
    assert e.save(tmp_path / "pairs.png").stat().st_size > 1000


def test_functions_of_numpy_are_explained_from_outside(data):
    X, y = data
    forest = RandomForestClassifier(20, random_state=0).fit(X, y)
    e = whence.explain(forest.predict_proba, X[:3], 1, method=whence.Shapley(background=X[:30]))
    assert e.relevance.shape == (3, 4)
    difference = forest.predict_proba(X[:3])[:, 1] - forest.predict_proba(X[:30])[:, 1].mean()
    assert np.allclose(e.relevance.sum(1).numpy(), difference)
    for method in (whence.Occlusion((1,)), whence.FeatureAblation(), whence.RISE()):
        if not isinstance(method, whence.RISE):
            assert whence.explain(forest.predict_proba, X[:3], 1, method=method).relevance.shape == (3, 4)


def test_a_data_frame_brings_its_names(data):
    X, y = data
    forest = RandomForestClassifier(20, random_state=0).fit(X, y)
    frame = Frame(X[:2], NAMES)
    e = whence.explain(forest.predict_proba, frame, 1, method=whence.Shapley(background=Frame(X[:20], NAMES)))
    assert e.feature_names == {"": NAMES}
    with pytest.raises(errors.InputError, match="an array of dtype object"):
        whence.explain(forest.predict_proba, np.array([["a", 1]], dtype=object), method=whence.FeatureAblation())


def test_what_numpy_cannot_do_is_said(data, net):
    X, y = data
    machine = SVC().fit(X, y)
    with pytest.raises(errors.InputError, match=r"the input has 2; pass method=whence\.Shapley\(background=frame\)"):
        whence.explain(machine.decision_function, X[:2])
    with pytest.raises(errors.RuleError, match=r"no gradients; use whence\.Shapley"):
        whence.explain(machine.decision_function, X[:2], method="lrp")


def test_the_advice_for_a_machine_of_both_signs_runs_as_written(data):
    X, y = data
    estimator = SVC().fit(X, y)
    with pytest.raises(errors.ModelError, match="both signs") as refused:
        whence.neuralize(estimator)
    advice = str(refused.value).split("as a black box: ")[1]
    e = eval(advice, {"whence": whence, "estimator": estimator, "X": X})
    assert e.relevance.shape == (5, 4)
