"""Figures of samples next to their adversarial examples, each with its heatmap."""

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
    """A sample or its adversarial example, with its heatmap and their titles."""

    x: Tensor
    title: str
    relevance: Tensor
    reason: str

    def draw(self, axes: "Sequence[Axes]") -> None:
        """Draw the image and its heatmap into two axes."""
        heat = sum_channels(self.relevance)
        limit = color_limit(heat)
        axes[0].imshow(to_picture(self.x).numpy(), cmap="gray")
        draw_map(axes[1], heat, limit)
        hide_ticks(axes[0], self.title)
        hide_ticks(axes[1], self.reason)


def pairs_figure(pairs: Sequence[tuple[PairMember, PairMember]], notes: Sequence[str]) -> Figure:
    """Return a figure with a row for each pair: sample, heatmap, adversarial example, heatmap; a note below."""
    drawn = Figure(figsize=(10.4, 3.0 * len(pairs)), dpi=120, layout="constrained")
    for (before, after), note, axes in zip(pairs, notes, drawn.subplots(len(pairs), 4, squeeze=False), strict=True):
        before.draw(axes[:2])
        after.draw(axes[2:])
        axes[1].set_xlabel(note, fontsize=8)
    return drawn
