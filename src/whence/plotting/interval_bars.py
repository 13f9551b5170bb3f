"""Bars with intervals, in groups: a panel for each measure, a row for each sample."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from whence.plotting.palettes import current_palette
from whence.plotting.text_escape import escape_mathtext


def interval_bars(groups: Mapping[str, Sequence[tuple[Any, str]]], names: Sequence[str]) -> Figure:
    """Return a figure of shares with intervals: of each group a panel, in it pairs of bars for each name.

    Args:
        groups: By title, pairs of a share (`value`, `low`, `high`, each `[names]`) and its label.
        names: Names of the rows.
    """
    drawn = Figure(figsize=(9.6, 1.2 + 0.5 * len(names)), dpi=120, layout="constrained")
    axes = drawn.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    colors = [[c / 255 for c in current_palette().positive], "0.6"]
    for axis, (title, shares) in zip(axes, groups.items(), strict=True):
        for k, (share, label) in enumerate(shares):
            places = [row + 0.38 * (k - 0.5) for row in range(len(names))]
            value, low, high = (100 * t for t in (share.value, share.low, share.high))
            errors = [(value - low).tolist(), (high - value).tolist()]
            axis.barh(places, value.tolist(), 0.36, xerr=errors, color=colors[k % 2], label=label, capsize=2)
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("% of the output", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].set_yticks(range(len(names)), [escape_mathtext(name) for name in names], fontsize=7)
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=7)
    return drawn
