"""The sources of a response: bars, a matrix, and a page on which a statement lights its sources."""

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from whence.plotting.bars import Bars
from whence.plotting.html_pages import render_page
from whence.plotting.matrices import matrix_figure
from whence.plotting.palettes import PALETTES, palette
from whence.plotting.text_escape import escape_mathtext
from whence.plotting.token_text import text_color, token_color

if TYPE_CHECKING:
    from whence.contexts.sources import SourceAttribution

NAME_LENGTH, TITLE_LENGTH = 40, 90


def source_figure(found: "SourceAttribution") -> Figure:
    """Return bars of the sources of one statement, or a matrix of sources by statements."""
    names = [_shortened(f"{source.name}: {source.text}", NAME_LENGTH) for source in found.sources]
    if len(found) > 1:
        rows = [escape_mathtext(name) for name in names]
        return matrix_figure({"effect on the log-probability": found.scores.T.float()}, rows, "statement")
    bars = Bars(found.scores[0].float(), _shortened(f"sources of: {found.statements[0].text}", TITLE_LENGTH), names)
    figure = Figure(figsize=(bars.width, bars.height), dpi=120, layout="constrained")
    bars.draw(figure.subfigures(1, 1, squeeze=False)[0, 0], bars.width)
    return figure


def source_page(found: "SourceAttribution") -> str:
    """Return the page: the response, whose statements are buttons, beside the sources."""
    statements = []
    for i, statement in enumerate(found.statements):
        top = float(found.scores[i].abs().max())
        effects = []
        for score in found.scores[i].tolist():
            backgrounds = []
            for name in PALETTES:
                with palette(name):
                    backgrounds.append(f"rgb{token_color(score, top)}")
            effects.append({"score": f"{score:+.2f}", "backgrounds": backgrounds, "color": text_color(score, top)})
        best, _ = found.ranking(i)[0]
        statements.append(
            {
                "text": statement.text, "effects": effects, "support": f"{float(found.support[i]):+.2f}",
                "log_probability": f"{statement.log_probability:.2f}", "best": best.name,
            }
        )  # fmt: skip
    return render_page("sources.html", found=found, statements=statements)


def _shortened(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
