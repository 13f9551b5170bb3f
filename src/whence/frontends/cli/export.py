"""`whence export`: an explainer as a file that runs without whence."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from whence.frontends.cli.explain import read_input
from whence.frontends.cli.options import Input, Json, Model, Rules, Sample, Size, Weights
from whence.frontends.common.terminal import print_table, warn_about_model


def export(
    input: Input = None,
    model: Model = "digits",
    weights: Weights = None,
    size: Size = None,
    target: Annotated[
        str | None, typer.Option(help="A fixed class to explain, by index or name. Default: an input of each call.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="lrp, or another method of a single graph: gradient_times_input, sensitivity, …")
    ] = "lrp",
    rules: Rules = None,
    sample: Sample = 0,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compile for this machine (AOT Inductor), for use in C++.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Output file: .pt2 or .onnx.")] = Path("explainer.pt2"),
    as_json: Json = False,
) -> None:
    """Export an explainer that maps inputs and class indices to outputs and relevance, without whence.

    The input is an example; the exported explainer accepts any batch size.
    """
    from whence.core.trees import short_repr
    from whence.exporting.program import export as run
    from whence.exporting.program_files import check_writable
    from whence.exporting.signature import signature
    from whence.frontends.common.data import is_array_file
    from whence.frontends.common.methods import make_method, method_and_rules
    from whence.models.registry import load_model

    method_and_rules(method, rules)
    check_writable(out, compiled)
    loaded = load_model(model, weights, size=size)
    x = read_input(input, loaded, sample, "export")
    chosen = make_method(method, rules, loaded, x, is_picture=not is_array_file(input))
    program = run(loaded.model, x, loaded.class_index(target), method=chosen, out=out, compiled=compiled)
    takes, gives = signature(program)
    if as_json:
        about: dict[str, Any] = {"model": loaded.name, "trained": loaded.trained, "method": short_repr(chosen)}
        print(json.dumps(about | {"file": str(out), "takes": takes, "gives": gives}))
        return
    warn_about_model(loaded, not is_array_file(input))
    console = Console(highlight=False, soft_wrap=True)
    rows = [
        [side, name, str(shape)] for side, tensors in (("input", takes), ("output", gives)) for name, shape in tensors.items()
    ]
    print_table(console, ["", "tensor", "shape"], rows, f"{short_repr(chosen)} of {loaded.name}")
    console.print(f"saved {out} ({out.stat().st_size / 2**20:.1f} MiB)", markup=False)
