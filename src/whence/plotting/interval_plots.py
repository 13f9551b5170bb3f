"""Figures of means with their intervals, next to perturbation curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from whence.plotting.text_escape import escape_mathtext

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
MAX_NAMES = 6  # methods in the legend of the curves; the panels of means name the colours as well


@dataclass(frozen=True)
class MetricMeans:
    """A metric: for each name a mean and its interval."""

    title: str
    names: Sequence[str]
    means: Sequence[float]
    bounds: Sequence[tuple[float, float]]

    def draw(self, axis: "Axes", colours: Sequence) -> None:
        places = range(len(self.names))
        for place, mean, (low, high), colour in zip(places, self.means, self.bounds, colours, strict=True):
            if math.isfinite(mean):
                axis.plot([mean], [place], "o", color=colour, markersize=5)
            if math.isfinite(low) and math.isfinite(high):
                axis.plot([low, high], [place, place], "-", color=colour, linewidth=2)
        axis.set_yticks(places, [escape_mathtext(name) for name in self.names], fontsize=8)
        axis.set_ylim(len(self.names) - 0.5, -0.5)
        axis.set_title(self.title, fontsize=9)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", linewidth=0.3)


@dataclass(frozen=True)
class ScoreCurve:
    """The score as a function of the fraction removed."""

    x: Sequence[float]
    y: Sequence[float]
    most_first: bool


def interval_figure(means: Sequence[MetricMeans], curves: Mapping[str, Sequence[ScoreCurve]]) -> Figure:
    """Return a figure with a panel for each metric, and one of the curves."""
    names = list(means[0].names)
    palette = colormaps["tab20" if len(names) > 10 else "tab10"]
    colours = [palette(i % palette.N) for i in range(len(names))]
    count = len(means) + bool(curves)
    columns = min(COLUMNS, count)
    height = max(2.6, 0.9 + 0.24 * len(names))
    drawn = Figure(figsize=(4.4 * columns, height * -(-count // columns)), dpi=120, layout="constrained")
    axes = list(drawn.subplots(-(-count // columns), columns, squeeze=False).flat)
    for axis, panel in zip(axes, means, strict=False):
        panel.draw(axis, colours)
    for axis in axes[count:]:
        axis.set_axis_off()
    if curves:
        _draw_curves(axes[len(means)], curves, {name: colours[names.index(name)] for name in curves})
    return drawn


def _draw_curves(axis: "Axes", curves: Mapping[str, Sequence[ScoreCurve]], colours: Mapping[str, Any]) -> None:
    for name, of_name in curves.items():
        for curve in of_name:
            axis.plot(curve.x, curve.y, "-" if curve.most_first else "--", color=colours[name], linewidth=1.2)
    for name, colour in colours.items() if len(colours) <= MAX_NAMES else ():
        axis.plot([], [], "-", color=colour, label=escape_mathtext(name))
    axis.plot([], [], "-", color="grey", label="most relevant first")
    axis.plot([], [], "--", color="grey", label="least relevant first")
    axis.legend(fontsize=7, frameon=False)
    axis.set_xlabel("fraction removed", fontsize=8)
    axis.set_ylabel("score", fontsize=8)
    axis.set_title("score as regions are removed", fontsize=9)
    axis.tick_params(labelsize=8)
