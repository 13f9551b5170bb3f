"""Waterfall charts: the way from a base value to the output of one row, a bar for each feature."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import floor, log10
from typing import TYPE_CHECKING

from whence.plotting.bars import colors_by_sign
from whence.plotting.palettes import GREY, sign_legend
from whence.plotting.text_escape import escape_mathtext, shorten_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

MARGIN = 0.16  # of the range of values, for the numbers beside the bars


@dataclass(frozen=True)
class Waterfall:
    """Bars from a base value down to the output: red where a feature raises it, blue where it lowers it.

    Args:
        title: Title.
        start: Name and amount of the base value.
        steps: Names and amounts of the features, in order.
        others: Names and amounts of what belongs to no feature (biases), drawn in grey.
        end: Name and amount of the output.
        limits: The range of values; by default that of this chart.
    """

    title: str
    start: tuple[str, float]
    steps: Sequence[tuple[str, float]]
    others: Sequence[tuple[str, float]]
    end: tuple[str, float]
    limits: tuple[float, float] | None = None
    width: float = 8.0

    @property
    def height(self) -> float:
        return 1.0 + 0.24 * (len(self.steps) + len(self.others) + 2)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and largest value that the bars reach."""
        reached = [*accumulate((amount for _, amount in [self.start, *self.steps, *self.others])), self.end[1]]
        return min(reached), max(reached)

    def draw(self, part: "SubFigure", width: float) -> None:
        axis = part.subplots()
        axis.set_title(escape_mathtext(self.title), fontsize=9)
        rows = [*self.steps, *self.others]
        colors = [*colors_by_sign([amount for _, amount in self.steps]), *[GREY] * len(self.others)]
        ends = list(accumulate((amount for _, amount in rows), initial=self.start[1]))
        low, high = self.limits or self.range
        span = (high - low) or abs(high) or 1.0
        decimals = max(0, 2 - floor(log10(span)))
        for i, ((_, amount), color) in enumerate(zip(rows, colors, strict=True), 1):
            axis.barh(i, amount, left=ends[i - 1], color=color, height=0.66)
            axis.plot([ends[i]] * 2, [i - 0.33, i + 1.33], color=GREY, linewidth=0.6)
            right = amount >= 0
            axis.annotate(
                _signed(amount, decimals), (ends[i], i), (3 if right else -3, 0), textcoords="offset points", fontsize=7,
                ha="left" if right else "right", va="center",
            )  # fmt: skip
        _mark(axis, 0, self.start[1])
        _mark(axis, len(rows) + 1, self.end[1])
        axis.plot([ends[0]] * 2, [0, 1.33], color=GREY, linewidth=0.6)
        names = [escape_mathtext(shorten_middle(name)) for name, _ in [self.start, *rows, self.end]]
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.set_ylim(len(rows) + 1.6, -0.6)
        axis.set_xlim(low - MARGIN * span, high + MARGIN * span)
        axis.set_xlabel(f"output ({sign_legend()})", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)


def _signed(amount: float, decimals: int) -> str:
    """Return an amount with its sign, in the decimals that all bars of a chart have."""
    return f"{amount:+.{decimals}f}".replace("-", "−")


def _mark(axis: "Axes", row: int, value: float) -> None:
    """Draw a diamond at a value, with its number."""
    axis.plot([value], [row], marker="D", markersize=5, color="black")
    axis.annotate(f"{value:.4g}", (value, row), (6, 0), textcoords="offset points", fontsize=8, va="center", weight="bold")
