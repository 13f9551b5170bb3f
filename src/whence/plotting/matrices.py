"""Figures of matrices with named rows: red above zero, blue below."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from whence.plotting.heatmaps import draw_color_bar
from whence.plotting.palettes import current_palette


def matrix_figure(drawn: Mapping[str, Tensor], rows: Sequence[str], columns: str) -> Figure:
    """Return a figure of matrices side by side, each with its own colour scale."""
    height, width = next(iter(drawn.values())).shape
    size = (1.6 + (1.2 + 0.16 * width) * len(drawn), 0.9 + 0.24 * height)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (name, values) in zip(axes, drawn.items(), strict=True):
        limit = float(values.abs().max()) or 1.0
        shown = axis.imshow(
            values.cpu().numpy(), cmap=current_palette().map, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
        )
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(columns, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_yticks(range(height), rows if axis is axes[0] else [""] * height)
        draw_color_bar(figure, shown, axis, fraction=0.06)
    return figure
