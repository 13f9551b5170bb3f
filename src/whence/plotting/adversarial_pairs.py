"""Samples beside their twins, each with its heatmap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from torch import Tensor

from whence.plotting.heatmaps import color_limit, draw_map, hide_ticks, sum_channels, to_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class PairMember:
    """One of the two: what it looks like, and why the network says what it says of it."""

    x: Tensor
    title: str
    relevance: Tensor
    reason: str

    def draw(self, axes: "Sequence[Axes]") -> None:
        heat = sum_channels(self.relevance)
        limit = color_limit(heat)
        axes[0].imshow(to_picture(self.x).numpy(), cmap="gray")
        draw_map(axes[1], heat, limit)
        hide_ticks(axes[0], self.title)
        hide_ticks(axes[1], self.reason)


def pairs_figure(pairs: Sequence[tuple[PairMember, PairMember]], notes: Sequence[str]) -> Figure:
    """A row for each pair: a sample, its heatmap, its twin, the twin's heatmap; a note below."""
    drawn = Figure(figsize=(10.4, 3.0 * len(pairs)), dpi=120, layout="constrained")
    for (before, after), note, axes in zip(pairs, notes, drawn.subplots(len(pairs), 4, squeeze=False), strict=True):
        before.draw(axes[:2])
        after.draw(axes[2:])
        axes[1].set_xlabel(note, fontsize=8)
    return drawn
