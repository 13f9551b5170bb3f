"""Tables on terminals; where one is too wide, what would stand in a row stands in lines."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(
    console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, words: int = 1
) -> None:
    """The first `words` columns are words, the others numbers."""
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
