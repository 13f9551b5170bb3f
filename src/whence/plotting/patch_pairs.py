"""Figures of two images with lines between related patches."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from whence.plotting.heatmaps import hide_ticks, to_picture
from whence.plotting.layered_graph import NEGATIVE_COLOR, POSITIVE_COLOR

PatchPair = tuple[tuple[int, ...], tuple[int, ...], float]


def pair_lines(
    x1: Tensor, x2: Tensor, places: tuple[tuple[int, ...], tuple[int, ...]], pairs: Sequence[PatchPair], title: str
) -> Figure:
    """Return a figure of two images, with pairs of patches joined by lines whose opacity shows their relevance."""
    drawn = Figure(figsize=(7.2, 3.6), dpi=120, layout="constrained")
    axes = drawn.subplots(1, 2)
    for axis, x, heading in zip(axes, (x1, x2), (title, ""), strict=True):
        picture = to_picture(x)
        grey = picture.mean(2) if picture.dim() == 3 else picture
        axis.imshow((0.55 + 0.45 * grey).numpy(), cmap="gray", vmin=0, vmax=1)
        hide_ticks(axis, heading)
    largest = max((abs(r) for *_, r in pairs), default=1.0) or 1.0
    for one, other, r in reversed(pairs):
        ends = [_middle(place, grid, x) for place, grid, x in zip((one, other), places, (x1, x2), strict=True)]
        line = ConnectionPatch(
            xyA=ends[0], xyB=ends[1], coordsA="data", coordsB="data", axesA=axes[0], axesB=axes[1],
            color=POSITIVE_COLOR if r > 0 else NEGATIVE_COLOR,
            linewidth=0.4 + 2.2 * abs(r) / largest, alpha=0.15 + 0.75 * abs(r) / largest,
        )  # fmt: skip
        drawn.add_artist(line)
    return drawn


def _middle(place: tuple[int, ...], grid: tuple[int, ...], x: Tensor) -> tuple[float, float]:
    """Return the centre of a patch in pixels, (x, y)."""
    side = [-(-n // parts) for n, parts in zip(x.shape[-2:], grid, strict=True)]
    down, across = ((p + 0.5) * s - 0.5 for p, s in zip(place, side, strict=True))
    return across, down
