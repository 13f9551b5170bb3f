"""Figures of a mark: samples without and with it."""

from matplotlib.figure import Figure
from torch import Tensor

from whence.plotting.heatmaps import hide_ticks, to_picture

WITHOUT, WITH = "#888888", "#c44e52"


def mark_figure(plain: Tensor, marked: Tensor) -> Figure:
    """Return a figure of samples without and with a mark: pictures in two rows, series as two lines.

    Args:
        plain: Pictures `[k, C, H, W]` or series `[k, C, T]`.
        marked: The same samples with the mark.
    """
    count = len(plain)
    if plain.dim() == 3:
        figure = Figure(figsize=(2.2 * count, 1.3), dpi=110, layout="constrained")
        for axis, x, y in zip(figure.subplots(1, count, squeeze=False)[0], plain, marked, strict=True):
            axis.plot(y[0], color=WITH, linewidth=0.8, label="with")
            axis.plot(x[0], color=WITHOUT, linewidth=0.8, label="without")
            axis.tick_params(labelsize=6)
        figure.axes[0].legend(fontsize=6, frameon=False)
        return figure
    figure = Figure(figsize=(1.05 * count + 0.5, 2.3), dpi=110, layout="constrained")
    for line, samples, word in zip(figure.subplots(2, count, squeeze=False), (plain, marked), ("without", "with"), strict=True):
        for axis, x in zip(line, samples, strict=True):
            picture = to_picture(x)
            axis.imshow(picture.numpy(), cmap="gray" if picture.ndim == 2 else None, interpolation="nearest")
            hide_ticks(axis, "")
        line[0].set_ylabel(word, fontsize=8)
    return figure
