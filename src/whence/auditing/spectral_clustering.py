"""Spectral clustering of explanations (SpRAy, Lapuschkin et al. 2019)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from whence.errors import MissingPackageError

MAP_SIDE = 28  # maps are pooled to at most this many positions per side
N_NEIGHBORS = 10
N_EIGENVALUES = 32
MAX_CLUSTERS = 8
SUBSAMPLE_SHARE, N_RERUNS = 0.8, 3
MAX_FOR_TSNE = 600


@dataclass(frozen=True)
class SpectralClusters:
    """The clusters of one group of explanations."""

    eigenvalues: Tensor  # [k] of the normalised Laplacian, ascending; one near 0 for each connected component
    labels: Tensor  # [n], the cluster of each sample
    embedding: Tensor  # [n, clusters], by eigenvectors
    stability: float  # mean adjusted Rand index with clusterings of 80 % of the samples

    @property
    def count(self) -> int:
        """The number of clusters."""
        return int(self.labels.max()) + 1

    @property
    def gap(self) -> float:
        """The gap between the last eigenvalue that counts as a cluster and the next."""
        return (
            float(self.eigenvalues[self.count] - self.eigenvalues[self.count - 1])
            if self.count < len(self.eigenvalues)
            else 0.0
        )


def features(maps: Tensor) -> Tensor:
    """Return explanations as vectors of norm 1, `[n, d]`; large maps are average-pooled.

    The norm is removed because it reflects the confidence of the model, not its reasons.
    """
    maps = maps.float()
    if maps.dim() == 3 and max(maps.shape[1:]) > MAP_SIDE:
        maps = F.adaptive_avg_pool2d(maps[:, None], (min(MAP_SIDE, maps.shape[1]), min(MAP_SIDE, maps.shape[2])))[:, 0]
    return F.normalize(maps.flatten(1), dim=1)


def spectral_clusters(vectors: Tensor, clusters: int | None = None, seed: int = 0) -> SpectralClusters:
    """Cluster explanations spectrally, into as many clusters as the eigengap suggests if `clusters` is None.

    Nearest neighbours define a sparse graph W. Its normalised Laplacian I − D^−½ W D^−½ has one small eigenvalue for each
    connected group. These correspond to the largest *algebraic* eigenvalues of D^−½ W D^−½, not to those of the largest
    magnitude, which would include negative ones. The clusters are those of k-means on the eigenvectors.
    """
    eigenvalues, vectors_of = _eigendecomposition(_neighbor_graph(vectors.numpy()))
    count = clusters or _count_by_eigengap(eigenvalues, len(vectors))
    embedding = _normalized_rows(vectors_of[:, :count])
    labels = _kmeans(embedding, count, seed)
    return SpectralClusters(
        torch.from_numpy(eigenvalues), torch.from_numpy(labels).long(), torch.from_numpy(embedding),
        _stability(vectors, labels, count, seed),
    )  # fmt: skip


def embed_2d(embedding: Tensor, seed: int = 0) -> Tensor:
    """Return a t-SNE embedding, `[n, 2]`; for fewer than 10 or too many samples, two coordinates of the embedding instead."""
    if len(embedding) > MAX_FOR_TSNE or len(embedding) < 10:
        return F.pad(embedding, (0, max(0, 2 - embedding.shape[1])))[:, -2:].float()
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(embedding) - 1) / 3)
    return torch.from_numpy(TSNE(perplexity=perplexity, random_state=seed, init="random").fit_transform(embedding.numpy()))


def _neighbor_graph(vectors: np.ndarray) -> Any:
    """Return the symmetric sparse nearest-neighbour graph, without self-loops."""
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError as error:
        raise MissingPackageError("whence.audit needs scikit-learn; run pip install 'whence[audit]'") from error
    count = min(N_NEIGHBORS, len(vectors) - 1)
    graph = NearestNeighbors(n_neighbors=count).fit(vectors).kneighbors_graph()
    return (graph + graph.T) / 2


def _eigendecomposition(graph: Any) -> tuple[np.ndarray, np.ndarray]:
    from scipy.sparse import diags
    from scipy.sparse.linalg import eigsh

    degree = np.asarray(graph.sum(1)).ravel()
    scale = diags(1 / np.sqrt(np.maximum(degree, 1e-12)))
    normalised = scale @ graph @ scale
    n, count = graph.shape[0], min(N_EIGENVALUES, graph.shape[0] - 1)
    if n <= 2 * N_EIGENVALUES:
        values, vectors = np.linalg.eigh(normalised.toarray())
    else:
        start = np.random.default_rng(0).standard_normal(n)
        values, vectors = eigsh(normalised, count, which="LA", v0=start)
    order = np.argsort(-values)[:count]
    return np.clip(1 - values[order], 0, None), vectors[:, order]


def _count_by_eigengap(eigenvalues: np.ndarray, n: int) -> int:
    """Return the number of clusters, two or more, after which the gap between eigenvalues is widest."""
    most = min(MAX_CLUSTERS, len(eigenvalues) - 1, n // 2)
    if most < 2:
        return 1
    gaps = np.diff(eigenvalues)[1:most]
    return int(np.argmax(gaps)) + 2


def _normalized_rows(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _kmeans(embedding: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    if count < 2:
        return np.zeros(len(embedding), dtype=np.int64)
    found = KMeans(count, n_init=10, random_state=seed).fit_predict(embedding)  # type: ignore[arg-type]
    return np.unique(found, return_inverse=True)[1]


def _stability(vectors: Tensor, labels: np.ndarray, count: int, seed: int) -> float:
    from sklearn.metrics import adjusted_rand_score

    n = len(vectors)
    if count < 2 or n < 10 * count:
        return float("nan")
    scores = []
    for rerun in range(N_RERUNS):
        part = torch.randperm(n, generator=torch.Generator().manual_seed(seed + rerun))[: int(SUBSAMPLE_SHARE * n)].numpy()
        _, vectors_of = _eigendecomposition(_neighbor_graph(vectors[part].numpy()))
        again = _kmeans(_normalized_rows(vectors_of[:, :count]), count, seed + rerun + 1)
        scores.append(adjusted_rand_score(labels[part], again))
    return float(np.mean(scores))
