"""neuralize(): a fitted estimator as the network that it is, so that it can be explained like any other.

One-class SVM and density estimates: Kauffmann, Müller, Montavon 2020 (arXiv 1805.06230); clusters: Kauffmann et al. 2024
(arXiv 1906.07633).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import log, pi
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.errors import InputError, ModelError, RuleError
from whence.neuralize.affine import Affine
from whence.neuralize.distances import Distance, Mahalanobis
from whence.neuralize.pools import Contrast, SoftMin

View = Literal["outlierness", "inlierness", "assignment"]
Array = Any  # what torch.as_tensor takes


@dataclass(frozen=True, eq=False)
class SupportSets:
    """Clusters given by their members, as kernel k-means or a clustering without `predict` has them.

    >>> labels = sklearn.cluster.DBSCAN().fit_predict(X)
    >>> whence.neuralize(whence.SupportSets(X, labels, gamma=1.0))

    A point belongs to the cluster with the largest Σ_j exp(−γ ‖x − u_j‖²) over its members; γ = ∞ is the nearest member's.
    `points` is `[M, d]`, `labels` `[M]` whole numbers, of which negative ones are noise and left out.
    """

    points: Array
    labels: Array
    gamma: float


class Neuralized(nn.Module):
    """What `neuralize` makes: a network with the estimator's meaning, in eval mode.

    >>> net = whence.neuralize(svm)
    >>> (net(x) > net.threshold)[:, 0]                   # svm.predict(x) == -1

    Takes `[N, d]`, or samples of any shape with d values in all, such as images. `threshold` of an outlierness is None
    where the estimator has none; `classes` are the labels that the columns of an assignment stand for.
    """

    threshold: Tensor | None

    def __init__(
        self, layers: nn.Module, features: int, name: str, threshold: float | None = None, classes: Sequence[Any] | None = None
    ):
        super().__init__()
        self.layers, self.features, self.name, self.classes = layers, features, name, classes
        self.register_buffer("threshold", None if threshold is None else _tensor(threshold))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if x.layout != torch.strided:
            raise InputError("the input is sparse; pass a dense tensor: x.to_dense()")
        if x.dim() < 2 or x[0].numel() != self.features:
            raise InputError(f"{self.name} was fitted on {self.features} features, but the input has shape {tuple(x.shape)}")
        return self.layers(x.flatten(1).to(next(self.buffers()).dtype))

    def extra_repr(self) -> str:
        return f"{self.name}, {self.features} features"


def neuralize(
    estimator: Any, view: View | None = None, *, threshold: float | None = None, background: Array | None = None
) -> Neuralized:
    """A fitted scikit-learn estimator as a network with the rules of its layers built in, to be explained like any other.

    >>> svm = sklearn.svm.OneClassSVM(gamma=0.1).fit(X)
    >>> net = whence.neuralize(svm)
    >>> e = whence.explain(net, torch.as_tensor(x))      # why an outlier: relevance of every feature, adding up to net(x)

    Takes `OneClassSVM` (rbf), `KernelDensity` (gaussian), `KMeans`, `MiniBatchKMeans`, `NearestCentroid`, `GaussianMixture`,
    `EllipticEnvelope`, `SupportSets`, and a `Pipeline` of scalers and `PCA` before one of them, whose relevance lands on
    the raw features. Computes in float64.

    `view` "outlierness" is how far from the data, `[N, 1]`: −(1/γ) log Σ α_j exp(−γ‖x − u_j‖²) for SVM and kernel density
    (Σα = 1, γ = 1/2h²), −log p(x) for a mixture, the squared (Mahalanobis) distance otherwise. "inlierness" is the margin
    threshold − outlierness, positive for inliers; with `background` samples `[B, d]` it is how much nearer the data are than
    the nearest of those. "assignment" gives `[N, K]` logits whose arg max is `predict`. The default is what the
    estimator predicts. `threshold` is for estimators that have none, in units of the outlierness.

    Raises `ModelError` for estimators that are not fitted or no such network, `RuleError` for a view that cannot be had.
    """
    *steps, last = _steps(estimator)
    name = type(last).__name__
    reading = _reading(last)
    inputs = reduce(Affine.then, map(_affine, steps)) if steps else None
    view = view or ("outlierness" if reading.assignment is None else "assignment")
    distances = reading.distances(inputs)
    features = reading.features if inputs is None else inputs.features
    if view == "assignment":
        if reading.assignment is None:
            raise RuleError(f"{name} assigns no clusters; its views are 'outlierness' and 'inlierness'")
        return Neuralized(nn.Sequential(distances, reading.assignment), features, name, classes=reading.classes)
    if view not in ("outlierness", "inlierness"):
        raise RuleError(f"view={view!r}; choose 'outlierness', 'inlierness' or 'assignment'")
    outlierness = nn.Sequential(distances, *reading.outlierness)
    threshold = reading.threshold if threshold is None else float(threshold)
    if view == "outlierness":
        return Neuralized(outlierness, features, name, threshold)
    if background is not None:
        return Neuralized(_Nearer(_nearest(background, inputs, reading.features), outlierness), features, name)
    if threshold is None:
        raise RuleError(
            f"{name} has no threshold to measure inlierness from; pass threshold=, such as a quantile of its outlierness, or "
            "background= samples to compare with"
        )
    return Neuralized(nn.Sequential(outlierness, _Line(-1.0, threshold)), features, name)


@dataclass(frozen=True)
class _Reading:
    """An estimator's parts as layers."""

    features: int
    distances: Callable[[Affine | None], nn.Module]
    outlierness: tuple[nn.Module, ...] = ()
    assignment: nn.Module | None = None
    threshold: float | None = None
    classes: Sequence[Any] | None = field(default=None)


class _Line(nn.Module):
    """slope · o + offset."""

    def __init__(self, slope: float, offset: float):
        super().__init__()
        self.slope, self.offset = slope, offset

    def forward(self, o: Tensor) -> Tensor:
        return o * self.slope + self.offset


class _Nearer(nn.Module):
    """How much nearer one thing is than another."""

    def __init__(self, other: nn.Module, own: nn.Module):
        super().__init__()
        self.other, self.own = other, own

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x) - self.own(x)


def _one_class_svm(svm: Any) -> _Reading:
    if svm.kernel != "rbf":
        raise ModelError(f"OneClassSVM(kernel={svm.kernel!r}) measures no distances; fit it with kernel='rbf'")
    gamma, alphas = float(svm._gamma), _tensor(svm.dual_coef_).flatten()
    offset = float(svm.offset_.item()) / float(alphas.sum())
    if offset <= 0:
        raise ModelError(
            f"OneClassSVM has the threshold {svm.offset_}, which no similarity falls below: fit it with a larger nu"
        )
    pool = SoftMin(gamma, -(alphas / alphas.sum()).log() / gamma)
    return _distances(svm.support_vectors_, (pool,), threshold=-log(offset) / gamma)


def _kernel_density(density: Any) -> _Reading:
    if density.kernel != "gaussian" or density.metric != "euclidean":
        raise ModelError(
            f"KernelDensity(kernel={density.kernel!r}, metric={density.metric!r}) is no sum of Gaussians; fit it with "
            "kernel='gaussian', metric='euclidean'"
        )
    points, weights = _tensor(density.tree_.data), density.tree_.sample_weight
    weights = torch.ones(len(points), dtype=torch.float64) if weights is None else _tensor(weights)
    gamma = 1 / (2 * float(density.bandwidth_) ** 2)
    return _distances(points, (SoftMin(gamma, -(weights / weights.sum()).log() / gamma),))


def _k_means(estimator: Any) -> _Reading:
    return _distances(estimator.cluster_centers_, (SoftMin(),), Contrast(), classes=range(len(estimator.cluster_centers_)))


def _nearest_centroid(estimator: Any) -> _Reading:
    if estimator.metric != "euclidean":
        raise ModelError(f"NearestCentroid(metric={estimator.metric!r}) is not supported; fit it with metric='euclidean'")
    centroids, classes = _tensor(estimator.centroids_), estimator.classes_.tolist()
    priors = _tensor(getattr(estimator, "class_prior_", torch.full((len(classes),), 1 / len(classes))))
    if torch.isclose(priors, torch.full_like(priors, 1 / len(classes))).all():
        return _distances(centroids, (SoftMin(),), Contrast(), classes=classes)
    spread = _tensor(estimator.within_class_std_dev_)
    factors = 1 / spread.where(spread != 0, 1)
    biases = -2 * priors.log()
    return _forms(centroids, factors, (SoftMin(biases=biases),), Contrast(biases=biases), classes=classes)


def _gaussian_mixture(mixture: Any) -> _Reading:
    """o_k = ½ (x−μ)ᵀP(x−μ) − log π − ½ log|P| + d/2 log 2π, −log p(x) = softmin o_k: what o_k has at the centres is split
    off, so that the pool is of squares with weights that add up to 1, and not negative."""
    means, factors = _tensor(mixture.means_), _tensor(mixture.precisions_cholesky_)
    count, features = means.shape
    if mixture.covariance_type == "spherical":
        factors = factors[:, None].expand(count, features)
    diagonals = factors.diagonal(dim1=-2, dim2=-1) if mixture.covariance_type in ("full", "tied") else factors
    at_centres = features / 2 * log(2 * pi) - _tensor(mixture.weights_).log() - diagonals.log().sum(-1)
    least = -torch.logsumexp(-at_centres, 0)
    biases = at_centres - least
    pools = SoftMin(1.0, biases), _Line(1.0, least.item())
    return _forms(means, factors / 2**0.5, pools, Contrast(1.0, biases=biases), classes=range(count))


def _elliptic_envelope(envelope: Any) -> _Reading:
    values, vectors = torch.linalg.eigh(_tensor(envelope.precision_))
    factors = vectors * values.clamp(min=0).sqrt()
    return _forms(_tensor(envelope.location_)[None], factors, (), threshold=-float(envelope.offset_))


def _support_sets(sets: SupportSets) -> _Reading:
    points, labels = _tensor(sets.points), torch.as_tensor(sets.labels)
    if points.dim() != 2 or labels.shape != points.shape[:1] or labels.is_floating_point():
        raise InputError(
            f"SupportSets needs points [M, d] and whole-number labels [M], not {tuple(points.shape)} and {tuple(labels.shape)}"
        )
    kept = labels >= 0
    if not kept.any():
        raise InputError("SupportSets: every label is negative, that is noise; there is no cluster")
    classes, groups = labels[kept].unique(return_inverse=True)
    return _distances(points[kept], (SoftMin(sets.gamma),), Contrast(sets.gamma, groups), classes=classes.tolist())


READINGS: dict[str, Callable[[Any], _Reading]] = {
    "OneClassSVM": _one_class_svm,
    "KernelDensity": _kernel_density,
    "KMeans": _k_means,
    "MiniBatchKMeans": _k_means,
    "NearestCentroid": _nearest_centroid,
    "GaussianMixture": _gaussian_mixture,
    "EllipticEnvelope": _elliptic_envelope,
}  # fmt: skip

WITHOUT_PREDICT = "it has labels but no rule for new points; give its clusters as whence.SupportSets(X, labels, gamma)"
SIGNED = "its coefficients have both signs; explain its decision_function as a callable, by whence.Occlusion or whence.Shapley"
TREES = "trees have no distances; use shap.TreeExplainer"
INSTEAD = {
    "SVC": SIGNED, "NuSVC": SIGNED, "SVR": SIGNED, "NuSVR": SIGNED, "GaussianProcessRegressor": SIGNED,
    "GaussianProcessClassifier": SIGNED, "IsolationForest": TREES, "RandomForestClassifier": TREES,
    "RandomForestRegressor": TREES, "DBSCAN": WITHOUT_PREDICT, "HDBSCAN": WITHOUT_PREDICT, "OPTICS": WITHOUT_PREDICT,
    "AgglomerativeClustering": WITHOUT_PREDICT, "SpectralClustering": WITHOUT_PREDICT,
    "LocalOutlierFactor": "it is a ratio of local densities; use KernelDensity or OneClassSVM",
    "BisectingKMeans": "it assigns along its tree; use KMeans",
    "BayesianGaussianMixture": "use GaussianMixture",
}  # fmt: skip


def _diagonal(scale: Tensor, shift: Tensor) -> Affine:
    return Affine(scale, shift, 1 / scale)


def _standard_scaler(scaler: Any) -> Affine:
    mean = scaler.mean_ if scaler.with_mean else None
    return _centred(mean, scaler.scale_ if scaler.with_std else None, scaler.n_features_in_)


def _robust_scaler(scaler: Any) -> Affine:
    return _centred(scaler.center_, scaler.scale_, scaler.n_features_in_)


def _centred(centre: Array | None, scale: Array | None, features: int) -> Affine:
    """(x − centre) / scale."""
    centre = torch.zeros(features, dtype=torch.float64) if centre is None else _tensor(centre)
    scale = torch.ones_like(centre) if scale is None else _tensor(scale)
    return _diagonal(1 / scale, -centre / scale)


def _min_max_scaler(scaler: Any) -> Affine:
    if scaler.clip:
        raise ModelError("MinMaxScaler(clip=True) is not linear; fit it with clip=False")
    return _diagonal(_tensor(scaler.scale_), _tensor(scaler.min_))


def _pca(pca: Any) -> Affine:
    components = _tensor(pca.components_)
    scale = torch.ones(len(components), dtype=torch.float64)
    if pca.whiten:
        scale = _tensor(pca.explained_variance_).sqrt().clamp(min=torch.finfo(torch.float64).eps)
    weight = components / scale[:, None]
    return Affine(weight, -weight @ _tensor(pca.mean_), components.mT * scale)


AFFINE: dict[str, Callable[[Any], Affine]] = {
    "StandardScaler": _standard_scaler,
    "RobustScaler": _robust_scaler,
    "MinMaxScaler": _min_max_scaler,
    "PCA": _pca,
}


def _steps(estimator: Any) -> list[Any]:
    """The estimator, and what a pipeline has before it."""
    if _known_as(estimator, {"Pipeline": None}) is None:
        return [estimator]
    steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
    return [part for step in steps for part in _steps(step)]


def _reading(estimator: Any) -> _Reading:
    if isinstance(estimator, SupportSets):
        return _support_sets(estimator)
    name = _known_as(estimator, READINGS)
    if name is None:
        kind = type(estimator).__name__
        instead = INSTEAD.get(_known_as(estimator, INSTEAD) or "", f"choose {', '.join(READINGS)} or whence.SupportSets")
        raise ModelError(f"{kind} has no exact network: {instead}")
    _check_fitted(estimator)
    return READINGS[name](estimator)


def _affine(step: Any) -> Affine:
    name = _known_as(step, AFFINE)
    if name is None:
        raise ModelError(f"{type(step).__name__} is not linear, or not known; a pipeline may have {', '.join(AFFINE)}")
    _check_fitted(step)
    return AFFINE[name](step)


def _known_as(estimator: Any, names: Any) -> str | None:
    """By which of the names scikit-learn has the estimator's class, or one that it derives from."""
    classes = (kind for kind in type(estimator).__mro__ if kind.__module__.split(".")[0] == "sklearn")
    return next((kind.__name__ for kind in classes if kind.__name__ in names), None)


def _check_fitted(estimator: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise ModelError(f"{type(estimator).__name__} is not fitted; call its fit(X) first") from error


def _distances(
    centres: Array, outlierness: tuple[nn.Module, ...], assignment: nn.Module | None = None, **more: Any
) -> _Reading:
    table = _tensor(centres)
    return _Reading(table.shape[1], lambda inputs: Distance(table, inputs), outlierness, assignment, **more)


def _forms(
    centres: Tensor, factors: Tensor, outlierness: tuple[nn.Module, ...], assignment: nn.Module | None = None, **more: Any
) -> _Reading:
    return _Reading(centres.shape[1], lambda inputs: Mahalanobis(centres, factors, inputs), outlierness, assignment, **more)


def _nearest(background: Array, inputs: Affine | None, features: int) -> nn.Module:
    """The squared distance to the nearest background sample, where the estimator measures."""
    samples = _tensor(background).flatten(1)
    return nn.Sequential(Distance(samples if inputs is None else inputs.mapped(samples), inputs), SoftMin())


def _tensor(values: Array) -> Tensor:
    if hasattr(values, "toarray"):
        raise ModelError("the estimator was fitted on sparse data; fit it on X.toarray()")
    values = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values, dtype=np.float64))
    return values.to(torch.float64)
