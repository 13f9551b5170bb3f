"""Estimators as networks: the same decisions, and relevance by the papers' formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.covariance import EllipticEnvelope
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler
from sklearn.svm import OneClassSVM

import whence

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


@pytest.mark.parametrize("nu", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("gamma", ["scale", "auto", 0.3, 30.0])
def test_one_class_svm_decides_as_before(blobs, nu, gamma):
    x, _, points = blobs
    svm = OneClassSVM(nu=nu, gamma=gamma).fit(x)
    net = whence.neuralize(svm)
    o = output(net, points)
    assert o.shape == (len(points), 1)
    assert np.isfinite(o).all()
    assert np.array_equal(o[:, 0] > net.threshold.item(), svm.predict(points) == -1)
    scores = svm.score_samples(points)
    accurate = scores > 1e-4 * svm.offset_  # a score is decision + offset, with the rounding of the offset
    assert accurate.sum() > 40
    total = svm.dual_coef_.sum()
    assert np.abs(o[accurate, 0] + np.log(scores[accurate] / total) / svm._gamma).max() < 1e-9


def test_the_margin_is_positive_for_inliers(blobs):
    x, _, points = blobs
    svm = OneClassSVM(nu=0.2, gamma=0.3).fit(x)
    margin = output(whence.neuralize(svm, view="inlierness"), points)[:, 0]
    assert np.array_equal(margin < 0, svm.predict(points) == -1)


@pytest.mark.parametrize("weighted", [False, True])
def test_kernel_density_is_what_scikit_learn_computes_where_it_is_accurate(blobs, weighted):
    x, _, points = blobs
    h, d = 0.7, x.shape[1]
    weights = np.random.default_rng(1).random(len(x)) * (np.arange(len(x)) % 7 > 0) if weighted else None
    density = KernelDensity(bandwidth=h, rtol=0, atol=0).fit(x, sample_weight=weights)
    o = output(whence.neuralize(density), points)[:, 0]
    alphas = np.full(len(x), 1 / len(x)) if weights is None else weights / weights.sum()
    with np.errstate(divide="ignore"):  # log 0
        exact = -2 * h * h * logsumexp(-distances_to(points, x) / (2 * h * h), axis=1, b=alphas)
        scores = density.score_samples(points)
    np.testing.assert_allclose(o, exact, rtol=1e-12)
    near = scores > -15  # its tail errs by 1e-4 already at −30
    assert near.sum() > 20
    assert np.abs(o + 2 * h * h * (scores + d / 2 * np.log(2 * np.pi * h * h)))[near].max() < 1e-9


CLUSTERINGS = [
    KMeans(4, n_init=1, random_state=0),
    MiniBatchKMeans(5, n_init=1, random_state=0),
    NearestCentroid(),
    NearestCentroid(priors=[0.001, 0.9, 0.099]),
    NearestCentroid(shrink_threshold=0.3),
]


@pytest.mark.parametrize("estimator", CLUSTERINGS, ids=str)
def test_clusters_are_the_estimators(blobs, estimator):
    x, y, points = blobs
    estimator.fit(x, np.array(["a", "b", "c"])[y])
    net = whence.neuralize(estimator)
    f = output(net, points)
    assert np.array_equal(np.array(net.class_names)[f.argmax(1)], estimator.predict(points))
    assert ((f > 0).sum(1) == 1).all()


def test_a_k_means_logit_is_the_distance_to_the_nearest_rival_less_that_to_the_centre(blobs):
    x, _, points = blobs
    means = KMeans(4, n_init=1, random_state=0).fit(x)
    squares = distances_to(points, means.cluster_centers_)
    expected = np.stack([np.delete(squares, c, 1).min(1) - squares[:, c] for c in range(4)], 1)
    np.testing.assert_allclose(output(whence.neuralize(means), points), expected, rtol=1e-9, atol=1e-9)
    nearest = output(whence.neuralize(means, view="outlierness"), points)[:, 0]
    np.testing.assert_allclose(nearest, means.transform(points).min(1) ** 2, rtol=1e-9)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("features", [6, 3])  # as many as components, too
def test_gaussian_mixtures(blobs, kind, features):
    x, _, points = blobs
    x, points = x[:, :features], points[:, :features]
    mixture = GaussianMixture(3, covariance_type=kind, random_state=0).fit(x)
    scores = mixture.score_samples(points)
    o = output(whence.neuralize(mixture, view="outlierness"), points)[:, 0]
    np.testing.assert_allclose(o, -scores, rtol=1e-10, atol=1e-10)
    f = output(whence.neuralize(mixture), points)
    assert np.array_equal(f.argmax(1), mixture.predict(points))
    p = mixture.predict_proba(points)
    told_apart = (p > 1e-12) & (p < 0.999)
    logits = np.log(p[told_apart]) - np.log1p(-p[told_apart])
    assert np.abs(f[told_apart] - logits).max() < 1e-9


def test_elliptic_envelope(blobs):
    x, _, points = blobs
    envelope = EllipticEnvelope(random_state=0).fit(x)
    net = whence.neuralize(envelope)
    o = output(net, points)[:, 0]
    np.testing.assert_allclose(o, envelope.mahalanobis(points), rtol=1e-9)
    assert np.array_equal(o > net.threshold.item(), envelope.predict(points) == -1)


def test_a_threshold_that_falls_on_a_training_point_leaves_it_within(blobs):
    x = blobs[0][:201]
    for seed in range(10):
        envelope = EllipticEnvelope(random_state=seed, contamination=0.1).fit(x)
        net = whence.neuralize(envelope)
        inlying = output(net, x)[:, 0] <= net.threshold.item()
        on_it = np.isclose(envelope.mahalanobis(x), -envelope.offset_, rtol=1e-13)
        assert inlying[on_it].all()
        assert np.array_equal(inlying[~on_it], envelope.predict(x)[~on_it] == 1)


def test_support_sets_are_soft_nearest_members(blobs):
    x, y, points = blobs
    labels = np.where(np.arange(len(x)) % 10 == 0, -1, 2 * y)  # noise, and labels with gaps
    net = whence.neuralize(whence.layers.SupportSets(x, labels, gamma=0.4))
    similar = [np.exp(-0.4 * distances_to(points, x[labels == c])).mean(1) for c in (0, 2, 4)]
    assert np.array_equal(output(net, points)[:200].argmax(1), np.stack(similar, 1)[:200].argmax(1))
    members = [(c, (labels == c).sum()) for c in (0, 2, 4)]
    o = [-(logsumexp(-0.4 * distances_to(points, x[labels == c]), axis=1) - np.log(n)) / 0.4 for c, n in members]
    rivals = [-logsumexp([-0.4 * o[k] for k in range(3) if k != c], axis=0) / 0.4 for c in range(3)]
    f = output(net, points)
    np.testing.assert_allclose(f, np.stack(rivals, 1) - np.stack(o, 1), rtol=1e-9, atol=1e-9)
    assert net.class_names == [0, 2, 4]
    hard = whence.neuralize(whence.layers.SupportSets(x, labels, gamma=math.inf))
    assert np.array_equal(
        output(hard, points).argmax(1), np.stack([distances_to(points, x[labels == c]).min(1) for c in (0, 2, 4)]).argmin(0)
    )


PREPROCESSING = [
    (StandardScaler(),),
    (StandardScaler(with_mean=False), RobustScaler()),
    (RobustScaler(with_scaling=False), "passthrough"),
    (StandardScaler(), PCA(3)),
    (PCA(3, whiten=True), MinMaxScaler()),
    (StandardScaler(), make_pipeline(PCA(4), StandardScaler(with_std=False))),
]


LAST = [
    OneClassSVM(nu=0.1),
    KMeans(3, n_init=1, random_state=0),
    GaussianMixture(2, random_state=0),
    EllipticEnvelope(random_state=0),
]


@pytest.mark.parametrize("steps", PREPROCESSING, ids=str)
@pytest.mark.parametrize("last", LAST, ids=lambda e: type(e).__name__)
def test_pipelines_are_folded_in(blobs, steps, last):
    x, _, points = blobs
    spread = np.array([1, 100, 0.01, 3, 1, 20])
    x, points = x * spread + 5, points[:250] * spread + 5
    pipeline = make_pipeline(*steps, last).fit(x)
    net = whence.neuralize(pipeline)
    o = output(net, points)
    predicted = pipeline.predict(points)
    if o.shape[1] == 1:
        assert np.array_equal(o[:, 0] > net.threshold.item(), predicted == -1)
    else:
        assert np.array_equal(o.argmax(1), predicted)
    e = whence.explain(net, torch.as_tensor(points))
    assert e.relevance.shape == points.shape
    assert e.conservation.error.max() < 1e-9
    if not isinstance(last, GaussianMixture):  # whose priors and volumes absorb
        assert added_up(e) < 1e-12


def test_relevance_through_a_scaler_is_the_share_in_its_units(blobs):
    x, _, points = blobs
    pipeline = make_pipeline(StandardScaler(), OneClassSVM(gamma=0.5)).fit(x * [1, 100, 0.01, 3, 1, 20])
    points = points[:200] * [1, 100, 0.01, 3, 1, 20]
    e = whence.explain(whence.neuralize(pipeline), torch.as_tensor(points))
    scaled = torch.as_tensor(pipeline[0].transform(points))
    inner = whence.explain(whence.neuralize(pipeline[1]), scaled)
    torch.testing.assert_close(e.relevance, inner.relevance, rtol=1e-9, atol=1e-12)


def test_relevance_through_pca_is_that_of_deviations_within_its_plane(blobs):
    x, _, points = blobs
    pipeline = make_pipeline(PCA(3), KMeans(2, n_init=1, random_state=0)).fit(x)
    e = whence.explain(whence.neuralize(pipeline, view="outlierness"), torch.as_tensor(points))
    pca, means = pipeline[0], pipeline[1]
    z = pca.transform(points)
    centres = pca.inverse_transform(means.cluster_centers_)[means.predict(z)]
    np.testing.assert_allclose(e.relevance.numpy(), (pca.inverse_transform(z) - centres) ** 2, rtol=1e-7, atol=1e-8)
    assert (e.relevance >= 0).all()
