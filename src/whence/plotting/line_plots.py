"""Line plots, error bars and scatter plots."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LOGIT_TICKS = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True)
class Line:
    """A line, or points with error bars if `errors` are given."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    style: str = "-"
    label: str = ""
    errors: Sequence[float] | None = None

    def draw(self, axis: "Axes") -> None:
        if self.errors is None:
            axis.plot(self.x, self.y, self.style, color=self.colour, linewidth=1.2, label=self.label or None)
        else:
            axis.errorbar(self.x, self.y, self.errors, fmt="o", markersize=3, color=self.colour, linewidth=0.8)


@dataclass(frozen=True)
class LinePlot:
    """Several series over the same variable; `mark` is a value that a vertical line marks."""

    over: str
    series: Sequence[Line]
    mark: float | None = None


def line_plots(
    plots: Sequence[LinePlot],
    of: str,
    title: str,
    columns: int = 2,
    limits: tuple[float, float] = (-0.04, 1.04),
    scale: str = "linear",
) -> Figure:
    """Return a figure of several plots with one legend; the scale "logit" spreads values near 0 and 1."""
    rows = -(-len(plots) // columns)
    drawn = Figure(figsize=(5.2 * columns, 3.1 * rows), dpi=120, layout="constrained")
    for axis, plot in zip(drawn.subplots(rows, columns, squeeze=False).flat, plots, strict=False):
        for series in plot.series:
            series.draw(axis)
        if plot.mark is not None:
            axis.axvline(plot.mark, color="grey", linewidth=0.6)
        axis.set_xlabel(plot.over, fontsize=9)
        axis.set_ylabel(of, fontsize=9)
        if scale == "logit":
            axis.set_yscale("logit", nonpositive="clip")
            axis.set_yticks(LOGIT_TICKS, [f"{share:g}" for share in LOGIT_TICKS])
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(*limits)
        axis.tick_params(labelsize=8)
    handles = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(*handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    drawn.suptitle(title, fontsize=10)
    return drawn


def scatter(x: Sequence[float], y: Sequence[float], colours: Sequence[str], names: tuple[str, str], title: str) -> Figure:
    """Return a scatter plot with the diagonal and the line at 0."""
    drawn = Figure(figsize=(5.6, 4.8), dpi=120, layout="constrained")
    axis = drawn.subplots()
    axis.scatter(x, y, s=12, c=colours, alpha=0.7)
    axis.axhline(0, color="black", linewidth=0.6)
    axis.plot([0, max(x)], [0, max(x)], color="grey", linewidth=0.6)
    axis.set_xlabel(names[0], fontsize=9)
    axis.set_ylabel(names[1], fontsize=9)
    axis.set_title(title, fontsize=9)
    return drawn
