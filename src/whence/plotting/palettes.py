"""Colour palettes of relevance: red and blue, or a pair that is safe for colour-blind readers."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from whence.core.argument_checks import check_arguments
from whence.errors import RuleError, suggest

Color = tuple[int, int, int]
GREY = "#9a9a9a"  # of what speaks neither for nor against


@dataclass(frozen=True)
class Palette:
    """Colours of maps (a colormap of matplotlib) and of tokens and bars."""

    map: str
    positive: Color
    negative: Color
    names: tuple[str, str]  # of the colours of relevance for and against the output


PALETTES = {
    "red-blue": Palette("seismic", (200, 20, 20), (20, 60, 200), ("red", "blue")),
    "orange-purple": Palette("PuOr_r", (179, 88, 6), (84, 39, 136), ("orange", "purple")),
}
_in_use: ContextVar[Palette] = ContextVar("palette", default=PALETTES["red-blue"])


@check_arguments
@contextmanager
def palette(name: str) -> Iterator[None]:
    """Draw figures of relevance in another colour palette within a `with` block.

    >>> with whence.palette("orange-purple"):
    ...     e.save("heatmap.png")

    HTML pages contain both palettes, and readers can switch between them.

    Args:
        name: "red-blue", the default of all figures, or "orange-purple", which is safe for colour-blind readers.

    Raises:
        RuleError: There is no palette of this name.
    """
    if name not in PALETTES:
        raise RuleError(f"no palette {name!r}; choose from {', '.join(PALETTES)}{suggest(name, PALETTES)}")
    before = _in_use.set(PALETTES[name])
    try:
        yield
    finally:
        _in_use.reset(before)


def sign_legend() -> str:
    """Return what the two colours of relevance mean."""
    positive, negative = current_palette().names
    return f"{positive}: for, {negative}: against"


def current_palette() -> Palette:
    """Return the palette in use."""
    return _in_use.get()
