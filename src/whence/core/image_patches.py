"""Reassembly of images that a processor cut into rows of patches (Qwen2-VL and similar models)."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from whence.core.inputs import Inputs

GRID_INPUTS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}


@dataclass(frozen=True)
class PatchLayout:
    """The order of the rows `[patches, channels · frames · side²]` of patches of all images.

    >>> patches.pictures(relevance, torch.sum)      # [3, H, W] each
    """

    grids: tuple[tuple[int, int, int], ...]  # frames, rows and columns of patches of each image
    frames: int = 2  # frames per patch
    merged: int = 2  # patches per side that are consecutive rows and are merged into one token

    @classmethod
    def found(cls, model: Callable[..., Any], inputs: Inputs) -> "dict[str, PatchLayout]":
        """Return the layouts of the inputs that are rows of patches, by input name."""
        vision = getattr(getattr(model, "config", None), "vision_config", None)
        frames, merged = getattr(vision, "temporal_patch_size", 2), getattr(vision, "spatial_merge_size", 2)
        found = {}
        for name, named in GRID_INPUTS.items():
            rows, grids = inputs.named(name), inputs.named(named)
            if isinstance(rows, Tensor) and isinstance(grids, Tensor) and rows.dim() == 2 and grids.shape[-1:] == (3,):
                patches = cls(tuple((t, h, w) for t, h, w in grids.reshape(-1, 3).tolist()), frames, merged)
                if patches.fit(rows):
                    found[name] = patches
        return found

    def fit(self, rows: Tensor) -> bool:
        side = (rows.shape[1] / (3 * self.frames)) ** 0.5
        whole = all(h % self.merged == w % self.merged == 0 for _, h, w in self.grids)
        return whole and side == int(side) and len(rows) == sum(map(prod, self.grids))

    def pictures(self, rows: Tensor, over_frames: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
        """Return each image `[3, H, W]`, with its frames reduced by `over_frames(frames, 0)`."""
        parts = rows.split([prod(grid) for grid in self.grids])
        return [over_frames(self._frames(part, *grid), 0) for part, grid in zip(parts, self.grids, strict=True)]

    def _frames(self, rows: Tensor, t: int, h: int, w: int) -> Tensor:
        """Return the frames of one image or video, `[frames, 3, H, W]`."""
        m, side = self.merged, round((rows.shape[1] / (3 * self.frames)) ** 0.5)
        blocks = rows.reshape(t, h // m, w // m, m, m, 3, self.frames, side, side)
        return blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * self.frames, 3, h * side, w * side)
