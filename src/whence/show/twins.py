"""Samples beside their twins, each with its heatmap."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from whence.show.heatmaps import COLOURS, MOST_SAMPLES, as_map, as_picture, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from whence.explanation import Explanation


def figure(before: "Explanation", after: "Explanation", titles: Sequence[str], moved: Sequence[float]) -> Figure:
    """A row for each of the first samples: the sample, its heatmap, its twin under its title, the twin's heatmap."""
    count = min(len(before), MOST_SAMPLES)
    drawn = Figure(figsize=(10.4, 3.0 * count), dpi=120, layout="constrained")
    for i, axes in enumerate(drawn.subplots(count, 4, squeeze=False)):
        _draw(axes[:2], before, i, "input")
        _draw(axes[2:], after, i, titles[i])
        axes[1].set_xlabel(f"{moved[i]:.0%} of this lies elsewhere for the twin", fontsize=8)
    return drawn


def _draw(axes: "Sequence[Axes]", explanation: "Explanation", i: int, title: str) -> None:
    heat = as_map(explanation.relevance[i])
    limit = scale(heat)
    axes[0].imshow(as_picture(explanation.inputs[i]).numpy(), cmap="gray")
    axes[1].imshow(heat.numpy(), cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
    for axis, heading in zip(
        axes, (title, f"why {explanation.target_names()[i]}:  f = {explanation.output[i]:.4g}"), strict=True
    ):
        axis.set_title(heading, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
