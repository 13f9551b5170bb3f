"""Volumes [C, D, H, W]: three slices through the strongest relevance."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from whence.plotting.heatmaps import color_limit, draw_color_bar, draw_map, draw_overlay, hide_ticks, wrap_title

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

AXES = ("depth", "height", "width")


@dataclass(frozen=True)
class VolumeSlices:
    """A panel of a volume: its slices along each axis through the place of the largest |relevance|, and their overlays."""

    x: Tensor
    relevance: Tensor
    title: str
    width: float = 9.6
    height: float = 6.4

    def draw(self, part: "SubFigure", width: float) -> None:
        volume, heat = (t.detach().float().cpu() for t in (self.x.mean(0), self.relevance.sum(0)))
        volume = (volume - volume.min()) / (volume.max() - volume.min()).clamp(min=1e-12)
        limit, place = color_limit(heat), strongest_place(heat)
        axes = part.subplots(2, 3)
        part.suptitle(wrap_title(self.title), fontsize=9)
        for axis, (name, at) in enumerate(zip(AXES, place, strict=True)):
            above, below = axes[0, axis], axes[1, axis]
            picture, slice_of_heat = volume.select(axis, at), heat.select(axis, at)
            above.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
            draw_overlay(below, picture, slice_of_heat, limit)
            down, across = (other for other in AXES if other != name)
            hide_ticks(above, f"{name} {at} of {volume.shape[axis]}  ({down} ↓, {across} →)")
            hide_ticks(below, "")
        for axis, label in zip(axes[:, 0], ("input", "overlay"), strict=True):
            axis.set_ylabel(label, fontsize=8)
        shown = draw_map(axes[1, 2], heat.select(2, place[2]), limit, alpha=0.0)
        shown.set_alpha(None)
        shown.set_visible(False)
        draw_color_bar(part, shown, axes)


def strongest_place(heat: Tensor) -> tuple[int, ...]:
    """Return the indices of the largest |relevance|."""
    at, place = int(heat.abs().argmax()), []
    for size in reversed(heat.shape):
        at, index = divmod(at, size)
        place.append(index)
    return tuple(reversed(place))
