"""Estimators as networks: the same decisions, and relevance by the papers' formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from torch import nn

import whence
from whence.neuralization import distances as distances_module

SIZES = [150, 100, 50]


@pytest.fixture(scope="module")
def blobs():
    """Three blobs in six dimensions, their labels, and points near, far and among them."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(150, 6)), rng.normal(size=(100, 6)) * 0.5 + 3, rng.normal(size=(50, 6)) - 4]
    x = np.concatenate(parts)
    points = np.concatenate([rng.normal(size=(200, 6)) * 3, x[::6], rng.normal(size=(20, 6)) * 1000])
    return x, np.repeat([0, 1, 2], SIZES), points


def output(net, points):
    return net(torch.as_tensor(points)).numpy()


def distances_to(points, centres):
    return ((points[:, None] - centres) ** 2).sum(-1)


def added_up(e):
    """|ΣR − f|, relative to the parts it is a sum of."""
    scale = e.relevance.abs().sum(1) + e.output.abs()
    return ((e.relevance.sum(1) - e.output).abs() / scale.clamp(min=1e-300)).max().item()


def test_training_points_are_explained_by_the_others(blobs):
    x, _, _ = blobs
    svm = OneClassSVM(nu=0.1, gamma=0.3).fit(x)
    e = whence.explain(whence.neuralize(svm), torch.as_tensor(svm.support_vectors_))
    assert added_up(e) < 1e-12
    assert (e.relevance >= 0).all()
    alone = OneClassSVM(gamma=0.5).fit(x[:1])
    e = whence.explain(whence.neuralize(alone), torch.as_tensor(x[:1]))
    assert e.output.item() == 0
    assert (e.relevance == 0).all()


def test_training_points_coincide_through_a_scaler_too(blobs):
    x = blobs[0] * [1, 100, 0.01, 3, 1, 20] + 0.1
    pipeline = make_pipeline(StandardScaler(), OneClassSVM(nu=0.1, gamma=2.0)).fit(x)
    support = pipeline[1].support_
    e = whence.explain(whence.neuralize(pipeline), torch.as_tensor(x[support]))
    inner = whence.explain(whence.neuralize(pipeline[1]), torch.as_tensor(pipeline[1].support_vectors_))
    torch.testing.assert_close(e.relevance, inner.relevance, rtol=1e-6, atol=1e-9)


def test_rounding_is_no_relevance():
    """A feature in which x and all that is near agree has none, however large the others' values are."""
    rng = np.random.default_rng(0)
    u = np.concatenate([rng.normal(size=(30, 5)), rng.normal(size=(17, 5)) * 10])
    u[:30, 0], u[30:, 0] = 97.3, 0.0
    x = rng.normal(size=(20, 5))
    x[:, 0] = 97.3
    e = whence.explain(whence.neuralize(KernelDensity(bandwidth=0.7).fit(u)), torch.as_tensor(x))
    assert (e.relevance[:, 0] == 0).all()
    assert (e.relevance[:, 1:] > 0).all()


def test_what_falls_on_padding_is_absorbed():
    centre = torch.tensor([[1.0, 1.0, 3.0]])
    model = lambda x: whence.layers.SoftMin()(whence.layers.Distance(centre)(nn.functional.pad(x, (0, 1))))  # noqa: E731
    e = whence.explain(model, torch.tensor([[1.0, 3.0]]))
    assert e.relevance.tolist() == [[0.0, 4.0]]
    assert e.conservation.absorbed.tolist() == [9.0]


def test_far_from_the_origin_no_digits_are_lost():
    rng = np.random.default_rng(0)
    x, points = (torch.as_tensor(rng.integers(-100, 100, size=(n, 3)) / 64) for n in (40, 10))  # exact at 1e6, too
    near, far = (whence.explain(whence.neuralize(KernelDensity().fit(x + s)), points + s) for s in (0, 1e6))
    torch.testing.assert_close(far.relevance, near.relevance, rtol=1e-9, atol=1e-9)


def test_blocks_change_nothing(blobs, monkeypatch):
    x, _, points = blobs
    for estimator in (OneClassSVM(nu=0.2), GaussianMixture(3, random_state=0)):
        net = whence.neuralize(estimator.fit(x))
        whole = whence.explain(net, torch.as_tensor(points))
        with monkeypatch.context() as patch:
            patch.setattr(distances_module, "NUMBERS_AT_ONCE", 1)
            parts = whence.explain(net, torch.as_tensor(points))
        torch.testing.assert_close(parts.output, whole.output, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(parts.relevance, whole.relevance, rtol=1e-9, atol=1e-9)


def test_images_and_single_precision(blobs):
    x, _, points = blobs
    net = whence.neuralize(OneClassSVM().fit(x))
    image = torch.as_tensor(points[:200], dtype=torch.float32).view(-1, 1, 2, 3)
    e = whence.explain(net, image)
    assert e.relevance.shape == image.shape
    assert e.relevance.dtype == torch.float32
    assert e.output.dtype == torch.float64
    small = whence.explain(net.float(), image)
    torch.testing.assert_close(small.relevance, e.relevance, rtol=1e-3, atol=1e-3)
    half = whence.explain(net.bfloat16(), image.bfloat16())
    assert added_up(replace(half, relevance=half.relevance.flatten(1).double(), output=half.output.double())) < 0.05


def test_single_precision_copies_of_training_points_coincide(blobs):
    x, _, _ = blobs
    svm = OneClassSVM(gamma=2.0).fit(x)
    support = torch.as_tensor(svm.support_vectors_)
    net = whence.neuralize(svm)
    single = whence.explain(net, support.float()).relevance
    torch.testing.assert_close(single.double(), whence.explain(net, support).relevance, rtol=1e-3, atol=1e-3)


def test_large_offsets_through_a_scaler_cost_no_digits(blobs):
    x, _, points = blobs
    x, points = x * 3 + 1.7e9, points[:200] * 3 + 1.7e9
    pipeline = make_pipeline(StandardScaler(), OneClassSVM(gamma=0.5)).fit(x)
    inner = whence.neuralize(pipeline[1])
    expected = output(inner, pipeline[0].transform(points))
    np.testing.assert_allclose(output(whence.neuralize(pipeline), points), expected, rtol=1e-10)


@pytest.mark.filterwarnings("ignore:integrated gradients do not add up")  # the pooled distance is not smooth at zero
@pytest.mark.parametrize("method", ["gradient_times_input", "sensitivity", "integrated_gradients", "smooth_grad", "occlusion"])
def test_other_methods_explain_it_too(blobs, method):
    x, _, points = blobs
    for estimator in (OneClassSVM(), KMeans(3, n_init=1, random_state=0), GaussianMixture(2, random_state=0)):
        net, inputs = whence.neuralize(estimator.fit(x)), torch.as_tensor(points[:200])
        assert torch.isfinite(whence.explain(net, inputs, method=method).relevance).all()


def test_gradients_are_the_plain_ones(blobs):
    x, _, points = blobs
    inputs = torch.as_tensor(points[:60]).requires_grad_()
    for sets in (
        whence.layers.SupportSets(x, np.repeat([0, 1, 2], SIZES), 0.3),
        whence.layers.SupportSets(x[::30], np.arange(10), math.inf),
    ):
        net = whence.neuralize(sets)
        assert torch.autograd.gradcheck(net, inputs, eps=1e-6, atol=1e-4)


def test_layers_follow_a_feature_network():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5, bias=False)).double()
    centres = torch.rand(3, 5, dtype=torch.float64)
    net = nn.Sequential(features, whence.layers.Distance(centres), whence.layers.SoftMin(2.0)).eval()
    x = torch.rand(4, 8, dtype=torch.float64)
    e = whence.explain(net, x, layers=["0"])
    with torch.no_grad():
        squares = (features(x)[:, None] - centres).square()
        h = squares.sum(-1)
        o = -torch.logsumexp(-2 * h, 1) / 2
        shares = torch.softmax(-2 * h, 1)[..., None] * squares / h[..., None] * o[:, None, None]
    torch.testing.assert_close(e.layers["0"], shares.sum(1))
    torch.testing.assert_close(e.output, o)
    assert e.conservation.error.max() < 1e-6
    assert e.relevance.abs().sum() > 0


def test_hidden_zeros_are_absorbed():
    net = nn.Sequential(nn.ReLU(), whence.layers.Distance(torch.tensor([[1.0, 2.0]])), whence.layers.SoftMin()).eval()
    e = whence.explain(net, torch.tensor([[3.0, -1.0]]))
    assert e.relevance.tolist() == [[4.0, 0.0]]
    assert e.conservation.absorbed.tolist() == [4.0]


def test_centres_are_trained_along():
    layer = whence.layers.Distance(nn.Parameter(torch.rand(2, 3)))
    layer(torch.rand(4, 3)).sum().backward()
    assert layer.centres.grad.abs().sum() > 0


def test_soft_max_takes_the_most():
    net = whence.layers.SoftMax(3.0).eval()
    h = torch.tensor([[1.0, 2.0, 0.5]])
    e = whence.explain(net, h)
    assert e.output.item() == pytest.approx(torch.logsumexp(3 * h, 1).item() / 3)
    torch.testing.assert_close(e.relevance, torch.softmax(3 * h, 1) * e.output)
    assert whence.layers.SoftMax()(h).item() == 2


def test_inlierness_against_background_is_the_ratio_of_mean_similarities(blobs):
    x, _, points = blobs
    pipeline = make_pipeline(StandardScaler(), OneClassSVM(gamma=0.5)).fit(x[:150])
    e = whence.explain(whence.neuralize(pipeline, view="inlierness", background=x[150:]), torch.as_tensor(points))
    z, background = pipeline[0].transform(points), pipeline[0].transform(x[150:])
    to_background = -(logsumexp(-0.5 * distances_to(z, background), axis=1) - np.log(len(background))) / 0.5
    expected = to_background - output(whence.neuralize(pipeline), points)[:, 0]
    np.testing.assert_allclose(e.output.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert added_up(e) < 1e-12
    assert (e.output[200:225] > 0).all()  # of the data
    assert (e.output[225:250] < 0).all()  # of the background
    nearest = whence.neuralize(KMeans(2, n_init=1, random_state=0).fit(x), view="inlierness", background=x[:3])
    centres = KMeans(2, n_init=1, random_state=0).fit(x).cluster_centers_
    hard = distances_to(points, x[:3]).min(1) - distances_to(points, centres).min(1)
    np.testing.assert_allclose(output(nearest, points)[:, 0], hard, rtol=1e-9, atol=1e-9)
    mixture = GaussianMixture(2, random_state=0).fit(x)
    refused(mixture, "is not a distance", whence.errors.RuleError, view="inlierness", background=x)


def test_king_man_queen_woman():
    """The w² rule on word vectors: king − man + woman is near queen, and gender is why it is not king."""
    words = {"king": [1.0, 1.0, 0.2], "man": [0.0, 1.0, 0.1], "woman": [0.0, -1.0, 0.1], "queen": [1.0, -1.0, 0.2]}
    king, man, woman, queen = (torch.tensor(words[w], dtype=torch.float64) for w in ("king", "man", "woman", "queen"))
    compare = nn.Linear(3, 1, bias=False).double().eval()
    compare.weight.data = (queen - king)[None]  # more like queen than king
    vector = (king - man + woman)[None]
    e = whence.explain(compare, vector, method=whence.LRP({nn.Linear: whence.WSquare()}))
    squares = (queen - king).square()
    torch.testing.assert_close(e.relevance, squares / squares.sum() * e.output[:, None])
    assert e.relevance.argmax() == 1  # royalty is shared by both
    assert e.relevance[0, 1] == e.output
    v = np.array([*words.values()])
    net = whence.neuralize(NearestCentroid().fit(np.concatenate([v - 0.1, v + 0.1]), [*words] * 2))
    assert net.class_names[net(vector).argmax()] == "queen"
    assert whence.explain(net, vector).relevance.argmax() == 0  # its nearest rival is woman, and royalty tells them apart


FACTORY = """
from sklearn.cluster import KMeans
import whence
from sklearn.svm import OneClassSVM
from whence.models.digits import digit_samples
from whence.models.preprocessing import Preprocessing
from whence.models.registry import LoadedModel

def threes():
    images, labels = digit_samples()
    net = whence.neuralize(OneClassSVM(gamma=0.05).fit(images[labels == 3].flatten(1)))
    return LoadedModel("threes", net, Preprocessing((28, 28), channels=1), ["an outlier"])

def outliers():
    return threes().model

def clusters():
    images, _ = digit_samples()
    return whence.neuralize(KMeans(3, n_init=1, random_state=0).fit(images.flatten(1)))
"""


@pytest.mark.slow
def test_a_factory_on_the_command_line(tmp_path):
    from PIL import Image
    from typer.testing import CliRunner

    from whence.frontends.cli import app
    from whence.models.digits import digit_samples

    (tmp_path / "svm.py").write_text(FACTORY)
    five = digit_samples()[0][5, 0].mul(255).byte().numpy()
    Image.fromarray(five).save(tmp_path / "five.png")
    arguments = ["explain", str(tmp_path / "five.png"), "--model", f"{tmp_path / 'svm.py'}:threes"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "heat.png")])
    assert done.exit_code == 0, done.output
    assert "an outlier" in done.output
    assert (tmp_path / "heat.png").stat().st_size > 1000
    np.save(tmp_path / "rows.npy", digit_samples()[0].flatten(1).numpy())
    for factory, name in (("outliers", "outlierness"), ("clusters", "2")):  # named by themselves
        arguments = ["explain", str(tmp_path / "rows.npy"), "--model", f"{tmp_path / 'svm.py'}:{factory}"]
        done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "heat.png")])
        assert done.exit_code == 0, done.output
        assert name in done.output


def test_digits_of_other_classes_are_outliers(data):
    """The slides' demonstration: a one-class SVM on one digit, and a heatmap that shows where another differs."""
    train, test = (np.load(data / f"mnist_{part}.npz") for part in ("train", "test"))
    threes = train["images"][train["labels"] == 3][:1000].reshape(-1, 784) / 255.0
    net = whence.neuralize(OneClassSVM(nu=0.1, gamma=0.02).fit(threes))
    images, labels = torch.as_tensor(test["images"][:1000, None] / 255.0), test["labels"][:1000]
    e = whence.explain(net, images)
    outliers = (e.output > net.threshold).numpy()
    assert outliers[labels == 3].mean() < 0.25
    assert outliers[labels == 0].mean() > 0.9
    assert added_up(replace(e, relevance=e.relevance.flatten(1))) < 1e-12
    assert (e.relevance >= 0).all()
    never_inked = torch.as_tensor((train["images"][train["labels"] == 3][:1000] == 0).all(0))
    assert (e.relevance[:, 0][(images[:, 0] == 0) & never_inked] < 1e-12).all()


def refused(estimator, message, error=whence.errors.ModelError, **keywords):
    with pytest.raises(error, match=message):
        whence.neuralize(estimator, **keywords)
