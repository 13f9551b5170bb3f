"""Self-contained HTML pages."""

from base64 import b64encode
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from whence.show.drawable import png


def page(template: str, **values: Any) -> str:
    """The template of that name, filled in."""
    templates = Environment(loader=PackageLoader("whence.show"), autoescape=select_autoescape())
    return templates.get_template(template).render(**values)


def embedded(drawn: Figure) -> str:
    """A figure as text for a page's `data:image/png;base64,`."""
    return b64encode(png(drawn)).decode()
