"""Figures of stacked panels; each panel has a size and draws itself into a subfigure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from matplotlib.figure import Figure

from whence.plotting.fonts import fallback_fonts

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

MIN_WIDTH = 4.0  # inches


class Panel(Protocol):
    """A part of a figure."""

    @property
    def width(self) -> float:
        """The preferred width in inches; all panels get the width of the widest."""
        ...

    @property
    def height(self) -> float: ...
    def draw(self, part: "SubFigure", width: float) -> None: ...


def stack_panels(panels: Sequence[Panel]) -> Figure:
    """Return a figure of panels, one below the other.

    >>> stack_panels([Heatmap(x, relevance, "a seven"), TokenText(["not", " bad"], scores, "positive")])
    """
    heights, width = [panel.height for panel in panels], max(MIN_WIDTH, *(panel.width for panel in panels))
    drawn = Figure(figsize=(width, sum(heights)), dpi=120, layout="constrained")
    parts = drawn.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    with fallback_fonts():
        for panel, part in zip(panels, parts, strict=True):
            panel.draw(part, width)
    return drawn
