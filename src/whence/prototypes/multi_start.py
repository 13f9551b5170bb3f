"""Multi-start search: from the mean of a prior, and from the best of its samples.

A search reaches the nearest local maximum. From the mean of all digits that is the same one for many classes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from whence.core.progress import Progress
from whence.prototypes.gradient_ascent import PrototypeSearch
from whence.prototypes.prototypes import Prototypes

N_PRIOR_SAMPLES = 500  # from which the starts are chosen
N_STARTS = 6  # of each search: the mean, and N_STARTS - 1 samples
SHORT_RUN_DIVISOR = 4  # of the steps, for the short search from each start; only the best continues


def supports_multi_start(search: PrototypeSearch) -> bool:
    """Return whether the prior can be sampled for further starts."""
    return hasattr(search.prior, "draws") and hasattr(search.image, "written") and not search.diversity


def best_of_starts(
    search: PrototypeSearch, steps: int, lr: float, seed: int, randoms: Sequence[torch.Generator], shown: Progress
) -> Prototypes:
    """Search briefly from each start, then continue from the best result for each concept."""
    concepts = [concept for concept in search.concepts for _ in range(N_STARTS)]
    copies, generators = replace(search, concepts=concepts), [random for random in randoms for _ in range(N_STARTS)]
    first = search.start(None, randoms)
    samples = search.image.written(_best_prior_samples(search, seed).to(first[0]))  # [concepts · (N_STARTS − 1), …] each
    starts = [
        _interleave(p.detach(), s.reshape(len(p), N_STARTS - 1, *p.shape[1:])) for p, s in zip(first, samples, strict=True)
    ]
    scouted, height = copies.scouted(starts, max(1, steps // SHORT_RUN_DIVISOR), lr, generators)
    best = height.view(-1, N_STARTS).argmax(1) + N_STARTS * torch.arange(len(randoms), device=height.device)
    return search.run([p[best].clone().requires_grad_() for p in scouted], steps, lr, randoms, shown)


@torch.no_grad()
def _best_prior_samples(search: PrototypeSearch, seed: int) -> Tensor:
    """Return the samples of the prior with the largest objective, `[concepts · (N_STARTS − 1), …]`."""
    samples = search.prior.draws(N_PRIOR_SAMPLES, torch.Generator().manual_seed(seed))
    reading = search.reader(samples.to(search.of_model))
    density = search.strength * search.prior.log_prob(samples)
    heights = [concept.value(reading).to(density) + density for concept in search.concepts]
    return torch.cat([samples[height.topk(N_STARTS - 1).indices] for height in heights])


def _interleave(first: Tensor, others: Tensor) -> Tensor:
    """Concatenate, for each concept, the first start and then the others."""
    return torch.cat([first[:, None], others], 1).flatten(0, 1).clone()
