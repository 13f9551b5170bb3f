"""Where searches begin: at the middle of a prior, and at those of its samples that promise most.

A search climbs to the nearest hill. From the mean of all digits that is the same one for many classes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from whence.core.progress import Progress
from whence.prototypes.gradient_ascent import Search
from whence.prototypes.prototypes import Prototypes

SAMPLES = 500  # of the prior, to choose from
STARTS = 6  # of each search: the middle, and so many less one of the samples
SHORT = 4  # so much shorter is the search from each; the highest goes on


def several(search: Search) -> bool:
    """Whether the prior can say where else to begin."""
    return hasattr(search.prior, "draws") and hasattr(search.image, "written") and not search.diversity


def best_of_several(
    search: Search, steps: int, lr: float, seed: int, randoms: Sequence[torch.Generator], shown: Progress
) -> Prototypes:
    """A short search from each start, and a long one on from the highest that was reached of each concept."""
    concepts = [concept for concept in search.concepts for _ in range(STARTS)]
    copies, generators = replace(search, concepts=concepts), [random for random in randoms for _ in range(STARTS)]
    first = search.start(None, randoms)
    samples = search.image.written(_promising(search, seed).to(first[0]))  # [concepts · (STARTS − 1), …] each
    starts = [
        _interleaved(p.detach(), s.reshape(len(p), STARTS - 1, *p.shape[1:])) for p, s in zip(first, samples, strict=True)
    ]
    scouted, height = copies.scouted(starts, max(1, steps // SHORT), lr, generators)
    best = height.view(-1, STARTS).argmax(1) + STARTS * torch.arange(len(randoms), device=height.device)
    return search.run([p[best].clone().requires_grad_() for p in scouted], steps, lr, randoms, shown)


@torch.no_grad()
def _promising(search: Search, seed: int) -> Tensor:
    """The samples of the prior of the largest objective, `[concepts · (STARTS − 1), …]`."""
    samples = search.prior.draws(SAMPLES, torch.Generator().manual_seed(seed))
    reading = search.reader(samples.to(search.of_model))
    density = search.strength * search.prior.log_prob(samples)
    heights = [concept.value(reading).to(density) + density for concept in search.concepts]
    return torch.cat([samples[height.topk(STARTS - 1).indices] for height in heights])


def _interleaved(first: Tensor, others: Tensor) -> Tensor:
    """Of each concept the first and then the others."""
    return torch.cat([first[:, None], others], 1).flatten(0, 1).clone()
