"""Samples beside their adversarial twins, each with its heatmap."""

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from whence.show.heatmaps import COLOURS, MOST_SAMPLES, as_map, as_picture, scale

if TYPE_CHECKING:
    from whence.explanation import Explanation
    from whence.robustness.explanations import AttackExplained


def figure(pair: "AttackExplained") -> Figure:
    """A row for each sample: the sample, its heatmap, its twin, the twin's heatmap, on one scale of colours a heatmap."""
    count = min(len(pair), MOST_SAMPLES)
    drawn = Figure(figsize=(10.4, 3.0 * count), dpi=120, layout="constrained")
    for i, axes in enumerate(drawn.subplots(count, 4, squeeze=False)):
        _draw(axes[:2], pair.before, i, "")
        far = float(pair.attacked.distances()[i])
        _draw(axes[2:], pair.after, i, f"{pair.moved[i]:.0%} of the relevance for {pair.before.target_names()[i]} moved")
        axes[2].set_title(f"adversarial twin, within {far:.3g}", fontsize=9)
        for axis in axes:
            axis.set_xticks([])
            axis.set_yticks([])
    return drawn


def _draw(axes, explanation: "Explanation", i: int, note: str) -> None:
    heat = as_map(explanation.relevance[i])
    limit = scale(heat)
    axes[0].imshow(as_picture(explanation.inputs[i]).numpy(), cmap="gray")
    axes[0].set_title("input", fontsize=9)
    axes[1].imshow(heat.numpy(), cmap=COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
    axes[1].set_title(f"why {explanation.target_names()[i]}:  f = {explanation.output[i]:.4g}", fontsize=9)
    axes[1].set_xlabel(note, fontsize=8)
