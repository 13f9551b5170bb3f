"""Texts with relevance: each token on red for relevance, blue for counter-relevance, as strong as it is relevant."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.text import Text

    from whence.generation import Generation

RED, BLUE = (200, 20, 20), (20, 60, 200)
CHARACTERS = 92  # in a line of a picture
LINE = 0.3  # inches
Line = list[tuple[int, int]]  # (token, column)


def colour(value: float, limit: float) -> tuple[int, int, int]:
    """White for no relevance, full red or blue at the limit; by the root, or the last token would outshine all others."""
    strength = _strength(value, limit)
    return tuple(round(255 + (c - 255) * strength) for c in (RED if value > 0 else BLUE))  # type: ignore[return-value]


def ink(value: float, limit: float) -> str:
    return "white" if _strength(value, limit) > 0.6 else "black"


def _strength(value: float, limit: float) -> float:
    return min(abs(value) / limit, 1.0) ** 0.5 if limit else 0.0


def largest(relevance: Tensor) -> float:
    return float(relevance.abs().max())


def styled(labels: Sequence[str], relevance: Tensor) -> list[tuple[str, str, str, float]]:
    """Each token as (text, background, ink, relevance), for a page."""
    top, values = largest(relevance), relevance.tolist()
    return [(word, f"rgb{colour(r, top)}", ink(r, top), r) for word, r in zip(labels, values, strict=True)]


def terminal(labels: Sequence[str], relevance: Tensor) -> "Text":
    """The text as a line of the terminal."""
    from rich.text import Text

    line, top = Text(), largest(relevance)
    for word, r in zip(labels, relevance.tolist(), strict=True):
        red, green, blue = colour(r, top)
        line.append(word, f"{ink(r, top)} on rgb({red},{green},{blue})")
    return line


def lines(labels: Sequence[str]) -> list[Line]:
    """Where each token stands when the text is broken into lines of a picture."""
    found: list[Line] = [[]]
    column = 0
    for i, word in enumerate(map(shown, labels)):
        if column and column + len(word) > CHARACTERS:
            found.append([])
            column = 0
        found[-1].append((i, column))
        column += len(word)
        if labels[i].endswith("\n"):
            found.append([])
            column = 0
    return found if found[-1] or len(found) == 1 else found[:-1]


def shown(word: str) -> str:
    return word.replace("\n", "⏎").replace("\t", "⇥") or "∅"


def width(labels: Sequence[str]) -> int:
    """Characters that the longest line takes."""
    return max(column + len(shown(labels[i])) for line in lines(labels) for i, column in line)


def height(labels: Sequence[str]) -> float:
    """Inches that the text takes, with its title."""
    return LINE * len(lines(labels)) + 0.5


def draw(axis: "Axes", labels: Sequence[str], relevance: Tensor, title: str, columns: int = CHARACTERS) -> None:
    """The text into a picture."""
    broken, values, top = lines(labels), relevance.tolist(), largest(relevance)
    axis.set_xlim(0, columns)
    axis.set_ylim(len(broken), 0)
    axis.set_axis_off()
    axis.set_title(title, fontsize=9, loc="left")
    for row, line in enumerate(broken):
        for i, column in line:
            word = shown(labels[i])
            background = [c / 255 for c in colour(values[i], top)]
            axis.add_patch(Rectangle((column, row + 0.04), len(word), 0.92, color=background, linewidth=0))
            axis.text(column, row + 0.5, word.replace("$", r"\$"), family="monospace", fontsize=8.6, va="center",
                      color=ink(values[i], top))  # fmt: skip


def grid(generation: "Generation") -> Figure:
    """A row for each token a model wrote, a column for each token before it."""
    relevance = generation.relevance[:, 0].float().cpu()
    given = generation.explanations[0].tokens_of(0) or [str(int(i)) for i in generation.ids[0, :-1]]
    written = [e.target_names()[0] for e in generation.explanations]
    future = torch.arange(relevance.shape[1]) >= generation.start + torch.arange(len(relevance))[:, None]
    shares = relevance / relevance.abs().amax(1, keepdim=True).clamp(min=1e-30)
    scaled = (shares.sign() * shares.abs().sqrt()).masked_fill(future, float("nan"))
    drawn = Figure(figsize=(1.6 + 0.26 * len(given), 1.2 + 0.26 * len(written)), dpi=120, layout="constrained")
    axis = drawn.subplots()
    axis.imshow(scaled.numpy(), cmap="seismic", vmin=-1, vmax=1, aspect="auto")
    axis.set_facecolor("#eeeeee")
    axis.set_xticks(range(len(given)), [shown(t).strip() or "␣" for t in given], rotation=90, fontsize=7, family="monospace")
    axis.set_yticks(range(len(written)), [shown(t) for t in written], fontsize=7, family="monospace")
    axis.set_title(
        "relevance of each token before, for each token written (roots of shares)",
        fontsize=8,
        loc="left",
    )
    return drawn
