"""The colours of relevance: red and blue, or a pair that all eyes tell apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from whence.core.argument_checks import check_arguments
from whence.errors import RuleError, suggest

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Palette:
    """Colours of maps (a colormap of matplotlib) and of tokens and bars."""

    map: str
    positive: Color
    negative: Color


PALETTES = {
    "red-blue": Palette("seismic", (200, 20, 20), (20, 60, 200)),
    "orange-purple": Palette("PuOr_r", (179, 88, 6), (84, 39, 136)),
}
_in_use: ContextVar[Palette] = ContextVar("palette", default=PALETTES["red-blue"])


@check_arguments
@contextmanager
def palette(name: str) -> Iterator[None]:
    """Draw pictures of relevance in other colours: "red-blue", as all do if nothing is said, or "orange-purple", which
    colour-blind people tell apart. (Pages, `.html`, have both, to be switched by their readers.)

    >>> with whence.palette("orange-purple"):
    ...     e.save("heatmap.png")

    Raises `RuleError` for other names.

    Args:
        name: "red-blue" or "orange-purple".
    """
    if name not in PALETTES:
        raise RuleError(f"no palette {name!r}; choose from {', '.join(PALETTES)}{suggest(name, PALETTES)}")
    before = _in_use.set(PALETTES[name])
    try:
        yield
    finally:
        _in_use.reset(before)


def current_palette() -> Palette:
    """Return the palette in use."""
    return _in_use.get()
