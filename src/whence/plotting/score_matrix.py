"""Matrices of scores: methods by tasks, colored from chance to the best method."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

CELL, MARGIN, LETTER = 0.28, 2.2, 0.075  # inches


def score_matrix_figure(
    scores: Sequence[Sequence[float]], marked: Sequence[Sequence[bool]], rows: Sequence[str], columns: Sequence[str]
) -> Figure:
    """Return a figure of scores in [0, 1] with a dot in each marked cell; cells without a score are gray.

    Args:
        scores: Score of each row in each column; NaN for none. Scores below 0 are drawn as 0.
        marked: Whether a cell has a dot.
        rows: Names of the rows.
        columns: Names of the columns.
    """
    values = np.ma.masked_invalid(np.asarray(scores, dtype=float))
    below = LETTER * max(map(len, columns))
    size = (CELL * len(columns) + MARGIN + 1.2, CELL * len(rows) + below + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    shown = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="equal")
    i, j = np.nonzero(np.asarray(marked))
    axes.plot(j, i, ".", color="black", markersize=6)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    bar = figure.colorbar(shown, ax=axes, shrink=0.6)
    bar.set_ticks([0, 1], labels=["random", "best"])
    return figure
