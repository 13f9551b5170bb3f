"""Heatmaps of relevance on a symmetric scale: red for relevance, blue for counter-relevance, white for zero."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

from whence.errors import WhenceError
from whence.plotting.palettes import current_palette, sign_legend
from whence.plotting.text_escape import escape_mathtext

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase, SubFigure

TITLE_LENGTH = 120  # characters of 9 points in the width of a panel


@dataclass(frozen=True)
class Heatmap:
    """A panel of one input of one sample, its heatmap, and their overlay; a region `[h, w]` is outlined, with a caption."""

    x: Tensor
    relevance: Tensor
    title: str
    region: Tensor | None = None
    caption: str = ""
    limit: float | None = None  # of the colour scale, where it is common to several panels
    width: float = 9.6

    @property
    def height(self) -> float:
        rows, columns = self.relevance.shape[-2:] if self.relevance.dim() > 1 else (1, 1)
        return min(max(2.95 * rows / columns, 0.9), 4.0) + 0.55

    def draw(self, part: "SubFigure", width: float) -> None:
        heat = sum_channels(self.relevance)
        limit, picture, axes = self.limit or color_limit(heat), to_picture(self.x), part.subplots(1, 3)
        axes[0].imshow(picture.numpy(), cmap="gray")
        shown = draw_map(axes[1], heat, limit)
        draw_overlay(axes[2], picture, heat, limit)
        part.suptitle(wrap_title(self.title), fontsize=9)
        for axis, heading in zip(axes, ("input", f"relevance ({sign_legend()})", "overlay"), strict=True):
            hide_ticks(axis, heading)
            if self.region is not None:
                draw_outline(axis, self.region, heat.shape)
        if self.region is not None and self.caption:
            draw_caption(axes[0], self.region, heat.shape, self.caption)
        draw_color_bar(part, shown, axes[2])


@dataclass(frozen=True)
class Photo:
    """A panel of one picture with outlines of regions `[h, w]` and their captions."""

    x: Tensor
    title: str
    regions: Sequence[Tensor]
    captions: Sequence[str]
    width: float = 9.6
    height: float = 5.0

    def draw(self, part: "SubFigure", width: float) -> None:
        axis = part.subplots()
        axis.imshow(to_picture(self.x).numpy(), cmap="gray")
        hide_ticks(axis, self.title)
        places: list[tuple[float, float]] = []
        for region, caption in zip(self.regions, self.captions, strict=True):
            draw_outline(axis, region, self.x.shape[-2:])
            places.append(draw_caption(axis, region, self.x.shape[-2:], caption, places))


def draw_map(axis: "Axes", heat: Tensor, limit: float, **more: Any) -> Any:
    """Draw a heatmap and return the matplotlib image, from which a colour bar can be made."""
    return axis.imshow(heat.numpy(), cmap=current_palette().map, vmin=-limit, vmax=limit, interpolation="nearest", **more)


def draw_outline(axis: "Axes", region: Tensor, size: Sequence[int]) -> None:
    """Draw the outline of a region `[h, w]`, of any resolution, on a picture of a size [H, W]."""
    height, width = size
    inside = F.pad(region.cpu().float(), (1, 1, 1, 1))  # so that outlines close at the edges
    down, across = (
        (torch.arange(-1, n + 1) + 0.5) * side / n - 0.5 for n, side in zip(region.shape, (height, width), strict=True)
    )
    for color, line in (("white", 2.6), ("black", 1.2)):
        axis.contour(across.numpy(), down.numpy(), inside.numpy(), levels=[0.5], colors=color, linewidths=line)
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)


def draw_caption(
    axis: "Axes", region: Tensor, size: Sequence[int], caption: str, others: Sequence[tuple[float, float]] = ()
) -> tuple[float, float]:
    """Write a caption at the upper left corner of a region `[h, w]`, within the picture of a size [H, W]; return its place.

    It moves down from the places of `others` that it would cover.
    """
    places = region.nonzero().float()
    if not len(places):
        return -1.0, -1.0
    rows, columns = (side / n for n, side in zip(region.shape, size, strict=True))
    line, length = 0.05 * size[0], 0.3 * size[1]
    left, top = float(places[:, 1].min()) * columns, float(places[:, 0].min()) * rows
    top = max(top, line)
    while any(abs(left - x) < length and abs(top - y) < line for x, y in others):
        top += line
    axis.text(
        left, top - 0.5, escape_mathtext(caption), fontsize=7, color="white", verticalalignment="bottom", clip_on=True,
        bbox={"facecolor": "black", "edgecolor": "none", "alpha": 0.75, "pad": 1.0},
    )  # fmt: skip
    return left, top


def draw_color_bar(part: "FigureBase", shown: Any, axes: Any, fraction: float = 0.05, pad: float = 0.02) -> None:
    """Draw a colour bar with small labels; beside a single picture, as high as it."""
    if isinstance(axes, list | np.ndarray):
        bar = part.colorbar(shown, ax=axes, fraction=fraction, pad=pad)
    else:
        bar = part.colorbar(shown, cax=axes.inset_axes((1 + pad, 0, fraction, 1)))
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.get_offset_text().set_fontsize(7)


def wrap_title(title: str) -> str:
    """Return a title in lines of a figure's width, escaped."""
    return "\n".join(escape_mathtext(line) for line in textwrap.wrap(title, TITLE_LENGTH)) or title


def hide_ticks(axis: "Axes", heading: str) -> None:
    """Set the title of axes and remove their ticks."""
    axis.set_title(escape_mathtext(heading), fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def sum_channels(relevance: Tensor) -> Tensor:
    """Return the relevance of one sample as a map [H, W], summed over channels."""
    relevance = relevance.detach().float().cpu()
    if relevance.dim() == 3:
        return relevance.sum(0)
    if relevance.dim() <= 2:
        return torch.atleast_2d(relevance)
    raise WhenceError(f"cannot draw relevance of shape {tuple(relevance.shape)}; save it as .npz or .safetensors")


def to_picture(x: Tensor) -> Tensor:
    """Return one input as an image in [0, 1]: [H, W], or [H, W, 3] if it has three channels."""
    x = in_unit_range(x)
    if x.dim() == 3 and len(x) == 3:
        return x.permute(1, 2, 0)
    return x.mean(0) if x.dim() == 3 else torch.atleast_2d(x)


def in_unit_range(x: Tensor) -> Tensor:
    """Return values scaled to [0, 1], in CPU memory."""
    x = x.detach().float().cpu()
    return (x - x.min()) / (x.max() - x.min()).clamp(min=1e-12)


def color_scale(limit: float) -> ScalarMappable:
    """Return the scale of heatmaps up to a limit, for a colour bar."""
    return ScalarMappable(Normalize(-limit, limit), current_palette().map)


def color_limit(heat: Tensor) -> float:
    """Return the symmetric limit of the colour scale, for photos the 99.9 % quantile, so that outliers do not dominate."""
    magnitude = heat.abs().flatten()
    limit = torch.quantile(magnitude, 0.999) if 4096 <= len(magnitude) <= 2**24 else magnitude.max()
    return float(limit) or float(magnitude.max()) or 1.0


def draw_overlay(axis: "Axes", picture: Tensor, heat: Tensor, limit: float) -> None:
    """Draw a heatmap over a pale grey input."""
    axis.imshow(overlay_pixels(picture, heat, limit).numpy(), interpolation="nearest")


def overlay_pixels(picture: Tensor, heat: Tensor, limit: float) -> Tensor:
    """Return the pixels `[H, W, 3]` of a heatmap over a pale grey input, with an opacity that grows with |relevance|."""
    grey = 0.55 + 0.45 * (picture.mean(2) if picture.dim() == 3 else picture)
    share = (heat / limit).clamp(-1, 1)
    colors = torch.from_numpy(colormaps[current_palette().map]((share.numpy() + 1) / 2)[..., :3])
    opacity = share.abs().sqrt()[..., None]
    return (grey[..., None] * (1 - opacity) + colors * opacity).float()
