"""`whence models`: the names that --model accepts."""

from typing import Annotated

import typer
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape

from whence.errors import InputError
from whence.frontends.cli.options import Size
from whence.frontends.common.terminal import print_table

MAX_NAMES = 100  # names of one source that are listed without a filter


def models(
    contains: Annotated[str, typer.Argument(help="List only names that contain this.")] = "",
    layers: Annotated[str | None, typer.Option(help="List the layers of this model and their output shapes instead.")] = None,
    size: Size = None,
) -> None:
    """List the names that --model accepts, or the layers of a model."""
    if layers is not None:
        _list_layers(layers, contains, size)
        return
    from whence.models.registry import available_models

    if ".py:" in contains:
        raise InputError(f"{contains} is a model; to list its layers: whence models --layers {contains}")
    console = Console(highlight=False)
    for source, names in available_models().items():
        if isinstance(names, str):
            console.print(f"[bold]{source}[/]: {escape(names)}")
            continue
        matching = [name for name in names if contains.lower() in f"{source}:{name}".lower()]
        shown = matching if contains or len(matching) <= MAX_NAMES else matching[:20]
        more = f", {len(matching) - len(shown)} more: whence models PART" if len(shown) < len(matching) else ""
        if matching:
            console.print(f"[bold]{source}[/] ({len(matching)}{more})")
            prefix = "" if source == "bundled" else f"{source}:"
            console.print(Columns([prefix + name for name in shown], padding=(0, 2)))
    console.print(
        "\nOther models: [bold]hf:NAME_OR_FOLDER[/] for Hugging Face, or [bold]FILE.py:FACTORY[/], a function in a "
        "Python file that returns the model."
    )


def _list_layers(name: str, contains: str, side: int | None) -> None:
    import torch

    from whence.methods.layer_reader import layer_shapes
    from whence.models.registry import load_model

    loaded = load_model(name, size=side)
    size = loaded.preprocessing.size
    if loaded.text is not None or size is None:
        raise InputError(f"{name} does not state its input size; pass --size, or use whence.layers.layer_shapes(model, x)")
    rows = [
        (layer, " × ".join(map(str, shape[1:])))
        for layer, shape in layer_shapes(loaded.model, torch.zeros(1, loaded.preprocessing.channels, *size)).items()
        if contains.lower() in layer.lower()
    ]
    print_table(Console(highlight=False, soft_wrap=True), ("layer", "output shape for one image"), rows, words=2)
