"""Terminal output of commands: warnings, notes, tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from whence.models.loaded_model import LoadedModel


def warn(text: str) -> None:
    """Print a warning in one line on stderr."""
    Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {text}")


def note(text: str) -> None:
    """Print a note in one line on stderr."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"note: {text}")


def warn_about_model(loaded: "LoadedModel", of_pictures: bool = True) -> None:
    """Warn about a model with random weights, of unknown training, or without known image normalisation."""
    name = escape(loaded.name)
    if loaded.trained is False:
        warn(f"{name} has random weights; pass --weights FILE, or --weights DEFAULT to download")
    if loaded.trained is None:
        note(f"using the weights that {name} sets; pass --weights FILE to load others")
    if of_pictures and not loaded.preprocessing.bounds_known and loaded.text is None:
        note(f"{name} does not state its image normalisation; using pixels in [0, 1]; return a whence.LoadedModel to set it")


def print_table(
    console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, words: int = 1
) -> None:
    """Print a table whose first `words` columns are text, the others numbers; as a list if the terminal is too narrow."""
    table = Table(box=None, pad_edge=False, title=None if title is None else Text(title), title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    wide = console.options.update(width=10_000, max_width=10_000)
    if console.measure(table, options=wide).maximum <= console.width:
        console.print(table)
        return
    if title:
        console.print(title, style="italic", markup=False)
    longest = max(map(len, headings))
    for i, row in enumerate(rows):
        if i:
            console.print()
        for heading, value in zip(headings, row, strict=True):
            console.print(f"{heading:<{longest}}  {value}", markup=False)
