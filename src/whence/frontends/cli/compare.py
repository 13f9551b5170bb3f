"""`whence compare`: one input explained by several methods in one figure."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from whence.errors import InputError
from whence.frontends.cli.explain import read_input
from whence.frontends.cli.options import Input, Json, Model, Sample, Size, Weights
from whence.frontends.common.choices import METHODS_HELP
from whence.frontends.common.terminal import print_table, warn_about_model


def compare(
    input: Input = None,
    model: Model = "digits",
    weights: Weights = None,
    size: Size = None,
    methods: Annotated[str | None, typer.Option(help=METHODS_HELP)] = None,
    target: Annotated[str | None, typer.Option(help="The class to explain, by index or name. Default: the top class.")] = None,
    common_scale: Annotated[bool, typer.Option("--common-scale", help="Use the same colour scale for all heatmaps.")] = False,
    sample: Sample = 0,
    out: Annotated[Path, typer.Option(help="Output file: .png, .jpg, .pdf or .svg.")] = Path("compared.png"),
    as_json: Json = False,
) -> None:
    """Explain one input by several methods and draw their heatmaps side by side."""
    import torch

    from whence.core.files import PICTURE_SUFFIXES, check_writable
    from whence.evaluation.comparison import METHODS as USUAL, compare as run
    from whence.frontends.common.data import is_array_file
    from whence.frontends.common.methods import check_methods, method_or_preset, split_names
    from whence.models.registry import load_model

    check_writable(out, PICTURE_SUFFIXES)
    check_methods(split_names(methods or ""))
    loaded = load_model(model, weights, size=size)
    if loaded.vision_language is not None:
        raise InputError(f"{loaded.name} takes an image and a text; use whence explain")
    x = read_input(input, loaded, sample, "compare")
    pictures = isinstance(x, torch.Tensor) and x.dim() == 4
    wanted = split_names(methods) if methods is not None else [name for name in USUAL if pictures or name != "grad_cam"]
    by_name = {name: method_or_preset(name, loaded, x, not is_array_file(input)) for name in wanted}
    found = run(loaded.model, x, by_name, loaded.class_index(target), common_scale=common_scale, class_names=loaded.class_names)
    if loaded.text is not None:
        found = found.with_tokens(loaded.text.tokenizer)
    found.save(out)
    if as_json:
        print(json.dumps({"model": loaded.name, "trained": loaded.trained, "table": found.table, "picture": str(out)}))
        return
    console = Console(highlight=False, soft_wrap=True)
    warn_about_model(loaded, not is_array_file(input))
    rows = [
        [r["method"], r["target"], f"{r['output']:.4g}", f"{r['relevance']:.4g}", f"{r['counter_relevance']:.0%}"]
        for r in found.table
    ]
    print_table(
        console, ["method", "target", "output", "relevance", "against"], rows, f"{loaded.name} by {len(found)} methods", words=2
    )
    console.print(f"saved {out}", markup=False)
