"""`neuralize`: conversion of a fitted estimator into an equivalent network, which can be explained like any other.

One-class SVM and density estimates: Kauffmann, Müller, Montavon 2020 (arXiv 1805.06230); clusters: Kauffmann et al. 2024
(arXiv 1906.07633).
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import reduce
from math import isfinite, log, pi
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.core.argument_checks import check_arguments
from whence.errors import InputError, ModelError, RuleError, value_repr
from whence.neuralization.affine_preprocessing import Affine
from whence.neuralization.distances import Distance, Mahalanobis
from whence.neuralization.soft_pooling import Contrast, SoftMin

View = Literal["outlierness", "inlierness", "assignment"]
Array = Any  # what torch.as_tensor takes


@dataclass(frozen=True, eq=False)
class SupportSets:
    """Clusters given by their members, for kernel k-means and clusterings without `predict`.

    >>> labels = sklearn.cluster.DBSCAN().fit_predict(X)
    >>> whence.neuralize(whence.layers.SupportSets(X, labels, gamma=1.0))

    A point belongs to the cluster it is most similar to, by the mean of exp(−γ ‖x − u_j‖²) over its members (kernel k-means
    without the constant that says how wide a cluster is); γ = ∞ is the nearest member's. `points` is `[M, d]`, `labels` `[M]`,
    of which negative ones are noise and left out.
    """

    points: Array
    labels: Array
    gamma: float


class Neuralized(nn.Module):
    """A fitted estimator as a network in eval mode, returned by `neuralize`.

    >>> net = whence.neuralize(svm)
    >>> (net(x) > net.threshold)[:, 0]                   # svm.predict(x) == -1

    Takes `[N, d]`, or samples of any shape with d values in all, such as images. `threshold` of an outlierness is None
    if the estimator has none; `class_names` are the names of the columns: the labels of an assignment, else the view.
    """

    threshold: Tensor | None

    def __init__(
        self, layers: nn.Module, features: int, name: str, class_names: Sequence[Any] = (), threshold: float | None = None
    ):
        super().__init__()
        self.layers, self.features, self.name, self.class_names = layers, features, name, class_names
        self.register_buffer("threshold", None if threshold is None else _tensor(threshold))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            raise InputError("the input is sparse or not a tensor; pass a dense tensor: torch.as_tensor(x), or x.to_dense()")
        if x.dim() < 2 or x.shape[1:].numel() != self.features:
            raise InputError(f"{self.name} was fitted on {self.features} features, but the input has shape {tuple(x.shape)}")
        return self.layers(x.flatten(1))

    def extra_repr(self) -> str:
        return f"{self.name}, {self.features} features"


@check_arguments
def neuralize(
    estimator: Any, view: View | None = None, *, threshold: float | None = None, background: Array | None = None
) -> Neuralized:
    """Convert a fitted scikit-learn estimator into a network with built-in rules, to be explained like any other model.

    >>> svm = sklearn.svm.OneClassSVM(gamma=0.1).fit(X)
    >>> net = whence.neuralize(svm)
    >>> e = whence.explain(net, torch.as_tensor(x))      # why an outlier: relevance of every feature, adding up to net(x)

    Takes `OneClassSVM` (rbf), `KernelDensity` (gaussian), `KMeans`, `MiniBatchKMeans`, `NearestCentroid`, `GaussianMixture`,
    `EllipticEnvelope`, `SupportSets`, and a `Pipeline` of scalers and `PCA` before one of them, whose relevance lands on
    the raw features. Computes in float64.

    `view` "outlierness" is how far from the data, `[N, 1]`: −(1/γ) log Σ α_j exp(−γ‖x − u_j‖²) for SVM, kernel density and
    support sets (Σα = 1, γ = 1/2h²), −log p(x) for a mixture, else the squared (Mahalanobis) distance to the nearest centre.
    "inlierness" is the margin threshold − outlierness, positive for inliers; with `background` samples `[B, d]` it is how much
    nearer the data are than those: (1/γ) log of the ratio of mean similarities, which the features account for altogether.
    "assignment" gives `[N, K]` logits whose arg max is `predict`. The default is what the estimator predicts. `threshold`
    replaces the estimator's own, if it has one, in units of the outlierness.

    Raises `ModelError` for estimators that are not fitted or not supported, `RuleError` for a view that is not available.

    Args:
        estimator: A fitted estimator or pipeline of scikit-learn, or `whence.layers.SupportSets`.
        view: "outlierness", "inlierness" or "assignment", where the estimator has several.
        threshold: Threshold of outlierness, for estimators without one of their own.
        background: Samples `[B, d]` that inlierness is measured against.

    Returns:
        A `Neuralized` network, in eval mode.
    """
    *steps, last = _pipeline_steps(estimator)
    name, reading = type(last).__name__, _convert(last)
    view = view or ("outlierness" if reading.assignment is None else "assignment")
    _check_view(name, reading, view, threshold, background)
    inputs = reduce(Affine.then, map(_affine, steps)) if steps else None
    distances = reading.distances(inputs)
    features = reading.features if inputs is None else inputs.features
    if view == "assignment" and reading.assignment is not None:
        return Neuralized(nn.Sequential(distances, reading.assignment), features, name, reading.class_names)
    outlierness = nn.Sequential(distances, *reading.outlierness)
    threshold = reading.threshold if threshold is None else float(threshold)
    if view == "outlierness":
        return Neuralized(outlierness, features, name, (view,), threshold)
    if background is not None:
        if not isinstance(distances, Distance):
            raise RuleError(
                f"the outlierness of {name} is not a distance, so it cannot be compared with background "
                "samples; pass threshold="
            )
        other = _background_distance(background, inputs, features, reading.outlierness[0].sharpness)
        return Neuralized(_DistanceDifference(other, outlierness), features, name, (view,))
    if threshold is None:
        raise RuleError(
            f"{name} has no threshold for view='inlierness'; pass threshold=, such as a quantile of its outlierness, or "
            "background= samples to compare with"
        )
    return Neuralized(nn.Sequential(outlierness, _AffineScore(-1.0, threshold)), features, name, (view,))


def _check_view(name: str, reading: "_EstimatorLayers", view: str, threshold: float | None, background: Array | None) -> None:
    if view not in ("outlierness", "inlierness", "assignment"):
        raise RuleError(f"view={value_repr(view)}; choose 'outlierness', 'inlierness' or 'assignment'")
    if view == "assignment" and reading.assignment is None:
        raise RuleError(f"{name} assigns no clusters; its views are 'outlierness' and 'inlierness'")
    if view == "assignment" and len(reading.class_names) < 2:
        raise RuleError(f"{name} has a single cluster, so there is no competing cluster; use view='outlierness'")
    if threshold is not None and (view == "assignment" or background is not None or not isfinite(threshold)):
        raise RuleError(f"threshold={threshold}: expected a finite number, for view='outlierness' or 'inlierness' only")
    if background is not None and view != "inlierness":
        raise RuleError(f"background= applies to view='inlierness' only, got view={value_repr(view)}")


@dataclass(frozen=True)
class _EstimatorLayers:
    """An estimator's parts as layers."""

    features: int
    distances: Callable[[Affine | None], nn.Module]
    outlierness: tuple[Any, ...] = ()
    assignment: nn.Module | None = None
    threshold: float | None = None
    class_names: Sequence[Any] = ()


class _AffineScore(nn.Module):
    """slope · o + offset."""

    slope: Tensor
    offset: Tensor

    def __init__(self, slope: float, offset: float):
        super().__init__()
        self.register_buffer("slope", _tensor(slope))
        self.register_buffer("offset", _tensor(offset))

    def forward(self, o: Tensor) -> Tensor:
        return o * self.slope + self.offset


class _DistanceDifference(nn.Module):
    """The difference of two outlierness scores."""

    def __init__(self, other: nn.Module, own: nn.Module):
        super().__init__()
        self.other, self.own = other, own

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x) - self.own(x)


def _one_class_svm(svm: Any) -> _EstimatorLayers:
    if svm.kernel != "rbf":
        raise ModelError(f"OneClassSVM(kernel={svm.kernel!r}) is not based on distances; fit it with kernel='rbf'")
    gamma, alphas = float(svm._gamma), _tensor(svm.dual_coef_).flatten()
    offset = float(np.asarray(svm.offset_).item()) / float(alphas.sum())
    pool = _soft_min_layer(alphas, gamma)
    threshold = -log(offset) / gamma if offset > 0 else None  # no similarity is below 0
    return _distance_layers(svm.support_vectors_, (pool,), threshold=threshold)


def _kernel_density(density: Any) -> _EstimatorLayers:
    if density.kernel != "gaussian" or density.metric != "euclidean":
        raise ModelError(
            f"KernelDensity(kernel={density.kernel!r}, metric={density.metric!r}) is not a mixture of Gaussians; fit it with "
            "kernel='gaussian', metric='euclidean'"
        )
    points, weights = _tensor(density.tree_.data), density.tree_.sample_weight
    weights = torch.ones(len(points), dtype=torch.float64) if weights is None else _tensor(weights)
    gamma = 1 / (2 * float(density.bandwidth_) ** 2)
    return _distance_layers(points, (_soft_min_layer(weights, gamma),))


def _k_means(estimator: Any) -> _EstimatorLayers:
    return _distance_layers(
        estimator.cluster_centers_, (SoftMin(),), Contrast(), class_names=range(len(estimator.cluster_centers_))
    )


def _nearest_centroid(estimator: Any) -> _EstimatorLayers:
    if estimator.metric != "euclidean":
        raise ModelError(f"NearestCentroid(metric={estimator.metric!r}) is not supported; fit it with metric='euclidean'")
    priors = getattr(estimator, "class_prior_", None)  # before scikit-learn 1.6 there were none
    priors = np.ones(len(estimator.classes_)) / len(estimator.classes_) if priors is None else np.asarray(priors)
    centroids, classes = _tensor(estimator.centroids_[priors > 0]), estimator.classes_[priors > 0].tolist()
    if np.isclose(priors, 1 / len(priors)).all():
        return _distance_layers(centroids, (SoftMin(),), Contrast(), class_names=classes)
    spread = _tensor(estimator.within_class_std_dev_)
    factors, biases = 1 / spread.where(spread != 0, 1)[None], -2 * _tensor(priors[priors > 0]).log()
    return _quadratic_layers(centroids, factors, (SoftMin(biases=biases),), Contrast(biases=biases), class_names=classes)


def _gaussian_mixture(mixture: Any) -> _EstimatorLayers:
    """o_k = ½ (x−μ)ᵀP(x−μ) − log π − ½ log|P| + d/2 log 2π, −log p(x) = softmin o_k: what o_k has at the centres is split
    off, so that the pool is of squares with weights that add up to 1, and not negative."""
    means, factors = _tensor(mixture.means_), _tensor(mixture.precisions_cholesky_)
    features = means.shape[1]
    if mixture.covariance_type == "tied":
        factors = factors[None]
    if mixture.covariance_type == "spherical":
        factors = factors[:, None].expand(-1, features)
    diagonals = factors if factors.dim() == 2 else factors.diagonal(dim1=1, dim2=2)
    at_centres = features / 2 * log(2 * pi) - _tensor(mixture.weights_).log() - diagonals.log().sum(-1)
    least = -torch.logsumexp(-at_centres, 0)
    biases = at_centres - least
    pools = SoftMin(1.0, biases), _AffineScore(1.0, least.item())
    return _quadratic_layers(means, factors / 2**0.5, pools, Contrast(1.0, biases=biases), class_names=range(len(means)))


def _elliptic_envelope(envelope: Any) -> _EstimatorLayers:
    values, vectors = torch.linalg.eigh(_tensor(envelope.get_precision()))
    factors = vectors * values.clamp(min=0).sqrt()
    threshold = -float(envelope.offset_) * (1 + 1e-12)  # a percentile, which falls on a training point: let it stay within
    return _quadratic_layers(_tensor(envelope.location_)[None], factors[None], (), threshold=threshold)


def _support_sets(sets: SupportSets) -> _EstimatorLayers:
    points, labels = _tensor(sets.points), np.asarray(sets.labels)
    if points.dim() != 2 or labels.shape != points.shape[:1]:
        raise InputError(f"SupportSets needs points [M, d] and labels [M], got {tuple(points.shape)} and {labels.shape}")
    kept = labels >= 0 if np.issubdtype(labels.dtype, np.number) else np.full(len(labels), True)
    if not kept.any():
        raise InputError("SupportSets: all labels are negative (noise), so there is no cluster")
    classes, groups, sizes = np.unique(labels[kept], return_inverse=True, return_counts=True)
    points, members = points[torch.as_tensor(kept)], _tensor(sizes[groups])
    pool = _soft_min_layer(torch.ones_like(members), sets.gamma)
    contrast = Contrast(sets.gamma, torch.as_tensor(groups), members.log() / sets.gamma)
    return _distance_layers(points, (pool,), contrast, class_names=classes.tolist())


CONVERTERS: dict[str, Callable[[Any], _EstimatorLayers]] = {
    "OneClassSVM": _one_class_svm,
    "KernelDensity": _kernel_density,
    "KMeans": _k_means,
    "MiniBatchKMeans": _k_means,
    "NearestCentroid": _nearest_centroid,
    "GaussianMixture": _gaussian_mixture,
    "EllipticEnvelope": _elliptic_envelope,
}

WITHOUT_PREDICT = "it cannot assign new points; pass its clusters as whence.layers.SupportSets(X, labels, gamma)"
TREES = "trees have no distances; use shap.TreeExplainer"


def _shapley_advice(way: str) -> str:
    explained = f"whence.explain(estimator.{way}, X[:5], method=whence.Shapley(background=X[:100]))"
    return f"its coefficients have both signs; explain it as a black box: {explained}"


ALTERNATIVES = {
    "SVC": _shapley_advice("decision_function"), "NuSVC": _shapley_advice("decision_function"),
    "SVR": _shapley_advice("predict"), "NuSVR": _shapley_advice("predict"),
    "GaussianProcessRegressor": _shapley_advice("predict"),
    "GaussianProcessClassifier": _shapley_advice("predict_proba"), "IsolationForest": TREES, "RandomForestClassifier": TREES,
    "RandomForestRegressor": TREES, "DBSCAN": WITHOUT_PREDICT, "HDBSCAN": WITHOUT_PREDICT, "OPTICS": WITHOUT_PREDICT,
    "AgglomerativeClustering": WITHOUT_PREDICT, "SpectralClustering": WITHOUT_PREDICT,
    "LocalOutlierFactor": "it is a ratio of local densities; use KernelDensity or OneClassSVM",
    "BisectingKMeans": "it assigns clusters along a tree; use KMeans",
    "BayesianGaussianMixture": "use GaussianMixture",
    "GridSearchCV": "pass its best_estimator_", "RandomizedSearchCV": "pass its best_estimator_",
}  # fmt: skip


def _standard_scaler(scaler: Any) -> Affine:
    mean = scaler.mean_ if scaler.with_mean else None
    return _centred(mean, scaler.scale_ if scaler.with_std else None, scaler.n_features_in_)


def _robust_scaler(scaler: Any) -> Affine:
    return _centred(scaler.center_, scaler.scale_, scaler.n_features_in_)


def _centred(centre: Array | None, scale: Array | None, features: int) -> Affine:
    """(x − centre) / scale."""
    centre = torch.zeros(features, dtype=torch.float64) if centre is None else _tensor(centre)
    scale = torch.ones_like(centre) if scale is None else _tensor(scale)
    return Affine(centre, 1 / scale, torch.zeros_like(scale), scale)


def _min_max_scaler(scaler: Any) -> Affine:
    if scaler.clip:
        raise ModelError("MinMaxScaler(clip=True) is not linear; fit it with clip=False")
    scale, shift = _tensor(scaler.scale_), _tensor(scaler.min_)
    return Affine(torch.zeros_like(scale), scale, shift, 1 / scale)


def _pca(pca: Any) -> Affine:
    components = _tensor(pca.components_)
    scale = torch.ones(len(components), dtype=torch.float64)
    if pca.whiten:
        scale = _tensor(pca.explained_variance_).sqrt().clamp(min=torch.finfo(torch.float64).eps)
    return Affine(_tensor(pca.mean_), components / scale[:, None], torch.zeros_like(scale), components.mT * scale)


AFFINE: dict[str, Callable[[Any], Affine]] = {
    "StandardScaler": _standard_scaler,
    "RobustScaler": _robust_scaler,
    "MinMaxScaler": _min_max_scaler,
    "PCA": _pca,
}


def _pipeline_steps(estimator: Any) -> list[Any]:
    """Return the steps of a pipeline, nested ones flattened, or the estimator alone."""
    if _registered_name(estimator, ("Pipeline",)) is None:
        return [estimator]
    steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
    if not steps:
        raise ModelError("the pipeline has no estimator as its last step")
    return [part for step in steps for part in _pipeline_steps(step)]


def _convert(estimator: Any) -> _EstimatorLayers:
    if isinstance(estimator, SupportSets):
        return _support_sets(estimator)
    if isinstance(estimator, type):
        raise ModelError(f"{estimator.__name__} is a class; pass a fitted one: {estimator.__name__}().fit(X)")
    name = _registered_name(estimator, CONVERTERS)
    if name is None:
        kind = type(estimator).__name__
        instead = ALTERNATIVES.get(
            _registered_name(estimator, ALTERNATIVES) or "", f"choose {', '.join(CONVERTERS)} or whence.layers.SupportSets"
        )
        raise ModelError(f"{kind} cannot be converted into an equivalent network: {instead}")
    _check_fitted(estimator)
    return CONVERTERS[name](estimator)


def _affine(step: Any) -> Affine:
    name = _registered_name(step, AFFINE)
    if name is None:
        raise ModelError(
            f"{type(step).__name__} is not a known linear transformation; a pipeline may contain {', '.join(AFFINE)}"
        )
    _check_fitted(step)
    return AFFINE[name](step)


def _registered_name(estimator: Any, names: Container[str]) -> str | None:
    """Return the name of the estimator's scikit-learn class or base class that is in `names`, or None."""
    classes = (kind for kind in type(estimator).__mro__ if kind.__module__.split(".")[0] == "sklearn")
    return next((kind.__name__ for kind in classes if kind.__name__ in names), None)


def _check_fitted(estimator: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise ModelError(f"{type(estimator).__name__} is not fitted; call its fit(X) first") from error


def _distance_layers(
    centres: Array, outlierness: tuple[nn.Module, ...], assignment: nn.Module | None = None, **more: Any
) -> _EstimatorLayers:
    table = _tensor(centres)
    return _EstimatorLayers(table.shape[1], lambda inputs: Distance(table, inputs), outlierness, assignment, **more)


def _quadratic_layers(
    centres: Tensor, factors: Tensor, outlierness: tuple[nn.Module, ...], assignment: nn.Module | None = None, **more: Any
) -> _EstimatorLayers:
    return _EstimatorLayers(
        centres.shape[1], lambda inputs: Mahalanobis(centres, factors, inputs), outlierness, assignment, **more
    )


def _background_distance(background: Array, inputs: Affine | None, features: int, sharpness: float) -> nn.Module:
    """The distance to the background samples, measured and pooled as the estimator does."""
    samples = _tensor(background)
    if samples.dim() < 2 or samples.shape[1:].numel() != features:
        raise InputError(f"background of shape {tuple(samples.shape)}; expected [B, {features}], as in training")
    samples = samples.flatten(1)
    distances = Distance(samples if inputs is None else inputs.mapped(samples), inputs)
    return nn.Sequential(distances, _soft_min_layer(torch.ones(len(samples), dtype=torch.float64), sharpness))


def _soft_min_layer(weights: Tensor, gamma: float) -> SoftMin:
    """−(1/γ) log Σ α_j exp(−γ h_j), with α the weights that add up to 1."""
    return SoftMin(gamma, -(weights / weights.sum()).log() / gamma)


def _tensor(values: Array) -> Tensor:
    if hasattr(values, "toarray"):
        raise ModelError("the estimator was fitted on sparse data; fit it on X.toarray()")
    values = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values, dtype=np.float64))
    return values.to(torch.float64)
