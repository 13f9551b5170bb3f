"""Fonts of figures: installed fonts with Chinese, Japanese and Korean characters, and escapes for what no font has."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import matplotlib
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei",
    "Yu Gothic", "Malgun Gothic", "Arial Unicode MS", "Noto Emoji", "Symbola",
)  # fmt: skip


@contextmanager
def fallback_fonts() -> Iterator[None]:
    """Draw text within the block in the fonts in use, and characters that they lack in installed fonts that have them."""
    with matplotlib.rc_context({"font.family": [*matplotlib.rcParams["font.family"], *installed_fallbacks()]}):
        yield


@cache
def installed_fallbacks() -> tuple[str, ...]:
    """Return the fallback fonts that are installed."""
    names = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in FALLBACKS if name in names)


def escape_missing(text: str) -> str:
    r"""Return a text with characters that no font in use has as their codes: "\u6c49"."""
    if text.isascii():
        return text
    known = _characters(tuple(matplotlib.rcParams["font.family"]))
    return "".join(c if ord(c) in known or c.isspace() else c.encode("unicode_escape").decode() for c in text)


@cache
def _characters(families: tuple[str, ...]) -> frozenset[int]:
    """Return the codes of the characters that the fonts of these families have."""
    paths = {font_manager.findfont(FontProperties(family=[family])) for family in families}
    return frozenset(code for path in paths for code in FT2Font(path).get_charmap())
