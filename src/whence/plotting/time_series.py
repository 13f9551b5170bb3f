"""Figures of time series: lines on a background coloured by relevance, heatmaps of many channels, and spectra."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from whence.plotting.bars import colors_by_sign
from whence.plotting.heatmaps import color_limit, draw_color_bar, draw_map
from whence.plotting.palettes import current_palette, sign_legend
from whence.plotting.text_escape import escape_mathtext, shorten_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

MAX_LINES = 16
MAX_BARS = 150  # in the width of a spectrum
FINE = 500  # steps from which lines are thin, so that the background is seen
MAX_CHANNEL_NAMES = 30
Ticks = Callable[[int], tuple[Sequence[float], Sequence[str]]]  # from a number of steps to places and labels


@dataclass(frozen=True)
class TimeSeries:
    """A line for each channel of one sample, on a background coloured by relevance."""

    x: Tensor  # [C, T]
    relevance: Tensor  # [C, T]
    title: str
    names: Sequence[str] = ()  # of the channels
    time: str = "step"
    ticks: Ticks | None = None
    width: float = 9.6

    @property
    def height(self) -> float:
        return 1.1 + max(1.1, 0.55 * len(self.x)) if len(self.x) > 1 else 2.4

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
            fine = x.shape[1] > FINE
            axis.plot(time.numpy(), x[c].numpy(), color="black", linewidth=0.3 if fine else 0.9, alpha=0.6 if fine else 1)
            axis.set_ylim(low - margin, high + margin)
            axis.tick_params(labelsize=6)
            name = self.names[c] if self.names else f"channel {c}" if len(x) > 1 else ""
            axis.set_ylabel(escape_mathtext(shorten_middle(name, 24)), fontsize=7, rotation=0, ha="right", va="center")
        axes[0].set_title(escape_mathtext(self.title), fontsize=9)
        _label_time(axes[-1], x.shape[1], f"{self.time} (background {sign_legend()})", self.ticks)
        draw_color_bar(part, shown, list(axes), fraction=0.02, pad=0.01)


@dataclass(frozen=True)
class SeriesHeatmap:
    """A heatmap of rows (channels, outputs, nodes) over time or columns, with the sums over rows above it, over time beside."""

    relevance: Tensor  # [C, T]
    title: str
    names: Sequence[str] = ()  # of the channels
    rows: str = "channel"
    time: str = "step"
    ticks: Ticks | None = None
    columns: str = "time"
    width: float = 9.6

    @property
    def height(self) -> float:
        return 2.2 + min(0.22 * len(self.relevance), 4.4)

    def draw(self, part: "SubFigure", width: float) -> None:
        relevance = self.relevance.detach().float().cpu()
        channels, steps = relevance.shape
        axes = part.subplots(2, 2, width_ratios=[5, 1], height_ratios=[1, 2.6], squeeze=False)
        (above, corner), (axis, beside) = axes
        corner.set_axis_off()
        above.set_title(escape_mathtext(self.title), fontsize=9)
        total, by_row = relevance.sum(0), relevance.sum(1)
        above.bar(range(steps), total.numpy(), width=1.0, color=colors_by_sign(total.tolist()))
        above.set_xlim(-0.5, steps - 0.5)
        above.set_xticks([])
        above.set_ylabel(f"sum over\n{self.rows}s", fontsize=7)
        shown = draw_map(axis, relevance, color_limit(relevance), aspect="auto")
        beside.barh(range(channels), by_row.numpy(), height=0.7, color=colors_by_sign(by_row.tolist()))
        beside.set_ylim(channels - 0.5, -0.5)
        beside.set_yticks([])
        beside.set_xlabel(f"sum over {self.columns}", fontsize=7)
        if self.names and channels <= MAX_CHANNEL_NAMES:
            axis.set_yticks(range(channels), [escape_mathtext(shorten_middle(name, 24)) for name in self.names], fontsize=7)
        else:
            axis.set_ylabel(self.rows, fontsize=8)
            axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        for one in (above, axis, beside):
            one.tick_params(labelsize=7)
        _label_time(axis, steps, f"{self.time} ({sign_legend()})", self.ticks)
        draw_color_bar(part, shown, [axis, beside], fraction=0.03, pad=0.01)


@dataclass(frozen=True)
class Spectrum:
    """The amplitude of each frequency, above its relevance."""

    frequencies: Tensor  # [K]
    amplitude: Tensor  # [K]
    relevance: Tensor  # [K]
    title: str
    unit: str
    width: float = 9.6
    height: float = 3.6

    def draw(self, part: "SubFigure", width: float) -> None:
        above, below = part.subplots(2, 1, sharex=True)
        above.set_title(escape_mathtext(self.title), fontsize=9)
        above.plot(self.frequencies, self.amplitude, color="black", linewidth=0.9)
        above.set_ylabel("amplitude", fontsize=8)
        step = float(self.frequencies[-1]) / min(len(self.frequencies), MAX_BARS) if len(self.frequencies) > 1 else 1.0
        below.bar(self.frequencies, self.relevance, width=step, color=colors_by_sign(self.relevance.tolist()))
        below.axhline(0, color="black", linewidth=0.6)
        below.set_ylabel("relevance", fontsize=8)
        below.set_xlabel(f"frequency in {self.unit} ({sign_legend()})", fontsize=8)
        for axis in (above, below):
            axis.tick_params(labelsize=7)


def _label_time(axis: "Axes", steps: int, name: str, ticks: Ticks | None) -> None:
    axis.set_xlabel(name, fontsize=8)
    if ticks is not None:
        places, labels = ticks(steps)
        axis.set_xticks(places, labels)
    axis.set_xlim(-0.5, steps - 0.5)
