"""Figure of effects before and after a change."""

from collections.abc import Sequence

from matplotlib.figure import Figure

BEFORE, AFTER = "#c44e52", "#4c72b0"


def effect_change_figure(names: Sequence[str], effects: Sequence[tuple[float | None, float | None]]) -> Figure:
    """Return a figure with a line for each name from the effect before to the effect after; None is not drawn."""
    figure = Figure(figsize=(6, 0.35 * max(len(names), 1) + 1.1), dpi=110, layout="constrained")
    axis = figure.subplots()
    for place, (before, after) in enumerate(effects):
        if before is not None and after is not None:
            axis.plot([before, after], [place, place], color="#bbbbbb", linewidth=1, zorder=1)
        for value, color, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
            if value is not None:
                axis.scatter([value], [place], color=color, s=24, label=label, zorder=2)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axis.set_xlabel("effect of the mark on the probability of the class", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_xlim(left=min(0.0, *(value for pair in effects for value in pair if value is not None), 0.0) - 0.02)
    handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if handles:
        axis.legend(
            handles.values(), handles.keys(), fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2
        )
    return figure
