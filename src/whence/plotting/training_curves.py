"""Curves of the statistics of explanations over the epochs of a training."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLUMNS = 3
SHARES = ("accuracy", "confidence", "positive_share", "gini", "largest_effect")  # drawn from 0 to 1
MARK_COLOR = "#c44e52"


def training_figure(curves: Mapping[str, Sequence[tuple[int, float]]], marked: int | None = None) -> Figure:
    """Return a figure with a panel for each statistic, and a vertical line at the marked epoch."""
    rows = max(1, -(-len(curves) // COLUMNS))
    figure = Figure(figsize=(3 * COLUMNS, 2.1 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis, (name, points) in zip(axes, curves.items(), strict=False):
        axis.plot(
            [epoch for epoch, _ in points], [value for _, value in points], marker="o", markersize=3, linewidth=1, clip_on=False
        )
        axis.yaxis.get_offset_text().set_fontsize(7)
        if all(float(value).is_integer() for _, value in points) and name not in SHARES:
            axis.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.set_xlabel("epoch", fontsize=7)
        axis.tick_params(labelsize=7)
        if all(0 <= value <= 1 for _, value in points) and name in SHARES:
            axis.set_ylim(-0.03, 1.03)
        else:
            axis.set_ylim(bottom=min(0, *(value for _, value in points)))
        axis.xaxis.get_major_locator().set_params(integer=True)
        if marked is not None:
            axis.axvline(marked, color=MARK_COLOR, linewidth=1, linestyle="--", label="first suspicious")
    if marked is not None:
        axes[0].legend(fontsize=7, frameon=False)
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    return figure
