"""The command line (`whence explain` etc.), with one module for each command."""

import sys
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer
from rich.console import Console

from whence.errors import WhenceError
from whence.frontends.cli.attack import attack
from whence.frontends.cli.audit import audit
from whence.frontends.cli.bench import bench
from whence.frontends.cli.compare import compare
from whence.frontends.cli.concepts import concepts
from whence.frontends.cli.evaluate import evaluate
from whence.frontends.cli.explain import explain
from whence.frontends.cli.explain_dataset import explain_dataset
from whence.frontends.cli.export import export
from whence.frontends.cli.models import models
from whence.frontends.cli.prototype import prototype
from whence.frontends.cli.serve import serve
from whence.frontends.cli.sources import sources

app = typer.Typer(
    help="Explain the predictions of trained PyTorch networks, and find prototypes of what they have learned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(explain)
app.command()(compare)
app.command()(evaluate)
app.command()(explain_dataset)
app.command()(audit)
app.command()(concepts)
app.command()(sources)
app.command()(export)
app.command()(prototype)
app.command()(attack)
app.command()(serve)
app.command()(models)
app.command()(bench)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("whence"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Explain the predictions of trained PyTorch networks, and find prototypes of what they have learned."""


def main() -> None:
    """Run the command line; errors of the library are printed in one line, with exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # terminals that cannot encode a character print ?
            stream.reconfigure(errors="replace")
    try:
        app()
    except (WhenceError, OSError) as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {_escaped(str(error))}")
        sys.exit(2)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
