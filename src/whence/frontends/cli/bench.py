"""`whence bench`: explanation methods on data and networks for which the right explanation is known."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from whence.frontends.common.choices import BOX_PRESETS, PRESETS, SUITES
from whence.frontends.common.terminal import note, print_table

FREE_PRESETS = tuple(name for name in PRESETS if name not in BOX_PRESETS)  # that need no bounds of the input

if TYPE_CHECKING:
    from whence.methods.lrp import LRP


def bench(
    suites: Annotated[str, typer.Option(help="Names separated by commas.")] = ",".join(SUITES),
    methods: Annotated[
        str | None, typer.Option(help="Names of methods, separated by commas. Default: all standard methods.")
    ] = None,
    peers: Annotated[bool, typer.Option(help="Score captum, zennit, LXT and shap too, where they are installed.")] = True,
    samples: Annotated[int, typer.Option("--samples", "--n-samples", help="Number of samples explained in each task.")] = 100,
    cache_dir: Annotated[Path, typer.Option(help="A folder for trained networks and scores.")] = Path(".whence-bench"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    out: Annotated[Path, typer.Option(help="Output file: .html, .json, .csv, .png, .pdf or .svg.")] = Path("bench.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON, for scripts.")] = False,
) -> None:
    """Score explanation methods where the right explanation is known. Networks are trained on generated data."""
    from whence.benchmarking.bench import bench as run
    from whence.benchmarking.results import BENCH_SUFFIXES
    from whence.benchmarking.standard_methods import BASELINES, STANDARD_METHODS
    from whence.core.files import check_writable, to_json
    from whence.frontends.common.methods import check_names, split_names
    from whence.methods.registry import METHODS

    check_writable(out, BENCH_SUFFIXES)
    wanted = None if methods is None else split_names(methods)
    check_names(wanted or [], list(dict.fromkeys([*STANDARD_METHODS, *BASELINES, *METHODS, *FREE_PRESETS])), "method")
    methods_by_name = wanted and {name: _method(name) for name in wanted}
    found = run(split_names(suites), methods_by_name, peers=peers, n_samples=samples, cache_dir=cache_dir, seed=seed)
    found.save(out)
    if as_json:
        print(json.dumps({"table": to_json(found.table), "report": str(out)}))
        return
    console = Console(highlight=False, soft_wrap=True)
    rows = [[name, f"{share:.0%}"] for name, share in found.ranking]
    print_table(console, ["method", f"level with the best, of {len(found.tasks)} cells"], rows)
    for line in found.remarks:
        note(line)
    console.print(f"saved {out}", markup=False)


def _method(name: str) -> "LRP | str":
    from whence.lrp.rules.presets import preset
    from whence.methods.lrp import LRP

    return LRP(preset(name)) if name in FREE_PRESETS else name
