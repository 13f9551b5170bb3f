"""`whence sources`: which document or sentence made a language model write its response."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from whence.errors import InputError
from whence.frontends.cli.options import Json, Weights
from whence.frontends.common.terminal import print_table, warn_about_model

BEST, SHORT = 3, 70  # sources of a statement that are printed, and their characters

if TYPE_CHECKING:
    from whence.contexts.sources import SourceAttribution


def sources(
    context: Annotated[
        list[str] | None,
        typer.Argument(help="Text files, folders of .txt and .md files, or - for standard input. One is split into sentences."),
    ] = None,
    model: Annotated[str, typer.Option(help="A language model: hf:NAME_OR_FOLDER.")] = "",
    query: Annotated[str, typer.Option(help="The question, or the beginning of the response.")] = "",
    response: Annotated[str | None, typer.Option(help="The response to explain. Default: what the model writes.")] = None,
    statement: Annotated[
        list[str] | None, typer.Option(help="A part of the response to explain; repeatable. Default: its sentences.")
    ] = None,
    weights: Weights = None,
    n_ablations: Annotated[int, typer.Option(help="Number of subsets of the sources to evaluate.")] = 8,
    ablation: Annotated[str, typer.Option(help="Whether to remove or mask sources: remove or mask.")] = "remove",
    max_new_tokens: Annotated[int, typer.Option(help="The largest number of tokens to write.")] = 64,
    out: Annotated[Path, typer.Option(help="Output file: .html, .png, .pdf, .svg, .csv or .json.")] = Path("sources.html"),
    as_json: Json = False,
) -> None:
    """Show which sources in its context made a language model write its response."""
    from whence.contexts.sources import sources as run
    from whence.core.files import PICTURE_SUFFIXES, check_writable
    from whence.models.registry import load_model

    check_writable(out, (*PICTURE_SUFFIXES, ".html", ".csv", ".json"))
    documents = _read(context or [])
    if not model:
        raise InputError("--model is missing; pass a language model: --model hf:NAME_OR_FOLDER")
    loaded = load_model(model, weights)
    if loaded.text is None or loaded.class_names:
        raise InputError(f"{loaded.name} is not a language model; pass one as hf:NAME_OR_FOLDER")
    chosen: Any = ablation
    given: Any = documents if len(documents) > 1 else next(iter(documents.values()))
    found = run(
        loaded.model, given, query, response, tokenizer=loaded.text.tokenizer, statements=statement, n_ablations=n_ablations,
        ablation=chosen, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    found.save(out)
    if as_json:
        print(json.dumps({"model": loaded.name, "response": found.response, "sources": list(found.table), "page": str(out)}))
        return
    warn_about_model(loaded)
    _print(found, out)


def _read(given: list[str]) -> dict[str, str]:
    """Return the texts of files, folders and standard input by name."""
    from whence.frontends.common.text_files import STANDARD_INPUT, SUFFIXES as TEXT_SUFFIXES, read_text, read_text_file

    found: dict[str, str] = {}
    for name in given:
        path = Path(name)
        if name == STANDARD_INPUT:
            texts = {"standard input": read_text(name)}
        elif path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in TEXT_SUFFIXES)
            if not files:
                raise InputError(f"the folder {name} has no .txt or .md files")
            alone = len(given) == 1
            texts = {file.name if alone else str(file): read_text_file(file) for file in files}
        elif path.is_file():
            texts = {name: read_text_file(path)}
        else:
            raise InputError(f"no file or folder {name!r}; pass text files, a folder of them, or - for standard input")
        if twice := found.keys() & texts.keys():
            raise InputError(f"{twice.pop()} is given twice; pass each document once")
        found |= texts
    if not found:
        raise InputError("nothing to read: pass text files, a folder of them, or - for standard input")
    return found


def _print(found: "SourceAttribution", out: Path) -> None:
    from whence.core.passages import shorten_line

    console = Console(highlight=False, soft_wrap=True)
    console.print(found.response.strip(), markup=False)
    rows = []
    for i, statement in enumerate(found.statements):
        for rank, (source, score) in enumerate(found.ranking(i)[:BEST]):
            first = [shorten_line(statement.text, SHORT), f"{float(found.support[i]):+.2f}"] if rank == 0 else ["", ""]
            rows.append([*first, f"{score:+.2f}", source.name, shorten_line(source.text, SHORT)])
    title = f"sources by {found.n_evaluations} evaluations; support: by how much the best alone raises ln p"
    print_table(console, ["statement", "support", "score", "source", "text"], rows, title)
    console.print(f"saved {out}", markup=False)
