"""Figures of the interactions of features as a matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from whence.plotting.heatmaps import color_limit, draw_color_bar, draw_map
from whence.plotting.text_escape import escape_mathtext, shorten_middle

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

MAX_NAMES = 40
NEGLIGIBLE = 0.01  # of the limit of the colours
MAX_NUMBERS = 12  # features up to which each cell has its number


@dataclass(frozen=True)
class InteractionMatrix:
    """A matrix of interactions: red if two features jointly raise the output, blue if they lower it."""

    values: Tensor  # [features, features], the effect of single features on the diagonal
    title: str
    names: Sequence[str] = ()
    width: float = 6.0
    height: float = 4.6

    def draw(self, part: "SubFigure", width: float) -> None:
        axis, values = part.subplots(), self.values.detach().float().cpu()
        count = len(values)
        pairs = values - values.diag().diag()  # single effects would hide them
        limit = color_limit(pairs if bool(pairs.any()) else values)
        shown = draw_map(axis, values, limit)
        axis.set_title(escape_mathtext(self.title), fontsize=9)
        if self.names and count <= MAX_NAMES:
            labels = [escape_mathtext(shorten_middle(name, 24)) for name in self.names]
            size = 8 if count <= 20 else 6
            axis.set_xticks(range(count), labels, fontsize=size, rotation=40 if count <= 20 else 90, ha="right")
            axis.set_yticks(range(count), labels, fontsize=size)
        else:
            axis.tick_params(labelsize=7)
        if count <= MAX_NUMBERS:
            for i, row in enumerate(values.tolist()):
                for j, value in enumerate(row):
                    color = "white" if abs(value) > 0.6 * limit else "black"
                    number = f"{value:.2g}" if abs(value) > NEGLIGIBLE * limit else "0"
                    axis.text(j, i, number, ha="center", va="center", fontsize=7, color=color)
        draw_color_bar(part, shown, axis)
