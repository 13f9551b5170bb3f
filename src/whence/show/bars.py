"""Relevance of the features of a plain vector, as bars."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

RED, BLUE = "#c00000", "#0000c0"


def colours(values: Tensor) -> list[str]:
    """Red for relevance, blue for counter-relevance."""
    return [RED if value > 0 else BLUE for value in values.tolist()]


@dataclass(frozen=True)
class Bars:
    values: Tensor  # [features]
    title: str
    width: float = 7.0
    height: float = 2.6

    def draw(self, part: "SubFigure", width: float) -> None:
        axis, values = part.subplots(), self.values.detach().float().cpu()
        axis.bar(range(len(values)), values.numpy(), color=colours(values))
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_title(self.title, fontsize=9)
        axis.set_xlabel("feature", fontsize=8)
        axis.set_ylabel("relevance", fontsize=8)
