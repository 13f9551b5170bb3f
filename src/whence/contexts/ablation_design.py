"""Which sources to ablate together, so that a few evaluations tell most about the effect of each."""

import torch
from torch import Tensor

from whence.contexts.source_posterior import NOISE, SourcePrior

CANDIDATES = 150


def choose_ablations(relevance: Tensor, count: int, evaluated: Tensor, seed: int = 0) -> Tensor:
    """Return the sources to leave in each of at most `count` further evaluations, a bool tensor `[count, K]`.

    For at least twice as many evaluations as sources, these are the rows of a Hadamard matrix, their complements, then random
    halves. For fewer, they are those among random halves, complements and Hadamard rows which, one after the other, reduce the
    expected squared error of the effects most (A-optimality) under the prior; no outcome is needed for that, so that all run as
    one batch. Subsets that are evaluated anyway, `evaluated` `[n, K]`, are not chosen.
    """
    k, generator = len(relevance), torch.Generator().manual_seed(seed)
    rows = _hadamard_rows(k, generator)
    halves = torch.rand(max(CANDIDATES, 2 * count), k, generator=generator) < 0.5
    if count >= 2 * k:
        return _new(torch.cat([rows, ~rows, halves]), evaluated)[:count]
    candidates = _new(torch.cat([rows, ~rows, halves, ~halves]), evaluated)
    return candidates[_greedy(SourcePrior(relevance.double()), candidates, evaluated, count)]


def _new(candidates: Tensor, evaluated: Tensor) -> Tensor:
    """Return the candidates, each once, that are not evaluated yet."""
    seen = {tuple(row) for row in evaluated.tolist()}
    chosen = [i for i, row in enumerate(map(tuple, candidates.tolist())) if not (row in seen or seen.add(row))]
    return candidates[chosen]


def _greedy(prior: SourcePrior, candidates: Tensor, evaluated: Tensor, count: int) -> list[int]:
    """Return the candidates that reduce the variance of the effects most, one after the other."""
    k, before = candidates.shape[1], len(evaluated)
    points = torch.cat([evaluated, candidates]).double() * 2 - 1
    across = prior.covariance_with_effects(points)
    joint = torch.cat(
        [torch.cat([prior.effect_covariance, across.T], 1), torch.cat([across, prior.covariance(points, points)], 1)]
    )
    for i in range(before):
        joint = _conditioned(joint, k + i)
    left, chosen = list(range(len(candidates))), []
    for _ in range(min(count, len(left))):
        rows = torch.tensor(left) + k + before
        gain = joint[rows, :k].square().sum(1) / (joint.diagonal()[rows] + NOISE**2)
        chosen.append(left.pop(int(gain.argmax())))
        joint = _conditioned(joint, k + before + chosen[-1])
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
