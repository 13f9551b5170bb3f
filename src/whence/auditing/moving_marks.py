"""Marks at changing places of pictures: crops that raise the class wherever they are pasted, and recur in it alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.auditing.marks import MovingMark
from whence.auditing.transplants import Probability

N_CROPS, N_BEST, N_ONTO = 16, 4, 12
N_BEST_OF_PHOTOS, N_ONTO_OF_PARTS = 2, 4  # of photos, whose networks are slow
MIN_CHANGE, SHRINK, KEPT = 0.1, 0.7, 0.5  # of a crop; of a crop within it, which keeps half of the change
HIT, NOISE = 0.8, 0.05  # correlation; share of the crop's norm added to the denominator
SMALL = 64  # the side from which on pictures are photos, whose crops are shrunk several times
SCALES = {128: 1.0, 256: 0.5}  # at which pictures of at most this side are searched; larger ones at a quarter of their size
N_SHRUNK = 4


@dataclass(frozen=True)
class Recurrence:
    """A crop with the pictures in which it recurs.

    Args:
        mark: The crop.
        change: Mean change of the probability where it is pasted at random places.
        rows: Positions of the pictures of the class that contain it, among those searched.
        share: Share of the pictures of the class that contain it.
        elsewhere: Share of the pictures of other classes that contain it.
    """

    mark: MovingMark
    change: float
    rows: Tensor
    share: float
    elsewhere: float


def moving_marks(own: Tensor, positive: Tensor, others: Tensor, probability: Probability, seed: int = 0) -> list[Recurrence]:
    """Return the crops of a class that raise its probability at random places of other pictures, the largest change first.

    Args:
        own: Pictures of the class, `[n, C, H, W]`.
        positive: Their positive relevance, `[n, h, w]`.
        others: Pictures of other classes, `[m, C, H, W]`.
        probability: The probability of the class.
        seed: Random seed of the pictures and places.
    """
    random = torch.Generator().manual_seed(seed)
    side = max(3, min(own.shape[2:]) // 4)
    rows = torch.randperm(len(own), generator=random)[:N_CROPS]
    onto = others[torch.randperm(len(others), generator=random)[:N_ONTO]]
    before = probability(onto)

    photos = min(own.shape[2:]) > SMALL

    def change(crop: Tensor, count: int = N_ONTO) -> float:
        return float((probability(MovingMark(crop).pasted(onto[:count], seed)) - before[:count]).mean())

    crops = [crop_at_peak(own[row], positive[row], side) for row in rows]
    changes = [change(crop) for crop in crops]
    best = [i for i in sorted(range(len(crops)), key=lambda i: -changes[i]) if changes[i] >= MIN_CHANGE]
    found = []
    for i in best[: N_BEST_OF_PHOTOS if photos else N_BEST]:
        crop, value = crops[i], changes[i]
        for _ in range(N_SHRUNK if photos else 1):
            smaller = _best_part(crop, partial(change, count=N_ONTO_OF_PARTS if photos else N_ONTO))
            rest = change(smaller)
            if rest < KEPT * changes[i] or smaller.shape == crop.shape:
                break
            crop, value = smaller, rest
        hits, hits_elsewhere = (recurs(crop, pictures) for pictures in (own, others))
        hits[rows[i]] = False  # the picture that it comes from
        found.append(
            Recurrence(
                MovingMark(crop),
                value,
                hits.nonzero()[:, 0],
                float(hits.double().mean()),
                float(hits_elsewhere.double().mean()),
            )
        )
    return found


def crop_at_peak(picture: Tensor, positive: Tensor, side: int) -> Tensor:
    """Return the square of a picture `[C, H, W]` where the mean positive relevance `[h, w]` is largest."""
    h, w = picture.shape[1:]
    heat = positive[None, None].float()
    if heat.shape[2:] != (h, w):
        heat = F.interpolate(heat, (h, w), mode="bilinear", align_corners=False)
    means = F.avg_pool2d(heat, side, 1)[0, 0]
    top, left = divmod(int(means.argmax()), means.shape[1])
    return picture[:, top : top + side, left : left + side]


def recurs(crop: Tensor, pictures: Tensor) -> Tensor:
    """Return whether a normalised cross-correlation of the crop with each picture reaches 0.8 anywhere, `[n]`."""
    scale = next((scale for side, scale in SCALES.items() if max(pictures.shape[2:]) <= side), 0.25)
    if scale < 1 and round(scale * crop.shape[1]) > 2:
        crop, pictures = (F.interpolate(t, scale_factor=scale, mode="area") for t in (crop[None], pictures))
        crop = crop[0]
    c = (crop - crop.mean()).float()
    found = []
    for part in pictures.float().split(256):
        products = F.conv2d(part, c[None])[:, 0]  # Σ c (x − mean x) = Σ c x, as Σ c = 0
        size = crop.numel()
        sums, squares = (F.conv2d(t, torch.ones_like(c)[None])[:, 0] for t in (part, part.square()))
        spread = (squares - sums.square() / size).clamp(min=0).sqrt()
        correlation = products / (c.norm() * spread + NOISE * c.norm().square()).clamp(min=1e-12)
        found.append(correlation.flatten(1).amax(1) >= HIT)
    return torch.cat(found)


def _best_part(crop: Tensor, change: Callable[[Tensor], float]) -> Tensor:
    """Return the best of nine crops within a crop."""
    side = crop.shape[1]
    inner = max(3, round(SHRINK * side))
    starts = torch.linspace(0, side - inner, 3).round().long().tolist()
    parts = [crop[:, top : top + inner, left : left + inner] for top in starts for left in starts]
    values = [change(part) for part in parts]
    best = max(range(len(parts)), key=lambda i: values[i])
    return parts[best]
