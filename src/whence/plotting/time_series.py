"""Figures of time series on a background coloured by relevance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from whence.plotting.heatmaps import color_limit, draw_color_bar
from whence.plotting.palettes import current_palette
from whence.plotting.text_escape import escape_mathtext

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

MAX_CHANNELS = 16


def is_series(x: Tensor) -> bool:
    """Return whether `[C, T]` is drawn as C lines over time rather than as an image."""
    return x.dim() == 2 and len(x) <= MAX_CHANNELS and x.shape[1] >= 3 * len(x)


@dataclass(frozen=True)
class TimeSeries:
    """A line for each channel of one sample, on a background coloured by relevance."""

    x: Tensor  # [C, T]
    relevance: Tensor  # [C, T]
    title: str
    names: Sequence[str] = ()  # of the channels
    width: float = 9.6

    @property
    def height(self) -> float:
        return 0.8 + max(1.1, 0.55 * len(self.x)) if len(self.x) > 1 else 2.2

    def draw(self, part: "SubFigure", width: float) -> None:
        x, relevance = (t.detach().float().cpu() for t in (self.x, self.relevance))
        limit, time = color_limit(relevance), torch.arange(x.shape[1])
        axes = part.subplots(len(x), 1, sharex=True, squeeze=False)[:, 0]
        for c, axis in enumerate(axes):
            low, high = float(x[c].min()), float(x[c].max())
            margin = 0.08 * (high - low) or 0.5
            extent = (-0.5, x.shape[1] - 0.5, low - margin, high + margin)
            shown = axis.imshow(
                relevance[c][None].numpy(), cmap=current_palette().map, vmin=-limit, vmax=limit, aspect="auto", extent=extent,
                interpolation="nearest", alpha=0.75,
            )  # fmt: skip
            axis.plot(time.numpy(), x[c].numpy(), color="black", linewidth=0.9)
            axis.set_ylim(low - margin, high + margin)
            axis.tick_params(labelsize=6)
            axis.set_ylabel(escape_mathtext(self.names[c]) if self.names else "", fontsize=7, rotation=0, ha="right")
        axes[0].set_title(escape_mathtext(self.title), fontsize=9)
        draw_color_bar(part, shown, list(axes), fraction=0.02, pad=0.01)
