"""Figures of clusters of explanations: mean heatmaps next to samples, and two-dimensional embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from whence.plotting.heatmaps import color_limit, draw_overlay, hide_ticks, sum_channels, to_picture
from whence.plotting.palettes import current_palette

MAX_COLUMNS = 16


@dataclass(frozen=True)
class ClusterRow:
    """The mean of |R|, the mask of suspicious positions, and samples with their image, if there is one, and heatmap."""

    title: str
    mean: Tensor
    mask: Tensor | None
    samples: Sequence[tuple[Tensor | None, Tensor]]


def cluster_rows(rows: Sequence[ClusterRow]) -> Figure:
    """Return a figure with a row for each cluster: the mean, suspicious positions outlined, then samples with heatmaps."""
    columns = 1 + min(MAX_COLUMNS, max(len(row.samples) for row in rows))
    drawn = Figure(figsize=(1.05 * columns + 0.8, 1.35 * len(rows) + 0.1), dpi=110, layout="constrained")
    axes = drawn.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        _mean(line[0], row)
        for axis, (picture, heat) in zip(line[1:], row.samples, strict=False):
            _sample(axis, picture, heat)
        for axis in line[1 + len(row.samples) :]:
            axis.set_axis_off()
    return drawn


def embedding_scatter(flat: Tensor, labels: Tensor, eigenvalues: Tensor) -> Figure:
    """Return a scatter plot of the embedding, coloured by cluster, next to the eigenvalues."""
    drawn = Figure(figsize=(6.4, 2.6), dpi=110, layout="constrained")
    left, right = drawn.subplots(1, 2)
    palette = colormaps["tab10"]
    left.scatter(flat[:, 0], flat[:, 1], s=6, c=[palette(int(k) % 10) for k in labels])
    hide_ticks(left, "explanations")
    count = int(labels.max()) + 1
    right.plot(range(1, len(eigenvalues) + 1), eigenvalues, ".", color="#888888")
    right.plot(range(1, count + 1), eigenvalues[:count], "o", color="#c00000", markersize=4)
    right.set_title(f"eigenvalues: {count} clusters", fontsize=9)
    right.tick_params(labelsize=7)
    return drawn


def _mean(axis, row: ClusterRow) -> None:
    heat = sum_channels(row.mean)
    axis.imshow(heat.numpy(), cmap="Reds", vmin=0, interpolation="nearest", aspect="auto" if heat.shape[0] == 1 else "equal")
    if row.mask is not None and row.mask.dim() == 2:
        axis.contour(row.mask.float().numpy(), [0.5], colors="#0040c0", linewidths=1)
    hide_ticks(axis, "")
    axis.set_ylabel(row.title, fontsize=7, rotation=0, ha="right", va="center")


def _sample(axis, picture: Tensor | None, heat: Tensor) -> None:
    hide_ticks(axis, "")
    heat = sum_channels(heat)
    limit = color_limit(heat)
    if picture is None:
        axis.imshow(
            heat.numpy(), cmap=current_palette().map, vmin=-limit, vmax=limit, aspect="auto" if heat.shape[0] == 1 else "equal"
        )
        return
    shown = to_picture(picture)
    if shown.shape[:2] != heat.shape:
        size = shown.shape[:2]
        heat = torch.nn.functional.interpolate(heat[None, None], tuple(size), mode="area")[0, 0]
        limit = color_limit(heat)
    draw_overlay(axis, shown, heat, limit)
