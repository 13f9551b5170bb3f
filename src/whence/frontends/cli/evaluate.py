"""`whence evaluate`: metrics of several explanation methods on a model and data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from whence.errors import InputError
from whence.frontends.cli.options import Address, Device, Engine, Limit, Model, Shard, Size, Weights, check_device
from whence.frontends.common.choices import DATA_HELP, EVALUATED_METHODS, EVALUATED_METRICS, IMPUTERS, METHODS_HELP, METRICS
from whence.frontends.common.terminal import print_table, warn_about_model

if TYPE_CHECKING:
    from whence.evaluation.results import Evaluation
    from whence.models.loaded_model import LoadedModel

CACHE_NAME = ".{}-unfinished"


def evaluate(
    model: Model = "digits",
    weights: Weights = None,
    size: Size = None,
    device: Device = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    methods: Annotated[str, typer.Option(help=METHODS_HELP)] = ",".join(EVALUATED_METHODS),
    metrics: Annotated[str, typer.Option(help=f"Names separated by commas: {', '.join(METRICS)}.")] = ",".join(
        EVALUATED_METRICS
    ),
    target: Annotated[str, typer.Option(help="Class to explain: predicted, label, or an index.")] = "predicted",
    regions: Annotated[
        str | None,
        typer.Option(
            help="Regions that are removed: pixels, or the side of square patches. Default: about 14 patches per side."
        ),
    ] = None,
    imputer: Annotated[
        str | None, typer.Option(help=f"Replacement of removed regions: a number or token id, {', '.join(IMPUTERS)}.")
    ] = None,
    score: Annotated[str | None, typer.Option(help="Score that is measured: logit, logit_difference or probability.")] = None,
    limit: Limit = None,
    cache_dir: Annotated[Path | None, typer.Option(help="A folder for finished batches, which --shard jobs share.")] = None,
    shard: Shard = None,
    engine: Engine = "local",
    address: Address = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    out: Annotated[Path, typer.Option(help="Output file: .html, .png, .pdf, .svg, .csv or .json.")] = Path("report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON, for scripts.")] = False,
) -> None:
    """Score explanation methods on data. An interrupted run resumes where it stopped."""
    from whence.core.files import check_writable, to_json
    from whence.evaluation.evaluate import evaluate as run
    from whence.evaluation.results import SUFFIXES
    from whence.frontends.common.data import first_sample, read_data, sample_name, warn_about_failures
    from whence.frontends.common.methods import check_methods, check_names, method_or_preset, removal_settings, split_names
    from whence.models.registry import load_model

    check_writable(out, SUFFIXES)
    wanted, measured = split_names(methods), split_names(metrics)
    check_methods(wanted)
    check_names(measured, list(METRICS), "metric")
    check_device(device, engine)
    loaded = load_model(model, weights, size=size, device=device)
    samples = read_data(data, loaded, "evaluate", limit)
    first, bounded = first_sample(samples), loaded.preprocessing.bounds_known
    by_name = {name: method_or_preset(name, loaded, first, bounded) for name in wanted}
    taken_away = removal_settings(regions, imputer, score, loaded, measured)
    if shard is not None and cache_dir is None:
        raise InputError("--shard needs --cache-dir FOLDER, a folder shared by all jobs")
    aside = out.with_name(CACHE_NAME.format(out.name))
    found = run(
        loaded.model, samples, by_name, measured, target=_parse_target(target), seed=seed, cache_dir=cache_dir or aside,
        shard=shard, engine=engine, address=address, **taken_away,
    )  # fmt: skip
    found.save(out)
    _delete_cache(aside)
    unread = {f.sample: f.message for f in found.failures}
    warn_about_failures([f"{sample_name(samples, number)}: {message}" for number, message in unread.items()])
    if as_json:
        print(json.dumps({"model": loaded.name, "trained": loaded.trained, "table": to_json(found.table), "report": str(out)}))
    else:
        _print(found, loaded, out)


def _parse_target(given: str) -> Any:
    return int(given) if given.isdecimal() else given


def _delete_cache(kept: Path) -> None:
    from shutil import rmtree

    rmtree(kept, ignore_errors=True)


def _print(found: "Evaluation", loaded: "LoadedModel", out: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    warn_about_model(loaded)
    print_table(console, ["method", *found.heads], found.words, f"explanations of {loaded.name}")
    console.print(f"{found.footnote}; ↑ higher is better, ↓ lower", markup=False)
    console.print(f"saved {out}", markup=False)
