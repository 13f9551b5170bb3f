"""Figures of Pareto fronts of two metrics."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from whence.plotting.text_escape import escape_mathtext


class ParetoPoint(NamedTuple):
    """A candidate with its two scores."""

    name: str
    x: float
    y: float
    on_front: bool
    best: bool


def pareto_figure(points: Sequence[ParetoPoint], axes: tuple[str, str]) -> Figure:
    """Return a scatter plot of numbered points with a legend of their names, the best in red."""
    drawn = Figure(figsize=(8.4, max(4.0, 0.19 * len(points) + 0.9)), dpi=120, layout="constrained")
    axis, legend = drawn.subplots(1, 2, width_ratios=[2, 1])
    line = sorted((p for p in points if p.on_front), key=lambda p: p.x)
    axis.plot([p.x for p in line], [p.y for p in line], color="#bbbbbb", linewidth=1)
    for number, p in enumerate(points, 1):
        colour = "#c00000" if p.best else "#0000c0" if p.on_front else "#888888"
        axis.plot([p.x], [p.y], "o", color=colour, markersize=6 if p.best else 4)
        axis.annotate(str(number), (p.x, p.y), fontsize=7, xytext=(4, 3), textcoords="offset points")
        legend.text(
            0, 1 - (number - 0.5) / len(points), f"{number}  {escape_mathtext(p.name)}", fontsize=8, color=colour, va="center"
        )
    legend.set_axis_off()
    axis.set_xlabel(axes[0], fontsize=9)
    axis.set_ylabel(axes[1], fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(linewidth=0.3)
    return drawn
