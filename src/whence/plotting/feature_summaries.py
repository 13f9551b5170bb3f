"""Figures of the relevance of the same features in many rows: beeswarm, mean bars, heatmap and scatter plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from torch import Tensor

from whence.plotting.bars import colors_by_sign
from whence.plotting.heatmaps import color_limit, draw_color_bar, draw_map
from whence.plotting.palettes import GREY, sign_legend
from whence.plotting.text_escape import escape_mathtext, shorten_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

VALUE_COLORS = "viridis"  # of low and high values; red and blue mean the sign of relevance
BINS = 60  # along the axis of a beeswarm, within which points are stacked


@dataclass(frozen=True)
class Beeswarm:
    """A point for each row and feature at its relevance, coloured by the feature's value; rows of points by feature."""

    relevance: Tensor  # [N, features], in the order of the figure
    values: Tensor  # [N, features]; NaN: grey
    names: Sequence[str]
    title: str
    width: float = 8.0

    @property
    def height(self) -> float:
        return 1.2 + 0.34 * len(self.names)

    def draw(self, part: "SubFigure", width: float) -> None:
        axis = part.subplots()
        axis.set_title(escape_mathtext(self.title), fontsize=9)
        for i in range(len(self.names)):
            r, v = self.relevance[:, i], _in_quantiles(self.values[:, i])
            y = i + 0.38 * _stacked(r, float(self.relevance.abs().max()))
            unknown = v.isnan()
            axis.scatter(r[unknown], y[unknown], s=9, color=GREY, linewidths=0)
            axis.scatter(r[~unknown], y[~unknown], s=9, c=v[~unknown], cmap=VALUE_COLORS, vmin=0, vmax=1, linewidths=0)
        axis.axvline(0, color="black", linewidth=0.6)
        _name_rows(axis, self.names)
        grey = "; grey: categories" if bool(self.values.isnan().all(0).any()) else ""
        axis.set_xlabel(f"relevance (right: for the output, left: against{grey})", fontsize=8)
        if not bool(self.values.isnan().all()):
            bar = part.colorbar(ScalarMappable(Normalize(0, 1), VALUE_COLORS), ax=axis, fraction=0.02, pad=0.02, ticks=[0, 1])
            bar.ax.set_yticklabels(["low", "high"], fontsize=7)
            bar.set_label("value of the feature", fontsize=7)
            bar.outline.set_visible(False)  # type: ignore[operator]


@dataclass(frozen=True)
class MeanBars:
    """A bar for the mean |relevance| of each feature over many rows."""

    means: Tensor  # [features]
    names: Sequence[str]
    title: str
    width: float = 8.0

    @property
    def height(self) -> float:
        return 1.0 + 0.24 * len(self.names)

    def draw(self, part: "SubFigure", width: float) -> None:
        axis = part.subplots()
        axis.set_title(escape_mathtext(self.title), fontsize=9)
        axis.barh(range(len(self.names)), self.means.numpy(), color="#555555", height=0.66)
        for i, mean in enumerate(self.means.tolist()):
            axis.annotate(f"{mean:.3g}", (mean, i), (3, 0), textcoords="offset points", fontsize=7, va="center")
        axis.margins(x=0.12)
        axis.set_xlim(left=0)
        _name_rows(axis, self.names)
        axis.set_xlabel("mean |relevance|", fontsize=8)


@dataclass(frozen=True)
class RowHeatmap:
    """A heatmap of features over rows, below the output of each row."""

    relevance: Tensor  # [N, features]
    outputs: Tensor  # [N]
    names: Sequence[str]
    title: str
    width: float = 8.0

    @property
    def height(self) -> float:
        return 2.0 + 0.24 * len(self.names)

    def draw(self, part: "SubFigure", width: float) -> None:
        above, axis = part.subplots(2, 1, sharex=True, height_ratios=[1, max(2.0, 0.3 * len(self.names))])
        above.set_title(escape_mathtext(self.title), fontsize=9)
        above.plot(range(len(self.outputs)), self.outputs.numpy(), color="black", linewidth=1)
        above.set_ylabel("output", fontsize=8)
        above.tick_params(labelsize=7)
        shown = draw_map(axis, self.relevance.T, color_limit(self.relevance), aspect="auto")
        _name_rows(axis, self.names)
        axis.set_xlabel(f"rows, by output ({sign_legend()})", fontsize=8)
        draw_color_bar(part, shown, axis, fraction=0.02)


@dataclass(frozen=True)
class ValueScatter:
    """A point for each row: the relevance of one feature over its value, or over its categories."""

    values: Tensor  # [N]
    categories: Sequence[str]  # by value; empty for numbers
    relevance: Tensor  # [N]
    name: str
    title: str
    width: float = 7.0
    height: float = 4.2

    def draw(self, part: "SubFigure", width: float) -> None:
        axis = part.subplots()
        axis.set_title(escape_mathtext(self.title), fontsize=9)
        colors = colors_by_sign(self.relevance.tolist())
        axis.scatter(self.values, self.relevance, s=14, c=colors, alpha=0.7, linewidths=0)
        axis.axhline(0, color="black", linewidth=0.6)
        if self.categories:
            axis.set_xticks(range(len(self.categories)), [escape_mathtext(shorten_middle(c, 20)) for c in self.categories])
            axis.set_xlim(-0.5, len(self.categories) - 0.5)
        axis.set_xlabel(escape_mathtext(self.name), fontsize=8)
        axis.set_ylabel(f"relevance ({sign_legend()})", fontsize=8)
        axis.tick_params(labelsize=7)


def _name_rows(axis: "Axes", names: Sequence[str]) -> None:
    """Label the rows of an axis from top to bottom."""
    axis.set_yticks(range(len(names)), [escape_mathtext(shorten_middle(name)) for name in names], fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="x", labelsize=7)


def _in_quantiles(values: Tensor) -> Tensor:
    """Return values scaled to [0, 1] between their 5 % and 95 % quantiles, so that outliers do not take all colours."""
    known = values[~values.isnan()]
    if not len(known):
        return values
    low, high = torch.quantile(known, torch.tensor([0.05, 0.95], dtype=known.dtype)).tolist()
    if low == high:
        low, high = float(known.min()), float(known.max())
    return ((values - low) / ((high - low) or 1.0)).clamp(0, 1)


def _stacked(relevance: Tensor, limit: float) -> Tensor:
    """Return the offsets in [-1, 1] of points that would lie over each other: those of one bin alternate about the middle."""
    bins = (relevance / (limit or 1.0) * BINS).round()
    offsets = torch.zeros(len(relevance), dtype=torch.double)
    for one in bins.unique():
        points = (bins == one).nonzero()[:, 0]
        ranks = torch.arange(len(points), dtype=torch.double)
        offsets[points] = (ranks / 2).ceil() * (1 - 2 * (ranks % 2))
    return offsets / max(float(offsets.abs().max()), 6.0)
