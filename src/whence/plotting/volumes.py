"""Volumes [C, D, H, W]: three slices through the strongest relevance, all slices of a page, montages."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from whence.plotting.heatmaps import (
    color_limit,
    color_scale,
    draw_color_bar,
    draw_outline,
    draw_overlay,
    hide_ticks,
    in_unit_range,
    overlay_pixels,
    wrap_title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

AXES = ("depth", "height", "width")
MAX_SLICES, SLICE_WIDTH = 64, 640  # of a page, the width in pixels


@dataclass(frozen=True)
class VolumeSlices:
    """A panel of a volume: its slices along each axis through the strongest place, and their overlays.

    A region `[d, h, w]` is outlined, and the slices go through the strongest place in it.
    """

    x: Tensor
    relevance: Tensor
    title: str
    region: Tensor | None = None
    width: float = 9.6
    height: float = 6.4

    def draw(self, part: "SubFigure", width: float) -> None:
        volume, heat = in_unit_range(self.x.mean(0)), self.relevance.detach().float().cpu().sum(0)
        region = None if self.region is None else resized_region(self.region, heat.shape)
        limit, place = color_limit(heat), strongest_place(heat, region)
        axes = part.subplots(2, 3)
        part.suptitle(wrap_title(self.title), fontsize=9)
        for axis, (name, at) in enumerate(zip(AXES, place, strict=True)):
            above, below = axes[0, axis], axes[1, axis]
            picture, slice_of_heat = volume.select(axis, at), heat.select(axis, at)
            above.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
            draw_overlay(below, picture, slice_of_heat, limit)
            down, across = (other for other in AXES if other != name)
            hide_ticks(above, f"{name} {at} of 0 to {volume.shape[axis] - 1}  ({down} ↓, {across} →)")
            hide_ticks(below, "")
            for each in (above, below):
                _mark_cuts(each, [at for k, at in enumerate(place) if k != axis])
                if region is not None and (here := region.select(axis, at)).any():
                    draw_outline(each, here, here.shape)
        for axis, label in zip(axes[:, 0], ("input", "overlay"), strict=True):
            axis.set_ylabel(label, fontsize=8)
        draw_color_bar(part, color_scale(limit), axes)


def slice_images(x: Tensor, relevance: Tensor) -> dict[int, str]:
    """Return slices of a volume `[C, D, H, W]` along its depth beside their overlays, as base64 strings of PNG by depth."""
    volume, heat = in_unit_range(x.mean(0)), relevance.detach().float().cpu().sum(0)
    limit, images = color_limit(heat), {}
    for k in range(0, len(volume), -(-len(volume) // MAX_SLICES)):
        grey = volume[k][..., None].expand(-1, -1, 3)
        both = torch.cat([grey, torch.ones(len(grey), 2, 3), overlay_pixels(volume[k], heat[k], limit)], 1)
        picture = Image.fromarray((both * 255).round().byte().numpy())
        factor = max(1, SLICE_WIDTH // picture.width)
        buffer = BytesIO()
        picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(buffer, "PNG")
        images[k] = b64encode(buffer.getvalue()).decode()
    return images


def montage(x: Tensor) -> Tensor:
    """Return a volume `[C, D, H, W]` as a picture of its slices along the depth, row by row, `[C, rows · H, columns · W]`."""
    columns = ceil(x.shape[1] ** 0.5)
    padded = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % columns))
    return padded.unflatten(1, (-1, columns)).transpose(2, 3).flatten(3).flatten(1, 2)


def strongest_place(heat: Tensor, region: Tensor | None = None) -> tuple[int, ...]:
    """Return the indices of the largest |relevance|, averaged over 3 × 3 × 3 voxels, within a region if there is one."""
    strength = F.avg_pool3d(F.pad(heat.abs()[None, None], (1,) * 6), 3, 1)[0, 0]
    strength = strength if region is None or not region.any() else strength.masked_fill(~region, -1)
    at, place = int(strength.argmax()), []
    for size in reversed(heat.shape):
        at, index = divmod(at, size)
        place.append(index)
    return tuple(reversed(place))


def resized_region(region: Tensor, size: Sequence[int]) -> Tensor:
    """Return a region `[d, h, w]` at the size of the volume."""
    return F.interpolate(region[None, None].float().cpu(), tuple(size), mode="nearest")[0, 0] > 0.5


def _mark_cuts(axis: "Axes", places: Sequence[int]) -> None:
    """Mark at the edges of a slice where the other two slices cut it."""
    down, across = places
    axis.set_xticks([across], [""])
    axis.set_yticks([down], [""])
    axis.tick_params(length=5, width=1.5, top=True, right=True, direction="out")
