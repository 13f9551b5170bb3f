"""Figures of matrices with named rows: red above zero, blue below."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from whence.plotting.heatmaps import draw_color_bar
from whence.plotting.palettes import current_palette


def matrix_figure(drawn: Mapping[str, Tensor], rows: Sequence[str], columns: str | Sequence[str]) -> Figure:
    """Return a figure of matrices side by side, each with its own colour scale; columns are numbered, or have names each."""
    height, width = next(iter(drawn.values())).shape
    below = 0.9 if isinstance(columns, str) else 0.6 + 0.075 * max(map(len, columns))
    cell = 0.16 if isinstance(columns, str) else 0.3
    size = (1.6 + max(1.2 + cell * width, 0.07 * max(map(len, drawn))) * len(drawn), below + 0.24 * height)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (name, values) in zip(axes, drawn.items(), strict=True):
        limit = float(values.abs().max()) or 1.0
        shown = axis.imshow(
            values.cpu().numpy(), cmap=current_palette().map, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
        )
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        if isinstance(columns, str):
            axis.set_xlabel(columns, fontsize=8)
        else:
            axis.set_xticks(range(width), columns, rotation=90)
        axis.set_yticks(range(height), rows if axis is axes[0] else [""] * height)
        draw_color_bar(figure, shown, axis, fraction=0.06)
    return figure
