"""Self-contained HTML pages."""

from base64 import b64encode
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from whence.show.drawable import png
from whence.show.palettes import PALETTES, palette


def page(template: str, **values: Any) -> str:
    """The template of that name, filled in."""
    templates = Environment(loader=PackageLoader("whence.show"), autoescape=select_autoescape(), trim_blocks=True)
    return templates.get_template(template).render(**values)


def embedded(draw: Callable[[], Figure]) -> list[str]:
    """A figure as text for a page's `data:image/png;base64,`: one in each palette, or one for all where they look the same."""
    found = []
    for name in PALETTES:
        with palette(name):
            found.append(b64encode(png(draw())).decode())
    return found[:1] if found[0] == found[1] else found
