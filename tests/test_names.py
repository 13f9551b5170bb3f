"""Names: of features, classes, words, methods and settings; data of NumPy and data frames; explanations read back."""

import json

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


# names


def test_features_and_classes_have_names(net, tmp_path):
    e = whence.explain(net, torch.randn(2, 4), 1, feature_names=NAMES, class_names=["no", "yes", "perhaps"])
    assert e.target_names() == ["yes", "yes"]
    (bars,) = e.panels(0)
    assert list(bars.names) == NAMES
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
    with pytest.raises(errors.InputError, match="none of the inputs; did you mean 'pixels'"):
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
    assert ecg.title.startswith("ecg ")
    assert photo.title.startswith("photo ")
    assert e.save(tmp_path / "both.png").stat().st_size > 1000
    flat = whence.explain(lambda x: x.flatten(1).sum(1), torch.randn(1, 28, 28))
    assert isinstance(flat.panels(0)[0], Heatmap)


def test_words_are_told_by_a_list_or_a_function():
    table = nn.Embedding(9, 3)
    e = whence.explain(lambda ids: table(ids).sum(1), torch.tensor([[1, 4, 2]]), 0)
    assert e.with_tokens(["not", " so", " bad"]).tokens_of(0) == ["not", " so", " bad"]
    assert e.with_tokens([["not", " so", " bad"]]).tokens_of(0) == ["not", " so", " bad"]
    assert e.with_tokens(lambda ids: [f"w{i}" for i in ids]).tokens_of(0) == ["w1", "w4", "w2"]
    with pytest.raises(errors.InputError, match="a word for each token"):
        e.with_tokens(["not", " so"])
    with pytest.raises(errors.InputError, match="a function of ids or a list of words, not int"):
        e.with_tokens(3)


def test_interactions_are_drawn(net, tmp_path):
    from whence.plotting.interactions import InteractionMatrix

    x = torch.randn(1, 4)
    e = whence.explain(net, x, 1, method=whence.Shapley(background=torch.randn(20, 4), interactions="sii"), feature_names=NAMES)
    assert isinstance(e.panels(0)[-1], InteractionMatrix)
    assert list(e.panels(0)[-1].names) == NAMES
    assert e.save(tmp_path / "pairs.png").stat().st_size > 1000


# NumPy and data frames


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
    with pytest.raises(errors.InputError, match="numbers and words"):
        whence.explain(forest.predict_proba, np.array([["a", 1]], dtype=object), method=whence.FeatureAblation())


def test_what_numpy_cannot_do_is_said(data, net):
    X, y = data
    machine = SVC().fit(X, y)
    with pytest.raises(errors.RuleError, match=r"no gradients; use whence\.Shapley"):
        whence.explain(machine.decision_function, X[:2])
    with pytest.raises(errors.ModelError, match="not SVC; pass its decision_function"):
        whence.explain(machine, X[:2])


def test_the_advice_for_a_machine_of_both_signs_runs_as_written(data):
    X, y = data
    estimator = SVC().fit(X, y)
    with pytest.raises(errors.ModelError, match="both signs") as refused:
        whence.neuralize(estimator)
    advice = str(refused.value).split("from outside: ")[1]
    e = eval(advice, {"whence": whence, "estimator": estimator, "X": X})
    assert e.relevance.shape == (5, 4)


# read back


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("several", [False, True])
def test_an_explanation_is_read_back(net, tmp_path, suffix, several):
    x = torch.randn(2, 4)
    if several:
        e = whence.explain(
            lambda x, y, n: net(x + n * y), (x, x * 2, 3), whence.Logit(1, rather_than=0), feature_names={"1": NAMES}
        )
    else:
        e = whence.explain(net, x, 1, layers=["0"], feature_names=NAMES, class_names=["no", "yes", "perhaps"])
    read = whence.load(e.save(tmp_path / f"e.{suffix}"))
    assert repr(read) == repr(e)
    assert read.target_names() == e.target_names()
    assert read.feature_names == e.feature_names
    first, second = (e.relevance[1], read.relevance[1]) if several else (e.relevance, read.relevance)
    assert torch.equal(first, second)
    assert torch.equal(read.conservation.absorbed, e.conservation.absorbed)
    assert read.conservation.by_layer.keys() == e.conservation.by_layer.keys()
    if not several:
        assert torch.equal(read.layers["0"], e.layers["0"])
        assert read.save(tmp_path / "again.png").read_bytes() == e.save(tmp_path / "first.png").read_bytes()


def test_other_files_are_no_explanations(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    (tmp_path / "y.npz").write_text("no")
    for name in ("x.npz", "y.npz", "z.npz", "z.png"):
        with pytest.raises(errors.LoadError):
            whence.load(tmp_path / name)


# methods and settings


def test_hints_at_what_is_meant(net):
    x = torch.randn(1, 4)
    for given, hint in (
        ("IntegratedGradients", "'integrated_gradients'"),
        ("integrated_gradient", "did you mean 'integrated_gradients'"),
        (whence.presets.epsilon_plus(), r"whence\.LRP\(rules\)"),
        ({nn.Linear: whence.Epsilon()}, r"whence\.LRP\(rules\)"),
    ):
        with pytest.raises(errors.RuleError, match=hint):
            whence.explain(net, x, 1, method=given)
    for make, hint in (
        (lambda: whence.IntegratedGradients(internal_batch_size=3), "here it is batch_size"),
        (lambda: whence.SmoothGrad(nt_samples=3), "here it is n_samples"),
        (lambda: whence.Occlusion(strids=3), "did you mean 'strides'"),
        (lambda: whence.GradientTimesInput(steps=3), "it takes none"),
    ):
        with pytest.raises(errors.RuleError, match=hint):
            make()


def test_what_is_saved_is_valid_json(net, tmp_path):
    e = whence.explain(net, torch.randn(1, 4), 1)
    with np.load(e.save(tmp_path / "e.npz")) as arrays:
        assert json.loads(str(arrays["about"]))["structure"] == "tensor"


@pytest.mark.parametrize("names", [np.array(["a", "b", "c"]), list(np.array([1, 2, 3])), {0: "a", 1: "b"}])
def test_class_names_of_any_kind(net, tmp_path, names):
    e = whence.explain(net, torch.randn(2, 4), 1, class_names=names)
    assert e.target_names() == [str(names[1])] * 2
    assert whence.load(e.save(tmp_path / "e.npz")).target_names() == e.target_names()


def test_names_with_dollars(net, tmp_path):
    names = ["cost_$_per_$^", "b", "c", "d"]
    e = whence.explain(net, torch.randn(1, 4), 0, feature_names=names, class_names=["US$ a_{ $", "b", "c"])
    assert e.save(tmp_path / "e.png").stat().st_size > 1000


def test_feature_names_of_what_has_no_columns():
    with pytest.raises(errors.InputError, match=r"1 feature_names for an input of shape \(3,\)"):
        whence.explain(lambda t: t * 2, torch.rand(3), feature_names=["a"])


def test_layers_that_ran_twice_and_inputs_given_twice_are_read_back(tmp_path):
    layer = nn.Linear(4, 4)
    e = whence.explain(nn.Sequential(layer, nn.ReLU(), layer).eval(), torch.randn(2, 4), 0, layers=["0"])
    read = whence.load(e.save(tmp_path / "e.npz"))
    assert all(torch.equal(a, b) for a, b in zip(read.layers["0"], e.layers["0"], strict=True))
    x = torch.randn(2, 4)
    twice = whence.explain(lambda a, b: a + b, (x, x), 1)
    assert torch.equal(whence.load(twice.save(tmp_path / "t.safetensors")).relevance[1], twice.relevance[1])
    half = whence.explain(layer.bfloat16().eval(), x.bfloat16(), 1)
    assert repr(whence.load(half.save(tmp_path / "h.npz"))) == repr(half)


def test_many_rows_that_belong_to_all_are_one_picture(tmp_path):
    e = whence.explain(lambda x: x.mean(0, keepdim=True), torch.randn(120, 8), 1)
    assert len(e.panels(0)) == 1
    assert e.save(tmp_path / "graph.png").stat().st_size > 1000


def test_what_is_held_fixed_is_named(net):
    model = lambda x, scale, mask: net(x * scale * mask)  # noqa: E731
    e = whence.explain(model, {"x": torch.randn(2, 4), "scale": 3, "mask": torch.ones(2, 4)}, 1)
    assert e.held_fixed == ["scale", "mask"]
    assert "held fixed: scale, mask" in repr(e)
    assert whence.explain(model, (torch.randn(2, 4), 3, torch.ones(2, 4).long()), 1).held_fixed == ["1", "2"]
    assert not whence.explain(net, torch.randn(2, 4), 1).held_fixed
