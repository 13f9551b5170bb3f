"""Self-contained HTML pages."""

from base64 import b64encode
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, select_autoescape

from whence.core.files import figure_to_bytes
from whence.plotting.palettes import PALETTES, palette

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render_page(template: str, package: str = "whence.plotting", **values: Any) -> str:
    """Return a rendered template of a package."""
    templates = Environment(loader=PackageLoader(package), autoescape=select_autoescape(), trim_blocks=True)
    return templates.get_template(template).render(**values)


def embed_figure(drawn: "Figure") -> list[str]:
    """Return a figure as a list of one base64 string, for `data:image/png;base64,` in a page."""
    return [b64encode(figure_to_bytes(drawn)).decode()]


def embed_in_each_palette(draw: "Callable[[], Figure]") -> list[str]:
    """Return a figure of relevance as base64 strings, drawn once in each palette."""
    found = []
    for name in PALETTES:
        with palette(name):
            found += embed_figure(draw())
    return found
