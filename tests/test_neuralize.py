"""Estimators as networks: the same decisions, and relevance by the papers' formulas."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.special import logsumexp
from sklearn.cluster import DBSCAN, BisectingKMeans, KMeans, MiniBatchKMeans
from sklearn.covariance import EllipticEnvelope
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, RobustScaler, StandardScaler
from sklearn.svm import SVC, OneClassSVM
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


# the estimator's own decision ---------------------------------------------------------------------------------------------


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


# exercise F and the papers' formulas --------------------------------------------------------------------------------------


def made_svm(rng, features, vectors, gamma):
    """A one-class SVM fitted to nothing: random support vectors and coefficients."""
    svm = OneClassSVM(gamma=gamma).fit(rng.normal(size=(3, features)))
    svm.support_vectors_ = rng.normal(size=(vectors, features)) * 10 ** rng.uniform(-1, 1) + rng.normal()
    svm.dual_coef_ = rng.uniform(0.01, 1, size=(1, vectors))
    svm._intercept_ = svm.intercept_ = np.array([-0.5 * svm.dual_coef_.sum()])
    svm.offset_ = 0.5 * svm.dual_coef_.sum()
    return svm


def by_the_papers_formula(x, u, alphas, gamma):
    """R_i = Σ_j (x_i − u_ji)² / ‖x − u_j‖² · p_j · o, one sample at a time."""
    relevance, outlierness = np.zeros_like(x), np.zeros(len(x))
    for n, point in enumerate(x):
        h = np.array([((point - v) ** 2).sum() - math.log(a) / gamma for v, a in zip(u, alphas, strict=True)])
        outlierness[n] = -logsumexp(-gamma * h) / gamma
        p = np.exp(-gamma * (h - outlierness[n]))
        for j, v in enumerate(u):
            squares = (point - v) ** 2
            relevance[n] += squares / squares.sum() * p[j] * outlierness[n]
    return relevance, outlierness


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 500), st.floats(-3, 3), st.integers(0, 2**32 - 1))
def test_any_one_class_svm(features, vectors, exponent, seed):
    rng, gamma = np.random.default_rng(seed), 10.0**exponent
    svm = made_svm(rng, features, vectors, gamma)
    u, alphas = svm.support_vectors_, svm.dual_coef_[0] / svm.dual_coef_.sum()
    points = np.concatenate(
        [u[rng.integers(len(u), size=3)] + rng.normal(size=(3, features)), 100 * rng.normal(size=(1, features))]
    )
    e = whence.explain(whence.neuralize(svm), torch.as_tensor(points))
    relevance, outlierness = by_the_papers_formula(points, u, alphas, gamma)
    scale = 1 + distances_to(points, u).max()
    np.testing.assert_allclose(e.output.numpy(), outlierness, rtol=1e-11, atol=1e-14 * scale + 1e-14 / gamma)
    np.testing.assert_allclose(e.relevance.numpy(), relevance, rtol=1e-7, atol=1e-8 * outlierness.max())
    assert added_up(e) < 1e-12
    assert (e.relevance >= 0).all()
    assert e.conservation.error.max() < 1e-12


def test_exercise_f():
    """o = −(1/γ) log f is the network's output, its relevance the network's by hand, and a hard minimum for γ → ∞."""
    x = np.array([[0.5, -1.0]])
    u, alphas = np.array([[0.0, 0.0], [2.0, 1.0], [-1.0, 1.0]]), np.array([0.2, 0.5, 0.3])
    for gamma in (0.1, 1.0, 10.0, 1000.0):
        layers = nn.Sequential(
            whence.layers.Distance(torch.as_tensor(u)), whence.layers.SoftMin(gamma, -torch.as_tensor(alphas).log() / gamma)
        ).eval()
        o = layers(torch.as_tensor(x)).item()
        h = distances_to(x, u)[0] - np.log(alphas) / gamma
        assert o == pytest.approx(-logsumexp(-gamma * h) / gamma, rel=1e-12)
        if gamma <= 10:  # else f underflows
            f = (alphas * np.exp(-gamma * distances_to(x, u)[0])).sum()
            assert o == pytest.approx(-math.log(f) / gamma, rel=1e-12)
    hard = nn.Sequential(whence.layers.Distance(torch.as_tensor(u)), whence.layers.SoftMin()).eval()
    nearest = distances_to(x, u)[0].min()
    assert hard(torch.as_tensor(x)).item() == pytest.approx(nearest, rel=1e-12)
    assert o == pytest.approx(nearest, abs=1e-2)
    e = whence.explain(hard, torch.as_tensor(x))
    np.testing.assert_allclose(e.relevance.numpy(), (x - u[0]) ** 2)


def test_one_backward_through_the_support_vectors_is_the_same():
    """R = −½ Σ_j (x − u_j) ⊙ ∂o/∂u_j · o / ‖x − u_j‖², by plain autograd."""
    rng = np.random.default_rng(3)
    svm = made_svm(rng, 7, 20, 0.2)
    x, u = torch.as_tensor(rng.normal(size=(5, 7))), torch.as_tensor(svm.support_vectors_)
    alphas = torch.as_tensor(svm.dual_coef_[0] / svm.dual_coef_.sum())
    u = u.expand(5, -1, -1).clone().requires_grad_()
    squares = (x[:, None] - u).square().sum(-1)
    o = -torch.logsumexp(-0.2 * squares + alphas.log(), 1) / 0.2
    (g,) = torch.autograd.grad(o.sum(), u)
    expected = -0.5 * ((x[:, None] - u) * g * (o[:, None] / squares)[..., None]).sum(1)
    torch.testing.assert_close(whence.explain(whence.neuralize(svm), x).relevance, expected.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("number", [2, 5])
def test_midpoint_rule_of_k_means(blobs, number):
    """R_i = (x_i − m_i) w_i with the nearest rival, w = 2(μ_c − μ_k), m = (μ_c + μ_k)/2; it adds up exactly."""
    x, _, points = blobs
    means = KMeans(number, n_init=1, random_state=0).fit(x)
    mu, net = means.cluster_centers_, whence.neuralize(means)
    for c in range(number):
        e = whence.explain(net, torch.as_tensor(points), c)
        squares = distances_to(points, mu)
        squares[:, c] = np.inf
        k = squares.argmin(1)
        expected = (points - (mu[c] + mu[k]) / 2) * 2 * (mu[c] - mu[k])
        np.testing.assert_allclose(e.relevance.numpy(), expected, rtol=1e-8, atol=1e-8)
        assert added_up(e) < 1e-12


def by_pairs(points, u, groups, gamma, c):
    """f_c, and Σ over pairs (j of a rival, i of c) of p_i p_j (x − m) w, scaled down to f_c where the pairs have more."""
    count, result, logits = groups.max() + 1, np.zeros_like(points), np.zeros(len(points))
    biases = np.log(np.bincount(groups))[groups] / gamma
    for n, point in enumerate(points):
        h = ((point - u) ** 2).sum(1) + biases
        o = np.array([-logsumexp(-gamma * h[groups == k]) / gamma for k in range(count)])
        within = np.exp(-gamma * (h - o[groups]))
        rivals = [k for k in range(count) if k != c]
        pooled = -logsumexp(-gamma * o[rivals]) / gamma
        logits[n], evidence = pooled - o[c], 0.0
        for k in rivals:
            for j in np.flatnonzero(groups == k):
                for i in np.flatnonzero(groups == c):
                    weight = math.exp(-gamma * (o[k] - pooled)) * within[j] * within[i]
                    evidence += weight * (h[j] - h[i])
                    result[n] += weight * (point - (u[i] + u[j]) / 2) * 2 * (u[i] - u[j])
        if 0 < logits[n] < evidence:
            result[n] *= logits[n] / evidence
    return result, logits


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(2, 4), st.integers(1, 4), st.floats(-2, 2), st.integers(0, 2**32 - 1))
def test_pairs_of_cluster_members_share_alike(features, clusters, members, exponent, seed):
    rng, gamma = np.random.default_rng(seed), 10.0**exponent
    groups = np.concatenate([np.arange(clusters), rng.integers(clusters, size=clusters * (members - 1))])
    u, points = rng.normal(size=(len(groups), features)), rng.normal(size=(4, features)) * 2
    net = whence.neuralize(whence.layers.SupportSets(u, groups, gamma))
    for c in range(clusters):
        e = whence.explain(net, torch.as_tensor(points), c)
        expected, logits = by_pairs(points, u, groups, gamma, c)
        np.testing.assert_allclose(e.output.numpy(), logits, rtol=1e-9, atol=1e-9)
        scale = np.abs(expected).sum() + 1e-9
        np.testing.assert_allclose(e.relevance.numpy() / scale, expected / scale, atol=1e-6)
        assert e.conservation.error.max() < 1e-6


def test_softness_does_not_blow_relevance_up():
    """Many members of the own cluster make f_c positive where the pairs speak for none: their part is absorbed."""
    u = np.concatenate([np.zeros((100, 2)), [[1.0, -0.3]]])
    net = whence.neuralize(whence.layers.SupportSets(u, np.arange(101) // 100, gamma=1.0))
    for place in np.linspace(0.4, 0.7, 31):
        e = whence.explain(net, torch.tensor([[place, 0.0]], dtype=torch.float64), 0)
        assert e.relevance[0, 0] * (0.5 - place) >= 0
        assert e.relevance.abs().max() < 2
        assert e.conservation.error.max() < 1e-9


def test_support_sets_outlierness_is_not_negative(blobs):
    x, y, points = blobs
    e = whence.explain(whence.neuralize(whence.layers.SupportSets(x, y, 0.1), view="outlierness"), torch.as_tensor(points))
    assert (e.output > 0).all()
    assert (e.relevance >= 0).all()
    assert added_up(e) < 1e-12


def test_mahalanobis_shares_are_deviation_times_bent_deviation(blobs):
    x, _, points = blobs
    envelope = EllipticEnvelope(random_state=0).fit(x)
    e = whence.explain(whence.neuralize(envelope), torch.as_tensor(points))
    deviation = points - envelope.location_
    np.testing.assert_allclose(e.relevance.numpy(), deviation * (deviation @ envelope.precision_), rtol=1e-7, atol=1e-7)
    assert added_up(e) < 1e-12


def test_relevance_of_a_density_is_what_exceeds_its_maximum(blobs):
    """−log p = [what the squares account for, not negative] + [what it has at the centres], the latter absorbed."""
    x, _, points = blobs
    mixture = GaussianMixture(3, covariance_type="diag", random_state=0).fit(x)
    e = whence.explain(whence.neuralize(mixture, view="outlierness"), torch.as_tensor(points))
    assert (e.relevance >= 0).all()
    assert e.conservation.error.max() < 1e-9
    constant = e.conservation.absorbed
    torch.testing.assert_close(constant, constant[:1].expand_as(constant))


# where it could go wrong --------------------------------------------------------------------------------------------------


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
    refused(mixture, "no distance to compare", whence.errors.RuleError, view="inlierness", background=x)


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


# bad input ----------------------------------------------------------------------------------------------------------------


def refused(estimator, message, error=whence.errors.ModelError, **keywords):
    with pytest.raises(error, match=message):
        whence.neuralize(estimator, **keywords)


def test_what_cannot_be_a_network_is_refused(blobs):
    x, y, _ = blobs
    refused(OneClassSVM(), r"OneClassSVM is not fitted; call its fit\(X\) first")
    refused(make_pipeline(StandardScaler(), KMeans(2)), "not fitted")
    refused(OneClassSVM(kernel="linear").fit(x), "kernel='linear'.*fit it with kernel='rbf'")
    refused(KernelDensity(kernel="tophat").fit(x), "tophat.*gaussian")
    refused(KernelDensity(metric="manhattan").fit(x), "manhattan.*euclidean")
    refused(NearestCentroid(metric="manhattan").fit(x, y), "manhattan")
    refused(SVC().fit(x, y > 0), "both signs; explain it from outside: whence.explain.estimator.decision_function")
    refused(IsolationForest(n_estimators=2).fit(x), "TreeExplainer")
    refused(DBSCAN().fit(x), "SupportSets")
    refused(BisectingKMeans(2).fit(x), "use KMeans")
    refused(KMeans, r"KMeans is a class; pass a fitted one: KMeans\(\).fit\(X\)")
    refused(make_pipeline("passthrough"), "only passthrough")
    refused("svm", "str has no exact network: choose OneClassSVM")
    refused(make_pipeline(Normalizer(), KMeans(2, n_init=1)).fit(x), "Normalizer is not linear.*StandardScaler")
    refused(make_pipeline(MinMaxScaler(clip=True), KMeans(2, n_init=1)).fit(x), "clip=False")


def test_sparse_fits_and_inputs_are_refused(blobs):
    from scipy.sparse import csr_matrix

    x, _, _ = blobs
    refused(OneClassSVM().fit(csr_matrix(x)), r"sparse data; fit it on X.toarray\(\)")
    net = whence.neuralize(OneClassSVM().fit(x))
    for unfit in (torch.as_tensor(x).to_sparse(), csr_matrix(x), x):
        with pytest.raises(whence.errors.InputError, match="sparse or no tensor"):
            net(unfit)
    assert net(torch.as_tensor(x[:0])).shape == (0, 1)


def test_views_and_thresholds_that_cannot_be_had_are_refused(blobs):
    x, _, points = blobs
    density = KernelDensity().fit(x)
    refused(density, "KernelDensity has no threshold.*pass threshold=", whence.errors.RuleError, view="inlierness")
    refused(density, "assigns no clusters", whence.errors.RuleError, view="assignment")
    refused(density, "view='density'; choose", whence.errors.RuleError, view="density")
    svm = OneClassSVM().fit(x)
    svm.offset_ = np.array([0.0])  # which no similarity is below
    assert whence.neuralize(svm).threshold is None
    refused(svm, "no threshold", whence.errors.RuleError, view="inlierness")
    means = KMeans(2, n_init=1).fit(x)
    refused(means, "threshold=3.0: a number for the views", whence.errors.RuleError, threshold=3.0)
    refused(density, "threshold=nan", whence.errors.RuleError, threshold=math.nan)
    refused(density, "background samples are for", whence.errors.RuleError, background=x)
    refused(density, "without background", whence.errors.RuleError, view="inlierness", background=x, threshold=1.0)
    for background in (x[:, :1], x[0]):
        pipeline = make_pipeline(StandardScaler(), density).fit(x)
        refused(pipeline, r"give samples \[B, 6\]", whence.errors.InputError, view="inlierness", background=background)
    refused(KMeans(1, n_init=1).fit(x), "one cluster.*view='outlierness'", whence.errors.RuleError)
    net = whence.neuralize(density, view="inlierness", threshold=3.0)
    np.testing.assert_allclose(output(net, points), 3 - output(whence.neuralize(density), points))
    assert whence.neuralize(density).threshold is None
    refused(whence.layers.SupportSets(x, np.zeros(3), 1.0), "labels", whence.errors.InputError)
    assert whence.neuralize(whence.layers.SupportSets(x[:3], ["b", "a", "b"], np.float32(1))).class_names == ["a", "b"]
    refused(whence.layers.SupportSets(x, np.full(len(x), -1), 1.0), "noise", whence.errors.InputError)
    refused(whence.layers.SupportSets(x, np.zeros(len(x), int), -1.0), "positive", whence.errors.RuleError)


def test_inputs_of_another_width_are_refused(blobs):
    x, _, _ = blobs
    net = whence.neuralize(OneClassSVM().fit(x))
    with pytest.raises(
        whence.errors.InputError, match=r"OneClassSVM was fitted on 6 features, but the input has shape \(2, 7\)"
    ):
        whence.explain(net, torch.rand(2, 7))
    with pytest.raises(whence.errors.InputError, match="fitted on 6 features"):
        net(torch.rand(6))
    with pytest.raises(whence.errors.InputError, match=r"Distance of 3 features.*pass \[N, 3\]"):
        whence.layers.Distance(torch.rand(2, 3))(torch.rand(2, 4))
    with pytest.raises(whence.errors.InputError, match="one cluster has no rival"):
        whence.layers.Contrast()(torch.rand(2, 1))
    with pytest.raises(whence.errors.InputError, match="factors of shape"):
        whence.layers.Mahalanobis(torch.rand(2, 3), torch.rand(4, 4))
    with pytest.raises(whence.errors.InputError, match="groups must number"):
        whence.layers.Contrast(groups=torch.tensor([0, 2]))
    with pytest.raises(whence.errors.InputError, match="groups must be a tensor"):
        whence.layers.Contrast(groups=[0, 1])
    with pytest.raises(whence.errors.InputError, match="groups of 2 distances got 3"):
        whence.layers.Contrast(groups=torch.tensor([0, 1]))(torch.rand(1, 3))


def test_distances_at_the_input_are_refused_within_relevance_rules(blobs):
    net = whence.neuralize(OneClassSVM().fit(blobs[0]))
    with whence.relevance_rules(None, {}), pytest.raises(whence.errors.RuleError, match="touches the input"):
        net.layers(torch.as_tensor(blobs[2]).requires_grad_())
