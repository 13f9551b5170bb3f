"""`whence export`: an explainer as a file that runs without this library."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from whence.core.trees import short_repr
from whence.exporting.program import export as run
from whence.exporting.program_files import check_writable
from whence.exporting.signature import signature
from whence.frontends.cli.explain import read_input
from whence.frontends.cli.options import Input, Json, Model, Sample, Size, Weights
from whence.frontends.common.data import is_array_file
from whence.frontends.common.methods import PRESETS, check_rules, make_method
from whence.frontends.common.terminal import print_table, warn_about_model


def export(
    input: Input = None,
    model: Model = "digits",
    weights: Weights = None,
    size: Size = None,
    target: Annotated[
        str | None, typer.Option(help="The one class to explain, by number or name; if not given, asked for at each call.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="lrp, or another that is one graph: gradient_times_input, sensitivity, …")
    ] = "lrp",
    rules: Annotated[str | None, typer.Option(help=f"Rules of lrp: {', '.join(PRESETS)}.")] = None,
    sample: Sample = 0,
    compiled: Annotated[bool, typer.Option("--compiled", help="Compile it for this machine (AOT Inductor), for C++.")] = False,
    out: Annotated[Path, typer.Option(help="Where to write: .pt2 or .onnx.")] = Path("explainer.pt2"),
    as_json: Json = False,
) -> None:
    """An explainer as a file: inputs and class indices in; output, relevance and the account out, without this library.

    The input is an example of what it will explain; it may explain any number of them at once.
    """
    from whence.models.registry import load_model

    check_rules(method, rules)
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
        [side, name, str(shape)] for side, tensors in (("takes", takes), ("gives", gives)) for name, shape in tensors.items()
    ]
    print_table(console, ["", "tensor", "shape"], rows, f"{short_repr(chosen)} of {loaded.name}")
    console.print(f"the explainer lies in {out} ({out.stat().st_size / 2**20:.1f} MiB)", markup=False)
