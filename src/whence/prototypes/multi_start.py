"""Where searches begin: at the middle of a prior, and at those of its samples that promise most.

A search climbs to the nearest hill. From the mean of all digits that is the same one for many classes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from whence.core.progress import Progress
from whence.prototypes.gradient_ascent import PrototypeSearch
from whence.prototypes.prototypes import Prototypes

N_PRIOR_SAMPLES = 500  # of the prior, to choose from
N_STARTS = 6  # of each search: the middle, and so many less one of the samples
SHORT_RUN_DIVISOR = 4  # so much shorter is the search from each; the highest goes on


def supports_multi_start(search: PrototypeSearch) -> bool:
    """Whether the prior can say where else to begin."""
    return hasattr(search.prior, "draws") and hasattr(search.image, "written") and not search.diversity


def best_of_starts(
    search: PrototypeSearch, steps: int, lr: float, seed: int, randoms: Sequence[torch.Generator], shown: Progress
) -> Prototypes:
    """A short search from each start, and a long one on from the highest that was reached of each concept."""
    concepts = [concept for concept in search.concepts for _ in range(N_STARTS)]
    copies, generators = replace(search, concepts=concepts), [random for random in randoms for _ in range(N_STARTS)]
    first = search.start(None, randoms)
    samples = search.image.written(_best_prior_samples(search, seed).to(first[0]))  # [concepts · (STARTS − 1), …] each
    starts = [
        _interleave(p.detach(), s.reshape(len(p), N_STARTS - 1, *p.shape[1:])) for p, s in zip(first, samples, strict=True)
    ]
    scouted, height = copies.scouted(starts, max(1, steps // SHORT_RUN_DIVISOR), lr, generators)
    best = height.view(-1, N_STARTS).argmax(1) + N_STARTS * torch.arange(len(randoms), device=height.device)
    return search.run([p[best].clone().requires_grad_() for p in scouted], steps, lr, randoms, shown)


@torch.no_grad()
def _best_prior_samples(search: PrototypeSearch, seed: int) -> Tensor:
    """The samples of the prior of the largest objective, `[concepts · (STARTS − 1), …]`."""
    samples = search.prior.draws(N_PRIOR_SAMPLES, torch.Generator().manual_seed(seed))
    reading = search.reader(samples.to(search.of_model))
    density = search.strength * search.prior.log_prob(samples)
    heights = [concept.value(reading).to(density) + density for concept in search.concepts]
    return torch.cat([samples[height.topk(N_STARTS - 1).indices] for height in heights])


def _interleave(first: Tensor, others: Tensor) -> Tensor:
    """Of each concept the first and then the others."""
    return torch.cat([first[:, None], others], 1).flatten(0, 1).clone()
