"""Estimators as networks: the same decisions, and relevance by the papers' formulas."""

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN, BisectingKMeans, KMeans
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import KernelDensity, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
from sklearn.svm import SVC, OneClassSVM

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
    refused(SVC().fit(x, y > 0), "both signs; explain it as a black box: whence.explain.estimator.decision_function")
    refused(IsolationForest(n_estimators=2).fit(x), "TreeExplainer")
    refused(DBSCAN().fit(x), "SupportSets")
    refused(BisectingKMeans(2).fit(x), "use KMeans")
    refused(KMeans, r"KMeans is a class; pass a fitted one: KMeans\(\).fit\(X\)")
    refused(make_pipeline("passthrough"), "no estimator as its last step")
    refused("svm", "str cannot be converted into an equivalent network: choose OneClassSVM")
    refused(make_pipeline(Normalizer(), KMeans(2, n_init=1)).fit(x), "Normalizer is not a known linear.*StandardScaler")
    refused(make_pipeline(MinMaxScaler(clip=True), KMeans(2, n_init=1)).fit(x), "clip=False")


def test_sparse_fits_and_inputs_are_refused(blobs):
    from scipy.sparse import csr_matrix

    x, _, _ = blobs
    refused(OneClassSVM().fit(csr_matrix(x)), r"sparse data; fit it on X.toarray\(\)")
    net = whence.neuralize(OneClassSVM().fit(x))
    for unfit in (torch.as_tensor(x).to_sparse(), csr_matrix(x), x):
        with pytest.raises(whence.errors.InputError, match="the input is sparse or not a tensor; pass a dense tensor"):
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
    refused(means, "expected a finite number, for view", whence.errors.RuleError, threshold=3.0)
    refused(density, "threshold=nan", whence.errors.RuleError, threshold=math.nan)
    refused(density, "background= applies to view='inlierness' only", whence.errors.RuleError, background=x)
    of_background = {"view": "inlierness", "background": x, "threshold": 1.0}
    refused(density, "expected a finite number, for view", whence.errors.RuleError, **of_background)
    for background in (x[:, :1], x[0]):
        pipeline = make_pipeline(StandardScaler(), density).fit(x)
        refused(pipeline, r"expected \[B, 6\]", whence.errors.InputError, view="inlierness", background=background)
    refused(KMeans(1, n_init=1).fit(x), "a single cluster.*view='outlierness'", whence.errors.RuleError)
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
    with pytest.raises(whence.errors.InputError, match="features got an input of shape"):
        whence.layers.Distance(torch.rand(2, 3))(torch.rand(2, 4))
    with pytest.raises(whence.errors.InputError, match="a single cluster has no competing cluster"):
        whence.layers.Contrast()(torch.rand(2, 1))
    with pytest.raises(whence.errors.InputError, match="factors of shape"):
        whence.layers.Mahalanobis(torch.rand(2, 3), torch.rand(4, 4))
    with pytest.raises(whence.errors.InputError, match="groups must number"):
        whence.layers.Contrast(groups=torch.tensor([0, 2]))
    with pytest.raises(whence.errors.InputError, match="groups must be an integer tensor"):
        whence.layers.Contrast(groups=[0, 1])
    with pytest.raises(whence.errors.InputError, match="groups has 2 entries, but the input has 3 distances"):
        whence.layers.Contrast(groups=torch.tensor([0, 1]))(torch.rand(1, 3))


def test_distances_at_the_input_are_refused_within_relevance_rules(blobs):
    net = whence.neuralize(OneClassSVM().fit(blobs[0]))
    with (
        whence.relevance_rules(None, {}),
        pytest.raises(whence.errors.RuleError, match="is applied to the input, where relevance is not of the form"),
    ):
        net.layers(torch.as_tensor(blobs[2]).requires_grad_())
