"""`whence compare`: one input by several methods in one figure."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from whence.errors import InputError
from whence.evaluation.comparison import METHODS as USUAL, compare as run
from whence.frontends.cli.explain import is_array, named, read_input, warn_of_model
from whence.frontends.cli.options import Input, Json, Model, Sample, Size, Weights
from whence.frontends.cli.tables import print_table
from whence.frontends.common.methods import SEVERAL, SEVERAL_HELP, check_known, listed, one_of_several
from whence.plotting.drawable import PICTURES, writable


def compare(
    input: Input = None,
    model: Model = "digits",
    weights: Weights = None,
    size: Size = None,
    methods: Annotated[str | None, typer.Option(help=SEVERAL_HELP)] = None,
    target: Annotated[
        str | None, typer.Option(help="The class to explain, by number or name; the likeliest if not given.")
    ] = None,
    common_scale: Annotated[bool, typer.Option("--common-scale", help="All heatmaps in the colours of the strongest.")] = False,
    sample: Sample = 0,
    out: Annotated[Path, typer.Option(help="Where to write: .png, .jpg, .pdf or .svg.")] = Path("compared.png"),
    as_json: Json = False,
) -> None:
    """What do several methods say? Draws their heatmaps side by side."""
    from whence.models.registry import load_model

    writable(out, PICTURES)
    check_known(listed(methods or ""), SEVERAL, "method")
    loaded = load_model(model, weights, size=size)
    if loaded.both is not None:
        raise InputError(f"{loaded.name} reads pictures and texts together; use whence explain")
    x = read_input(input, loaded, sample, "compare")
    pictures = isinstance(x, torch.Tensor) and x.dim() == 4
    wanted = listed(methods) if methods is not None else [name for name in USUAL if pictures or name != "grad_cam"]
    by_name = {name: one_of_several(name, loaded, x, not is_array(input)) for name in wanted}
    found = run(loaded.model, x, by_name, named(target, loaded), common_scale=common_scale, class_names=loaded.classes)
    if loaded.text is not None:
        found = found.with_tokens(loaded.text.tokenizer)
    found.save(out)
    if as_json:
        print(json.dumps({"model": loaded.name, "trained": loaded.trained, "table": found.table, "picture": str(out)}))
        return
    console = Console(highlight=False, soft_wrap=True)
    warn_of_model(loaded, not is_array(input))
    rows = [
        [r["method"], r["target"], f"{r['output']:.4g}", f"{r['relevance']:.4g}", f"{r['counter_relevance']:.0%}"]
        for r in found.table
    ]
    print_table(
        console, ["method", "target", "output", "relevance", "against"], rows, f"{loaded.name} by {len(found)} methods", words=2
    )
    console.print(f"the picture lies in {out}", markup=False)
