"""`whence models`: what can be named after --model."""

from typing import Annotated

import typer
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape

MOST = 100  # names of one source that are listed without being asked for


def models(
    contains: Annotated[str, typer.Argument(help="Only names that contain this.")] = "",
) -> None:
    """List the models that --model takes by name."""
    from whence.models.registry import available

    console = Console(highlight=False)
    for source, names in available().items():
        if isinstance(names, str):
            console.print(f"[bold]{source}[/]: {escape(names)}")
            continue
        matching = [name for name in names if contains.lower() in name.lower()]
        shown = matching if contains or len(matching) <= MOST else matching[:20]
        more = f", {len(matching) - len(shown)} more: whence models PART" if len(shown) < len(matching) else ""
        if matching:
            console.print(f"[bold]{source}[/] ({len(matching)}{more})")
            prefix = "" if source == "bundled" else f"{source}:"
            console.print(Columns([prefix + name for name in shown], padding=(0, 2)))
    console.print(
        "\nAny other: [bold]hf:NAME_OR_FOLDER[/] of Hugging Face's library, or [bold]FILE.py:FACTORY[/], a function in a "
        "Python file that returns the model."
    )
