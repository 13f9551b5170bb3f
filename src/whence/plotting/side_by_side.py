"""Figures of one image and its heatmaps by several methods in a row."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from whence.plotting.heatmaps import color_limit, draw_map, hide_ticks, sum_channels, to_picture

MAX_COLUMNS = 7  # in a row
MethodRow = tuple[Tensor, str, Sequence[tuple[str, Tensor]]]  # input, its title, titles and heatmaps


def method_rows_figure(rows: Sequence[MethodRow], common_scale: bool) -> Figure:
    """Return a figure with a row for each input, followed by its heatmaps; long rows are wrapped."""
    count = len(rows[0][2]) + 1
    columns = min(count, MAX_COLUMNS)
    lines = -(-count // columns)
    drawn = Figure(figsize=(1.9 * columns, 2.35 * lines * len(rows)), dpi=120, layout="constrained")
    axes = drawn.subplots(lines * len(rows), columns, squeeze=False).reshape(len(rows), -1)
    for places, (x, title, heatmaps) in zip(axes, rows, strict=True):
        picture = to_picture(x)
        places[0].imshow(picture.numpy(), cmap="gray", interpolation="nearest" if max(picture.shape) < 64 else None)
        hide_ticks(places[0], title)
        maps = [sum_channels(heat) for _, heat in heatmaps]
        largest = max(map(color_limit, maps))
        for axis, heat, (name, _) in zip(places[1:], maps, heatmaps, strict=False):
            limit = largest if common_scale else color_limit(heat)
            draw_map(axis, heat, limit)
            hide_ticks(axis, name)
        for axis in places:
            axis.title.set_fontsize(8)
        for axis in places[count:]:
            axis.set_axis_off()
    return drawn
