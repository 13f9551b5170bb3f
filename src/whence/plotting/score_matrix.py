"""Matrices of scores: methods by tasks, colored from chance to the best method."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from whence.core.passages import shorten_line

CELL, MARGIN, LETTER = 0.28, 2.2, 0.085  # inches
LONGEST = 48  # letters of a name
BELOW, NONE = "#c44e52", "0.85"  # colors of scores below 0 and of no score
TOLERANCE = 0.02  # scores that are below 0 by less are drawn as 0


def score_matrix_figure(
    scores: Sequence[Sequence[float]], marked: Sequence[Sequence[bool]], rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """Return a figure of scores up to 1 with a dot in each marked cell; those below 0 are red, cells without a score gray.

    Args:
        scores: Score of each row in each column; NaN for none.
        marked: Whether a cell has a dot.
        rows: Names of the rows.
        columns: Names of the columns.
    """
    values = np.ma.masked_invalid(np.asarray(scores, dtype=float))
    values = np.ma.where((values < 0) & (values > -TOLERANCE), 0, values)
    rows, columns = ([shorten_line(name, LONGEST) for name in names] for names in (rows, columns))
    below = LETTER * max(map(len, columns))
    size = (CELL * len(columns) + MARGIN + 1.2, CELL * len(rows) + below + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor(NONE)
    colors = matplotlib.colormaps["viridis"].with_extremes(under=BELOW)
    shown = axes.imshow(values, vmin=0, vmax=1, cmap=colors, aspect="equal")
    i, j = np.nonzero(np.asarray(marked))
    axes.plot(j, i, ".", color="black", markersize=6)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, extend="min")
    bar.set_ticks([0, 1], labels=["random", "best"])
    return figure
