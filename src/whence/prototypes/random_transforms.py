"""Small random transforms between steps, so that a prototype does not depend on single pixels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.errors import InputError, RuleError

Transform = Callable[[Tensor, Sequence[torch.Generator]], Tensor]


@dataclass(frozen=True)
class Jiggle:
    """Random translation, rotation and scaling, drawn for each image and applied in one interpolation.

    >>> jiggle = whence.images.Jiggle(shift=8, scale=0.1, turn=5)
    >>> whence.prototype(model, "features.10:3", shape=(3, 224, 224), transforms=jiggle)

    Beyond its edges an image is mirrored.

    Args:
        shift: Largest translation in either direction, in pixels.
        scale: Largest relative change of size, below 1.
        turn: Largest rotation in either direction, in degrees.
        crops: Number of transformed copies in each step, whose mean objective is maximised.

    Raises:
        RuleError: A setting is out of range.
    """

    shift: float = 8.0
    scale: float = 0.1
    turn: float = 5.0
    crops: int = 1

    def __post_init__(self):
        if min(self.shift, self.scale, self.turn) < 0 or self.scale >= 1 or self.crops < 1:
            raise RuleError(f"{self}: shift, scale and turn must not be negative, scale must be below 1, and crops at least 1")

    def __call__(self, x: Tensor, randoms: Sequence[torch.Generator]) -> Tensor:
        """Return transformed copies `[K · crops, C, H, W]`, those of each image next to each other."""
        if x.dim() != 4:
            raise InputError(f"Jiggle expects images [K, C, H, W], got shape {tuple(x.shape)}; pass transforms=None")
        drawn = torch.cat([torch.rand(self.crops, 4, generator=random) for random in randoms]).to(x) * 2 - 1
        angle, size = drawn[:, 0] * math.radians(self.turn), 1 + drawn[:, 1] * self.scale
        height, width = x.shape[2:]
        cos, sin = angle.cos() * size, angle.sin() * size
        rows = [cos, -sin * height / width, drawn[:, 2] * 2 * self.shift / width]
        columns = [sin * width / height, cos, drawn[:, 3] * 2 * self.shift / height]
        affine = torch.stack([torch.stack(rows, 1), torch.stack(columns, 1)], 1)
        copies = x.repeat_interleave(self.crops, 0) if self.crops > 1 else x
        grid = F.affine_grid(affine, list(copies.shape), align_corners=False)
        return F.grid_sample(copies, grid, padding_mode="reflection", align_corners=False)
