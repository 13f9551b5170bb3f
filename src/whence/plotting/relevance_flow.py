"""Figures of relevance flow: small networks unit by unit, larger ones as a heatmap of each layer."""

from collections.abc import Sequence
from math import ceil, log10
from typing import TYPE_CHECKING, Protocol

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from whence.plotting.heatmaps import color_limit, draw_map, hide_ticks, sum_channels
from whence.plotting.palettes import current_palette
from whence.plotting.text_escape import escape_mathtext

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS, DOWN = 2.6, 1.15  # inches for each column and unit
MOST_LABELLED = 30  # edges between two columns
COLUMNS = 5  # of heatmaps in a row
SHORT = 32  # largest vector that is drawn as one row


class DrawnLayer(Protocol):
    """The input, or the output of a layer, with its relevance."""

    @property
    def name(self) -> str: ...
    @property
    def activations(self) -> Tensor: ...
    @property
    def relevance(self) -> Tensor: ...


class DrawnEdges(Protocol):
    """The edges between a column and the next, `[above, below]`."""

    @property
    def messages(self) -> Tensor: ...
    @property
    def weight(self) -> Tensor | None: ...


def network_figure(columns: Sequence[DrawnLayer], edges: Sequence[DrawnEdges], title: str) -> Figure:
    """Return a figure of units as circles coloured by relevance, and edges whose width and colour show their messages."""
    tallest = max(len(column.activations) for column in columns)
    drawn = Figure(figsize=(ACROSS * len(columns), DOWN * tallest + 1.3), dpi=120, layout="constrained")
    axis = drawn.subplots()
    axis.set_title(escape_mathtext(title), fontsize=10)
    axis.set_axis_off()
    limit = max(float(column.relevance.abs().max()) for column in columns) or 1.0
    for k, between in enumerate(edges):
        _draw_edges(axis, k, between, limit)
    for k, column in enumerate(columns):
        _draw_units(axis, k, column, limit)
        axis.text(k, -tallest / 2 - 0.2, escape_mathtext(column.name), fontsize=8, ha="center", color="0.3")
    axis.set_xlim(-0.4, len(columns) - 0.6)
    axis.set_ylim(-tallest / 2 - 0.35, tallest / 2)
    return drawn


def heatmap_figure(columns: Sequence[DrawnLayer], title: str) -> Figure:
    """Return a figure with one heatmap for each column, summed over channels; vectors are rows of pixels."""
    rows = ceil(len(columns) / COLUMNS)
    drawn = Figure(figsize=(2.1 * min(COLUMNS, len(columns)), 2.5 * rows + 0.4), dpi=120, layout="constrained")
    drawn.suptitle(escape_mathtext(title), fontsize=10)
    axes = drawn.subplots(rows, min(COLUMNS, len(columns)), squeeze=False).flatten()
    for axis, column in zip(axes, columns, strict=False):
        heat = _as_square(column.relevance)
        limit = color_limit(heat)
        draw_map(axis, heat, limit)
        shape = " × ".join(map(str, column.activations.shape))
        hide_ticks(axis, f"{column.name}\n{shape}, ΣR = {float(column.relevance.sum()):.3g}")
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    return drawn


def _draw_edges(axis: "Axes", k: int, edges: DrawnEdges, limit: float) -> None:
    above, below = edges.messages.shape
    labelled = above * below <= MOST_LABELLED
    for j in range(above):
        for i in range(below):
            r, weight = float(edges.messages[j, i]), None if edges.weight is None else float(edges.weight[j, i])
            if not r and not weight:
                continue
            start, end = _height(i, below), _height(j, above)
            strength = min(abs(r) / limit, 1.0)
            colour = _color(r, limit, faintest=0.35) if r else "0.8"
            axis.plot([k, k + 1], [start, end], color=colour, linewidth=0.8 + 4 * strength, zorder=1)
            if labelled:
                t = 0.3 + 0.36 * (j % 3) / 2 if above > 1 else 0.45  # where lines to several units are apart
                words = f"R {format_number(r)}" if weight is None else f"w {format_number(weight)}   R {format_number(r)}"
                axis.text(k + t, start + t * (end - start), words, fontsize=6.5, ha="center", va="center", zorder=2,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85})  # fmt: skip


def _draw_units(axis: "Axes", k: int, column: DrawnLayer, limit: float) -> None:
    count = len(column.activations)
    for i, (a, r) in enumerate(zip(column.activations.tolist(), column.relevance.tolist(), strict=True)):
        colour, y = _color(r, limit), _height(i, count)
        axis.scatter([k], [y], s=1150, color=[colour], edgecolors="0.25", linewidths=1, zorder=3)
        ink = "white" if sum(colour[:3]) < 1.3 else "black"
        axis.text(
            k, y, f"a {format_number(a)}\nR {format_number(r)}", fontsize=7, ha="center", va="center", color=ink, zorder=4
        )


def _height(unit: int, count: int) -> float:
    return (count - 1) / 2 - unit


def _color(r: float, limit: float, faintest: float = 0.0) -> tuple[float, float, float, float]:
    strength = max(faintest, min(abs(r) / limit, 1.0))
    return matplotlib.colormaps[current_palette().map](0.5 + 0.5 * strength * (1 if r >= 0 else -1) * 0.75)


def _as_square(relevance: Tensor) -> Tensor:
    """Return a long vector as a square of pixels, row by row."""
    if relevance.dim() > 1 or len(relevance) <= SHORT:
        return sum_channels(relevance)
    values = relevance.detach().float().cpu()
    side = ceil(len(values) ** 0.5)
    return values.new_zeros(side * side).index_copy(0, _array(values), values).view(side, side)


def _array(values: Tensor) -> Tensor:
    return values.new_ones(len(values)).cumsum(0).long() - 1


def format_number(value: float) -> str:
    """Format a number with three significant digits."""
    if not value or not -3 < log10(abs(value)) < 5:
        return "0" if not value else f"{value:.1e}"
    return f"{value:.3g}".replace("-", "−")
