"""Figures of many small images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from whence.plotting.bars import colors_by_sign
from whence.plotting.volumes import montage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_COLUMNS = 8  # in a row


@dataclass(frozen=True)
class ImageTile:
    """One input as an image, or as bars if it is a vector; `bounds` are the values of black and white."""

    x: Tensor
    title: str = ""
    bounds: tuple[Any, Any] | None = None

    def draw(self, axis: "Axes", fontsize: float = 8) -> None:
        axis.set_xticks([])
        axis.set_yticks([])
        if self.title:
            axis.set_title(self.title, fontsize=fontsize)
        x = self.x.detach().float().cpu()
        if x.dim() == 1:
            axis.bar(range(len(x)), x.numpy(), color=colors_by_sign(x.tolist()))
            return
        picture = montage(x) if x.dim() == 4 else x if x.dim() == 3 else x.reshape(1, -1, x.shape[-1])
        if self.bounds is None and len(picture) != 3 and bool((picture.min() < 0) & (picture.max() > 0)):  # 0 is mid-grey
            limit = float(picture.abs().max())
            axis.imshow(picture.mean(0).numpy(), cmap="gray", vmin=-limit, vmax=limit, interpolation="nearest")
            return
        bounds = (picture.min(), picture.max()) if self.bounds is None else self.bounds
        low, high = (torch.as_tensor(bound).float().cpu() for bound in bounds)
        picture = ((picture - low) / (high - low + 1e-12)).clamp(0, 1)
        shown = picture.permute(1, 2, 0) if len(picture) == 3 else picture.mean(0)
        axis.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def image_grid(tiles: Sequence[ImageTile]) -> Figure:
    """Return a figure of all tiles in a grid, with titles."""
    count = len(tiles)
    columns = min(count, MAX_COLUMNS if count % 5 or count > 10 else 5)
    rows = math.ceil(count / columns)
    drawn = Figure(figsize=(1.75 * columns, 2.05 * rows), dpi=120, layout="constrained")
    _fill(drawn, tiles, rows, columns)
    return drawn


def mosaic(tiles: Sequence[ImageTile], columns: int) -> Figure:
    """Return a figure of all tiles in a grid without gaps."""
    rows = math.ceil(len(tiles) / columns)
    drawn = Figure(figsize=(1.1 * columns, 1.1 * rows), dpi=120)
    drawn.subplots_adjust(0, 0, 1, 1, wspace=0, hspace=0)
    _fill(drawn, tiles, rows, columns)
    return drawn


def image_rows(lines: Sequence[Sequence[ImageTile]]) -> Figure:
    """Return a figure with one row for each sequence of tiles, all of the same length."""
    drawn = Figure(figsize=(1.5 * len(lines[0]), 1.7 * len(lines)), dpi=120, layout="constrained")
    for axes, line in zip(drawn.subplots(len(lines), len(lines[0]), squeeze=False), lines, strict=True):
        for axis, tile in zip(axes, line, strict=True):
            tile.draw(axis)
    return drawn


def image_table(lines: Mapping[str, Sequence[ImageTile]]) -> Figure:
    """Return a figure with one row for each name, and the titles of the first row."""
    count = max(map(len, lines.values()))
    drawn = Figure(figsize=(0.95 * count + 1.2, 1.05 * len(lines) + 0.3), dpi=120, layout="constrained")
    axes = drawn.subplots(len(lines), count, squeeze=False)
    for row, (line, (name, tiles)) in enumerate(zip(axes, lines.items(), strict=True)):
        for axis, tile in zip(line, tiles, strict=False):
            (tile if row == 0 else ImageTile(tile.x, "", tile.bounds)).draw(axis, fontsize=9)
        line[0].set_ylabel(name, fontsize=9)
    return drawn


def _fill(drawn: Figure, tiles: Sequence[ImageTile], rows: int, columns: int) -> None:
    axes = list(drawn.subplots(rows, columns, squeeze=False).flat)
    for axis, tile in zip(axes, tiles, strict=False):
        tile.draw(axis)
    for axis in axes[len(tiles) :]:
        axis.set_axis_off()
