"""What features do together: a matrix of their interactions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from whence.plotting.heatmaps import colour_bar, coloured, scale
from whence.plotting.text_escape import plain

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

MOST_NAMED = 40


@dataclass(frozen=True)
class Pairs:
    """Red where two features raise the output together, blue where they lower it; what each does alone on the diagonal."""

    values: Tensor  # [features, features]
    title: str
    names: Sequence[str] = ()
    width: float = 6.0
    height: float = 4.6

    def draw(self, part: "SubFigure", width: float) -> None:
        axis, values = part.subplots(), self.values.detach().float().cpu()
        limit, count = scale(values), len(values)
        shown = coloured(axis, values, limit)
        axis.set_title(plain(self.title), fontsize=9)
        if self.names and count <= MOST_NAMED:
            axis.set_xticks(range(count), list(map(plain, self.names)), fontsize=6, rotation=90)
            axis.set_yticks(range(count), list(map(plain, self.names)), fontsize=6)
        else:
            axis.tick_params(labelsize=7)
        colour_bar(part, shown, axis)
