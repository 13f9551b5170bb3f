"""Texts with relevance: tokens on a background of red for relevance, blue for counter-relevance."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING
from unicodedata import combining, east_asian_width

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from whence.plotting.fonts import escape_missing, fallback_fonts, installed_fallbacks
from whence.plotting.heatmaps import color_scale, draw_color_bar
from whence.plotting.palettes import PALETTES, Color, current_palette, palette, sign_legend
from whence.plotting.text_escape import escape_mathtext

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure
    from rich.text import Text

MIN_RUN = 6  # equal tokens that are merged
CHARACTERS = 128  # in a line of a figure
CHARACTER, LINE = 9.6 / CHARACTERS, 0.25  # inches
FONT_SIZE = 0.98 * 72 * CHARACTER / 0.602  # points: a character of the monospaced font is 0.602 of its size wide
Line = list[tuple[int, int]]  # (token, column)


def token_color(value: float, limit: float) -> Color:
    """Return the colour between white at 0 and full red or blue at the limit, scaled by the square root."""
    strength, pair = _strength(value, limit), current_palette()
    full = pair.positive if value > 0 else pair.negative
    return tuple(round(255 + (c - 255) * strength) for c in full)  # type: ignore[return-value]


def text_color(value: float, limit: float) -> str:
    """Return "white" or "black", whichever is readable on the background."""
    return "white" if _strength(value, limit) > 0.6 else "black"


def _strength(value: float, limit: float) -> float:
    return min(abs(value) / limit, 1.0) ** 0.5 if limit else 0.0


def max_abs(relevance: Tensor) -> float:
    """Return the largest magnitude."""
    return float(relevance.abs().max())


def styled_tokens(labels: Sequence[str], relevance: Tensor) -> list[tuple[str, Sequence[str], str, float]]:
    """Return each token as (text, background in each palette, text colour, relevance), for HTML pages."""
    top, values = max_abs(relevance), relevance.tolist()
    backgrounds = []
    for name in PALETTES:
        with palette(name):
            backgrounds.append([f"rgb{token_color(r, top)}" for r in values])
    return [
        (word, of_token, text_color(r, top), r)
        for word, of_token, r in zip(labels, zip(*backgrounds, strict=True), values, strict=True)
    ]


def merge_runs(labels: Sequence[str], relevance: Tensor) -> tuple[list[str], Tensor]:
    """Merge long runs of one token, such as the placeholders of a photo, and the parts of one character; sum their relevance.

    >>> merge_runs(["<image>"] * 576 + [" cat"], relevance)[0]
    ['<image>×576', ' cat']
    """
    labels, relevance = _whole_characters(labels, relevance.flatten())
    runs = [(word, len(list(run))) for word, run in groupby(labels)]
    parts = relevance.flatten().split([n for _, n in runs])
    words = [[f"{word}×{n}"] if n >= MIN_RUN else [word] * n for word, n in runs]
    sums = [part.sum()[None] if len(part) >= MIN_RUN else part for part in parts]
    return [word for run in words for word in run], torch.cat(sums)


def _whole_characters(labels: Sequence[str], relevance: Tensor) -> tuple[list[str], Tensor]:
    """Merge each token without text, as a part of a character is, with the next."""
    if all(labels):
        return list(labels), relevance
    ends = [i for i, word in enumerate(labels) if word or i + 1 == len(labels)]
    parts = relevance.split([end - start for start, end in pairwise([-1, *ends])])
    return [labels[end] for end in ends], torch.stack([part.sum() for part in parts])


def terminal_text(labels: Sequence[str], relevance: Tensor) -> "Text":
    """Return the coloured text for the terminal."""
    from rich.text import Text

    line, top = Text(), max_abs(relevance)
    for word, r in zip(labels, relevance.tolist(), strict=True):
        red, green, blue = token_color(r, top)
        line.append(word, f"{text_color(r, top)} on rgb({red},{green},{blue})")
    return line


def wrap_lines(labels: Sequence[str]) -> list[Line]:
    """Return the tokens of each line with their columns, after wrapping."""
    found: list[Line] = [[]]
    column = 0
    for i, word in enumerate(map(printable, labels)):
        if column and column + cells(word) > CHARACTERS:
            found[-1], moved = _split_before_word(found[-1], labels, i)
            found.append([])
            column = 0
            for j in moved:
                found[-1].append((j, column))
                column += cells(printable(labels[j]))
        found[-1].append((i, column))
        column += cells(word)
        if labels[i].endswith("\n"):
            found.append([])
            column = 0
    return found if found[-1] or len(found) == 1 else found[:-1]


def _split_before_word(line: Line, labels: Sequence[str], following: int) -> tuple[Line, list[int]]:
    """Return a line without the tokens that begin the word which the following token continues, and these tokens."""
    start = len(line)
    while start > 1 and not labels[line[start][0] if start < len(line) else following][:1].isspace():
        start -= 1
    if start <= len(line) // 2:  # one long word
        return line, []
    return line[:start], [i for i, _ in line[start:]]


def printable(word: str) -> str:
    """Return a token with visible whitespace, and characters that no font has as their codes."""
    return escape_missing(word.replace("\n", "⏎").replace("\t", "⇥")) or "∅"


def cells(word: str) -> int:
    """Return the width of a text in characters of a monospaced font, of which Chinese and Japanese ones take two."""
    return sum(2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1 for c in word)


@dataclass(frozen=True)
class TokenText:
    """A panel of one text of one sample."""

    labels: Sequence[str]
    relevance: Tensor  # [tokens]
    title: str

    @property
    def width(self) -> float:
        longest = max(column + cells(printable(self.labels[i])) for line in wrap_lines(self.labels) for i, column in line)
        return CHARACTER * longest

    @property
    def height(self) -> float:
        return LINE * len(wrap_lines(self.labels)) + 0.7

    def draw(self, part: "SubFigure", width: float) -> None:
        axis, broken, values = part.subplots(), wrap_lines(self.labels), self.relevance.detach().flatten().float().cpu()
        top = max_abs(values)
        axis.set_xlim(0, width / CHARACTER)
        axis.set_ylim(len(broken), 0)
        axis.set_axis_off()
        axis.set_title(escape_mathtext(f"{self.title}\n{sign_legend()}"), fontsize=9, loc="left")
        for row, line in enumerate(broken):
            for i, column in line:
                word, value = printable(self.labels[i]), float(values[i])
                background = [c / 255 for c in token_color(value, top)]
                axis.add_patch(Rectangle((column, row + 0.04), cells(word), 0.92, color=background, linewidth=0))
                axis.text(column, row + 0.5, escape_mathtext(word), family=["monospace", *installed_fallbacks()],
                          fontsize=FONT_SIZE, va="center", color=text_color(value, top))  # fmt: skip


MOST_TOKENS = 80  # of each side of a grid, beyond which their names are too small to read


def token_grid(written: Sequence[str], given: Sequence[str], relevance: Tensor, title: str) -> Figure:
    """Return a heatmap of generated tokens (rows) by context tokens (columns), scaled by row and square root; NaN is blank."""
    shares = relevance / relevance.nan_to_num().abs().amax(1, keepdim=True).clamp(min=1e-30)
    scaled = shares.sign() * shares.abs().sqrt()
    beside, below = (0.7 + 0.07 * max(map(len, names)) for names in (written, given))  # inches for the names
    size = max(beside + 0.26 * len(given), 0.07 * len(title)), below + 0.26 * len(written)
    drawn = Figure(figsize=(size[0] + 0.9, size[1] + 0.2), dpi=120, layout="constrained")
    with fallback_fonts():
        _draw_grid(drawn, written, given, scaled, title)
    return drawn


def _draw_grid(drawn: Figure, written: Sequence[str], given: Sequence[str], scaled: Tensor, title: str) -> None:
    axis, family = drawn.subplots(), ["monospace", *installed_fallbacks()]
    axis.imshow(scaled.numpy(), cmap=current_palette().map, vmin=-1, vmax=1, aspect="auto")
    axis.set_facecolor("#eeeeee")
    axis.set_xticks(
        range(len(given)),
        [escape_mathtext(printable(t).strip() or "␣") for t in given],
        rotation=90,
        fontsize=7,
        family=family,
    )
    axis.set_yticks(range(len(written)), [escape_mathtext(printable(t)) for t in written], fontsize=7, family=family)
    axis.set_xlabel("preceding", fontsize=8)
    axis.set_ylabel("generated", fontsize=8)
    axis.set_title(escape_mathtext(title), fontsize=8, loc="left")
    draw_color_bar(drawn, color_scale(1.0), axis, fraction=0.02)
