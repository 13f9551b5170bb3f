"""Soft pooling and the contrast between clusters, with rules that distribute relevance among the pooled values."""

from math import inf, isfinite
from numbers import Real

import torch
from torch import Tensor, nn

from whence.errors import InputError, RuleError, value_repr
from whence.lrp.ops.custom_ops import custom_op
from whence.lrp.rules.rules import safe_divide
from whence.neuralization.affine_preprocessing import register


class SoftMin(nn.Module):
    """Soft minimum −(1/γ) log Σ_j exp(−γ (h_j + b_j)), `[N, J]` to `[N, 1]`; the minimum for γ = ∞, the default.

    >>> whence.layers.SoftMin(sharpness=2.0)(torch.tensor([[1.0, 4.0]]))
    tensor([[0.9988]])

    Relevance is distributed as R_j = p_j R with p the soft arg min (Kauffmann et al. 2020, eq. 7), among the h_j that are
    not 0: a point equal to x has no direction to explain. `sharpness` γ is in units of 1/h. `biases` `[J]` belong to the
    pool: with −log(α_j)/γ, inputs weigh α_j.
    """

    def __init__(self, sharpness: float = inf, biases: Tensor | None = None):
        super().__init__()
        self.sharpness = _check_sharpness(sharpness)
        register(self, "biases", biases)

    def forward(self, h: Tensor) -> Tensor:
        return soft_min(h, self.biases, self.sharpness)

    def extra_repr(self) -> str:
        return f"sharpness={self.sharpness:.6g}"


class SoftMax(nn.Module):
    """Soft maximum (1/γ) log Σ_j exp(γ h_j), `[N, J]` to `[N, 1]`; the maximum for γ = ∞, the default.

    >>> whence.layers.SoftMax(sharpness=2.0)(torch.tensor([[1.0, 4.0]]))
    tensor([[4.0012]])

    Relevance is distributed as R_j = p_j R with p the soft arg max.
    """

    def __init__(self, sharpness: float = inf):
        super().__init__()
        self.sharpness = _check_sharpness(sharpness)

    def forward(self, h: Tensor) -> Tensor:
        return soft_max(h, self.sharpness)

    def extra_repr(self) -> str:
        return f"sharpness={self.sharpness:.6g}"


class Contrast(nn.Module):
    """Cluster logits `[N, K]` from distances `[N, M]`: how much nearer each cluster is than its competitors.

    >>> net = torch.nn.Sequential(whence.layers.Distance(centres), whence.layers.Contrast()).eval()
    >>> whence.explain(net, x)                      # why this cluster?

    f_c = softmin over k ≠ c of (o_k − o_c), with o_k the softmin of the distances (plus `biases` `[M]`) to the members of
    cluster k (Kauffmann et al. 2024, From clustering to cluster explanations, eq. 5 and 8). `groups` `[M]` numbers the
    cluster of each distance from 0; without it each is a cluster of its own. `sharpness` γ = ∞ compares with the nearest rival.

    Relevance goes to the pairs (c, k) by their soft arg min, and from a `Distance` to the features by
    (x_i − μ_ki)² − (x_i − μ_ci)² = (x − m)_i w_i: the midpoint rule, with w = 2(μ_c − μ_k) and m = (μ_c + μ_k)/2. The whole is
    scaled down to f_c where all pairs together have more than a positive f_c. Otherwise what the softness adds or takes, at
    most log(M)/γ, is absorbed.
    """

    groups: Tensor | None
    biases: Tensor | None

    def __init__(self, sharpness: float = inf, groups: Tensor | None = None, biases: Tensor | None = None):
        super().__init__()
        self.sharpness = _check_sharpness(sharpness)
        self.clusters = None if groups is None else _cluster_count(groups)
        self.register_buffer("groups", groups)
        register(self, "biases", biases)

    def forward(self, distances: Tensor) -> Tensor:
        groups, count = self.groups, self.clusters
        if groups is None or count is None:
            count = distances.shape[-1]
            groups = torch.arange(count, device=distances.device)
        if count < 2:
            raise InputError("a single cluster has no competing cluster")
        if len(groups) != distances.shape[-1]:
            raise InputError(f"groups has {len(groups)} entries, but the input has {distances.shape[-1]} distances")
        return contrast(distances, groups, count, self.biases, self.sharpness)

    def extra_repr(self) -> str:
        return f"sharpness={self.sharpness:.6g}"


def _distribute_to_nearest(relevance: Tensor, h: Tensor, pooled: Tensor, biases: Tensor | None, sharpness: float) -> Tensor:
    """R_j = p_j R. An h_j of 0 has no features to share with: the others take its part, as if it were not there."""
    return _soft_arg_min(_biased(h, biases).masked_fill(h == 0, inf), sharpness).nan_to_num(nan=0.0) * relevance


@custom_op(_distribute_to_nearest)
def soft_min(h: Tensor, biases: Tensor | None, sharpness: float) -> Tensor:
    return _pooled(_biased(h, biases), sharpness)


@custom_op(lambda relevance, h, pooled, sharpness: _soft_arg_min(-h, sharpness) * relevance)
def soft_max(h: Tensor, sharpness: float) -> Tensor:
    return -_pooled(-h, sharpness)


def _distribute_to_pairs(
    relevance: Tensor, distances: Tensor, logits: Tensor, groups: Tensor, count: int, biases: Tensor | None, sharpness: float
) -> Tensor:
    """Σ_c t_c ∂f_c/∂h_j · D_j with t_c = R_c / f_c, or less where all pairs of c together, biases included, exceed f_c > 0."""
    h = _biased(distances, biases)
    clusters, shares = _clusters(h, groups, count, sharpness)
    means = _summed(shares * h, groups, count)  # Σ_j p_j h_j of each cluster's members
    winner, without = _without_winner(clusters)
    all_rivals, winners_rivals = _soft_arg_min(clusters, sharpness), _soft_arg_min(without, sharpness)
    weights = all_rivals.scatter(1, winner, 0)  # p_c of the losers; their rivals weigh p_k / (1 − p_c), the winner's q_k
    rivals = ((all_rivals * means).sum(1, keepdim=True) - weights * means) / (1 - weights)
    rivals = rivals.scatter(1, winner, (winners_rivals * means).sum(1, keepdim=True))
    strength = safe_divide(relevance, torch.where(logits > 0, torch.maximum(logits, rivals - means), logits))
    of_losers = (strength / (1 - weights)).scatter(1, winner, 0)
    returned = all_rivals * (of_losers.sum(1, keepdim=True) - of_losers) - strength
    returned = returned + winners_rivals * strength.gather(1, winner)
    return returned[:, groups] * shares * distances


@custom_op(_distribute_to_pairs)
def contrast(distances: Tensor, groups: Tensor, count: int, biases: Tensor | None, sharpness: float) -> Tensor:
    clusters, _ = _clusters(_biased(distances, biases), groups, count, sharpness)
    winner, without = _without_winner(clusters)
    rivals = _pooled(clusters, sharpness)
    if isfinite(sharpness):  # the pool of all but c, from that of all: p_c ≤ 1/2 unless c wins
        rivals = rivals - torch.log1p(-_soft_arg_min(clusters, sharpness).scatter(1, winner, 0)) / sharpness
    return rivals.expand_as(clusters).scatter(1, winner, _pooled(without, sharpness)) - clusters


def _clusters(h: Tensor, groups: Tensor, count: int, sharpness: float) -> tuple[Tensor, Tensor]:
    """The pool over the members of each cluster, `[N, K]`, and their weights in it, `[N, M]`."""
    nearest = h.new_full((len(h), count), inf).scatter_reduce(1, groups.expand_as(h), h, "amin")
    if not isfinite(sharpness):
        winners = (h == nearest[:, groups]).to(h)
        return nearest, winners / _summed(winners, groups, count)[:, groups]
    nearest = nearest.detach()
    weights = torch.exp(-sharpness * (h - nearest[:, groups]))
    sums = _summed(weights, groups, count)
    return nearest - sums.log() / sharpness, weights / sums[:, groups]


def _summed(values: Tensor, groups: Tensor, count: int) -> Tensor:
    return values.new_zeros(len(values), count).index_add(1, groups, values)


def _cluster_count(groups: Tensor) -> int:
    """How many clusters there are, numbered from 0 without a gap."""
    if not isinstance(groups, Tensor) or groups.dim() != 1 or not len(groups) or groups.is_floating_point():
        raise InputError("groups must be an integer tensor [M], the cluster of each distance")
    count = int(groups.max()) + 1
    if groups.unique().tolist() != list(range(count)):
        raise InputError("groups must number the clusters 0, 1, … without a gap")
    return count


def _without_winner(clusters: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest cluster's number `[N, 1]`, and the others' distances, its own infinite."""
    winner = clusters.detach().argmin(1, keepdim=True)
    return winner, clusters.scatter(1, winner, inf)


def _pooled(h: Tensor, sharpness: float) -> Tensor:
    """softmin over the last dimension, kept."""
    return -torch.logsumexp(-sharpness * h, -1, keepdim=True) / sharpness if isfinite(sharpness) else h.amin(-1, keepdim=True)


def _soft_arg_min(h: Tensor, sharpness: float) -> Tensor:
    """The soft arg min p; ties share alike."""
    if isfinite(sharpness):
        return torch.softmax(-sharpness * h, -1)
    winners = (h == h.amin(-1, keepdim=True)).to(h)
    return winners / winners.sum(-1, keepdim=True)


def _biased(h: Tensor, biases: Tensor | None) -> Tensor:
    return h if biases is None else h + biases


def _check_sharpness(sharpness: float) -> float:
    if not isinstance(sharpness, Real) or not sharpness > 0:
        raise RuleError(f"sharpness must be a positive number, or math.inf for hard pooling, got {value_repr(sharpness)}")
    return float(sharpness)
