"""Bar charts of the relevance of the features of a vector."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator
from torch import Tensor

from whence.plotting.palettes import current_palette, sign_legend
from whence.plotting.text_escape import escape_mathtext, shorten_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

MAX_BARS = 20


def colors_by_sign(values: Iterable[float]) -> list[Sequence[float]]:
    """Return red for each positive value, blue for the others, or the colours of the current palette."""
    pair = current_palette()
    return [[c / 255 for c in (pair.positive if value > 0 else pair.negative)] for value in values]


@dataclass(frozen=True)
class Bars:
    """A bar for each feature in order; with names, the features of largest magnitude and the sum of the others."""

    values: Tensor  # [features]
    title: str
    names: Sequence[str] = ()
    width: float = 7.0

    @property
    def height(self) -> float:
        return 0.9 + 0.2 * min(len(self.values), MAX_BARS + 1) if self.names else 2.6

    def draw(self, part: "SubFigure", width: float) -> None:
        axis, values = part.subplots(), self.values.detach().float().cpu()
        axis.set_title(escape_mathtext(self.title), fontsize=9)
        if self.names:
            self._draw_named(axis, values)
            return
        axis.bar(range(len(values)), values.numpy(), color=colors_by_sign(values.tolist()))
        axis.axhline(0, color="black", linewidth=0.6)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("feature", fontsize=8)
        axis.set_ylabel("relevance", fontsize=8)

    def _draw_named(self, axis: "Axes", values: Tensor) -> None:
        order = values.abs().argsort(descending=True, stable=True)
        shown, rest = order[:MAX_BARS], order[MAX_BARS:]
        amounts, labels = values[shown].tolist(), [escape_mathtext(shorten_middle(str(self.names[int(i)]))) for i in shown]
        if len(rest):
            amounts, labels = [*amounts, float(values[rest].sum())], [*labels, f"{len(rest)} others"]
        axis.barh(range(len(amounts)), amounts, color=colors_by_sign(amounts))
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set_yticks(range(len(labels)), labels, fontsize=7)
        axis.set_ylim(len(labels) - 0.5, -0.5)
        axis.set_xlabel(f"relevance ({sign_legend()})", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
