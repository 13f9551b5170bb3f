"""Figures of the channels most relevant for an output, with heatmaps, reference samples and prototypes."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor

from whence.plotting.heatmaps import color_limit, draw_map, draw_overlay, hide_ticks, sum_channels, to_picture


@dataclass(frozen=True)
class ConceptRow:
    """A channel: its heatmap, crops of reference samples with their heatmaps, and a prototype."""

    title: str
    relevance: Tensor
    references: Sequence[tuple[Tensor, Tensor]]
    prototype: Tensor | None = None


def concept_figure(x: Tensor, relevance: Tensor, title: str, layer: str, rows: Sequence[ConceptRow]) -> Figure:
    """Return a figure of the image with its total relevance, then one row for each channel."""
    references = max(len(row.references) for row in rows)
    columns = max(2, 1 + references + any(row.prototype is not None for row in rows))
    drawn = Figure(figsize=(1.75 * columns + 1.2, 1.85 * (len(rows) + 1)), dpi=120, layout="constrained")
    axes = drawn.subplots(len(rows) + 1, columns, squeeze=False)
    picture, heat = to_picture(x), sum_channels(relevance)
    axes[0, 0].imshow(picture.numpy(), cmap="gray")
    hide_ticks(axes[0, 0], "input")
    limit = color_limit(heat)
    draw_map(axes[0, 1], heat, limit)
    hide_ticks(axes[0, 1], title)
    for axis in axes[0, 2:]:
        axis.set_axis_off()
    axes[0, 0].set_ylabel(f"total\n\nbelow: channels\nof {layer}", fontsize=8, rotation=0, ha="right", va="center")
    for number, (line, row) in enumerate(zip(axes[1:], rows, strict=True)):
        heat = sum_channels(row.relevance)
        draw_overlay(line[0], picture, heat, color_limit(heat))
        hide_ticks(line[0], "relevant positions" if number == 0 else "")
        line[0].set_ylabel(row.title, fontsize=8, rotation=0, ha="right", va="center")
        for i, (axis, (crop, _)) in enumerate(zip(line[1:], row.references, strict=False)):
            _framed(axis, crop)
            hide_ticks(axis, "most relevant in" if number == 0 and i == 0 else "")
        if columns == 2 and not row.references and row.prototype is None:
            draw_map(line[1], heat, color_limit(heat))
            hide_ticks(line[1], "relevance" if number == 0 else "")
            continue
        used = 1 + len(row.references)
        if row.prototype is not None:
            line[used].imshow(to_picture(row.prototype).numpy(), cmap="gray")
            hide_ticks(line[used], "prototype" if number == 0 else "")
            used += 1
        for axis in line[used:]:
            axis.set_axis_off()
    return drawn


def _framed(axis, crop: Tensor) -> None:
    picture = to_picture(crop)
    axis.imshow(picture.numpy(), cmap="gray", interpolation="nearest" if max(picture.shape[:2]) < 64 else None)
