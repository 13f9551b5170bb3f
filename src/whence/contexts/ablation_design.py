"""Which sources to ablate together, so that a few evaluations tell most about the effect of each."""

import torch
from torch import Tensor

from whence.contexts.source_posterior import NOISE, SourcePrior

CANDIDATES = 150


def choose_ablations(relevance: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return the sources to leave in each of `count` evaluations, a bool tensor `[count, K]`.

    For at least twice as many evaluations as sources, these are the rows of a Hadamard matrix, their complements, then random
    halves. For fewer, they are those among random halves, complements and Hadamard rows which, one after the other, reduce the
    expected squared error of the effects most (A-optimality) under the prior; no outcome is needed for that, so that all run as
    one batch.
    """
    k, generator = len(relevance), torch.Generator().manual_seed(seed)
    rows = _hadamard_rows(k, generator)
    if count >= 2 * k:
        halves = torch.rand(max(0, count - 2 * len(rows)), k, generator=generator) < 0.5
        return torch.cat([rows, ~rows, halves])[:count]
    halves = torch.rand(CANDIDATES, k, generator=generator) < 0.5
    candidates = torch.cat([rows, ~rows, halves, ~halves])
    candidates = candidates[candidates.any(1) & ~candidates.all(1)] if k > 1 else candidates
    return candidates[_greedy(SourcePrior(relevance.double()), candidates.double() * 2 - 1, count)]


def _greedy(prior: SourcePrior, candidates: Tensor, count: int) -> list[int]:
    """Return the candidates that reduce the variance of the effects most, one after the other."""
    k = candidates.shape[1]
    everything = torch.ones(1, k, dtype=candidates.dtype)
    points = torch.cat([everything, candidates])
    across = prior.covariance_with_effects(points)
    joint = torch.cat(
        [torch.cat([prior.effect_covariance, across.T], 1), torch.cat([across, prior.covariance(points, points)], 1)]
    )
    joint = _conditioned(joint, k)  # the whole context is evaluated anyway
    chosen: list[int] = []
    for _ in range(count):
        gain = joint[k:, :k].square().sum(1) / (joint.diagonal()[k:] + NOISE**2)
        gain[0] = -1.0
        gain[[1 + i for i in chosen]] = -1.0
        chosen.append(int(gain.argmax()) - 1)
        joint = _conditioned(joint, k + 1 + chosen[-1])
    return chosen


def _conditioned(joint: Tensor, i: int) -> Tensor:
    """Return the covariance after variable `i` was observed with noise."""
    return joint - torch.outer(joint[:, i], joint[i]) / (joint[i, i] + NOISE**2)


def _hadamard_rows(k: int, generator: torch.Generator) -> Tensor:
    """Return the rows of a Sylvester–Hadamard matrix in random order, with `k` random columns of random signs."""
    matrix = torch.ones(1, 1)
    while len(matrix) < k:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    size = len(matrix)
    columns = torch.randperm(size, generator=generator)[:k]
    signs = torch.randint(0, 2, (k,), generator=generator) * 2 - 1
    return (matrix[:, columns] * signs)[torch.randperm(size, generator=generator)] > 0
