"""The effects of sources on statements: bars for one statement, a matrix for several."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from whence.core.passages import shorten_line
from whence.plotting.bars import Bars
from whence.plotting.matrices import matrix_figure
from whence.plotting.text_escape import escape_mathtext

NAME_LENGTH, TITLE_LENGTH = 40, 90


def source_figure(sources: Sequence[str], statements: Sequence[str], scores: Tensor) -> Figure:
    """Return bars of the sources of one statement, or a matrix of sources by statements; scores are `[statements, K]`."""
    names = [shorten_line(source, NAME_LENGTH) for source in sources]
    if len(statements) > 1:
        rows = [escape_mathtext(name) for name in names]
        columns = [escape_mathtext(shorten_line(statement, NAME_LENGTH)) for statement in statements]
        return matrix_figure({"effect on the log-probability": scores.T.float()}, rows, columns)
    bars = Bars(scores[0].float(), shorten_line(f"sources of: {statements[0]}", TITLE_LENGTH), names)
    figure = Figure(figsize=(bars.width, bars.height), dpi=120, layout="constrained")
    bars.draw(figure.subfigures(1, 1, squeeze=False)[0, 0], bars.width)
    return figure
