"""Estimators as networks: the same decisions, and relevance by the papers' formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.special import logsumexp
from sklearn.cluster import KMeans
from sklearn.covariance import EllipticEnvelope
from sklearn.mixture import GaussianMixture
from sklearn.svm import OneClassSVM
from torch import nn

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


def distances_to(points, centres):
    return ((points[:, None] - centres) ** 2).sum(-1)


def added_up(e):
    """|ΣR − f|, relative to the parts it is a sum of."""
    scale = e.relevance.abs().sum(1) + e.output.abs()
    return ((e.relevance.sum(1) - e.output).abs() / scale.clamp(min=1e-300)).max().item()


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
