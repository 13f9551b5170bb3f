"""`whence concepts`: the channels of a layer that are most relevant for an output, and what they respond to."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from whence.errors import InputError
from whence.frontends.cli.explain import read_input
from whence.frontends.cli.options import Input, Json, Model, Sample, Size, Weights
from whence.frontends.common.choices import DATA_HELP, N_CHANNELS, N_REFERENCES
from whence.frontends.common.terminal import note, print_table, warn, warn_about_model

if TYPE_CHECKING:
    from torch import Tensor

    from whence.models.loaded_model import LoadedModel

MAX_SAMPLES = 500
STEPS = 256


def concepts(
    input: Input = None,
    model: Model = "digits",
    weights: Weights = None,
    size: Size = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Layer of the channels (`whence models --layers NAME` lists layers). Default: the last convolution."),
    ] = None,
    channels: Annotated[str, typer.Option(help="Number of channels, the most relevant; or their indices: 3,17,230.")] = str(
        N_CHANNELS
    ),
    target: Annotated[str | None, typer.Option(help="The class to explain, by index or name. Default: the top class.")] = None,
    data: Annotated[str | None, typer.Option(help=f"Source of reference samples. {DATA_HELP}")] = None,
    references: Annotated[int, typer.Option(help="Reference samples for each channel.")] = N_REFERENCES,
    prototypes: Annotated[bool, typer.Option("--prototypes", help="Draw a prototype of each channel as well.")] = False,
    limit: Annotated[int, typer.Option(help="Use only the first N samples of the data.")] = MAX_SAMPLES,
    sample: Sample = 0,
    out: Annotated[Path, typer.Option(help="Output file: .png, .jpg, .pdf or .svg.")] = Path("concepts.png"),
    as_json: Json = False,
) -> None:
    """Show which channels of a layer an output relies on, where in the image, and what they respond to."""
    from whence.core.files import PICTURE_SUFFIXES, check_writable
    from whence.frontends.common.data import read_data, read_images, sample_name
    from whence.mechanistic.concepts import concepts as run
    from whence.models.bundled import DIGIT_MODELS
    from whence.models.registry import load_model

    check_writable(out, PICTURE_SUFFIXES)
    loaded = load_model(model, weights, size=size)
    loaded.check_reads_images("concepts need a model of images. Use whence.channel_relevance in Python")
    x = read_input(input, loaded, sample, "concepts")
    samples = read_data(data, loaded, "concepts", limit) if data is not None or loaded.name in DIGIT_MODELS else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of prototypes, whose notes report them
        found = run(
            loaded.model, x, layer, loaded.class_index(target), channels=_channels(channels), n_references=references,
            reference_inputs=None if samples is None else read_images(samples), class_names=loaded.class_names,
            prototypes=_prototype_settings(loaded, x) if prototypes else False,
        )  # fmt: skip
    found.save(out)
    rows = [row | {"references": [sample_name(samples, i) for i in row["references"]]} for row in found.table]
    (name,) = found.explanation.target_names()
    if as_json:
        about = {"model": loaded.name, "trained": loaded.trained, "layer": found.layer, "target": name}
        print(json.dumps(about | {"output": float(found.explanation.output), "channels": rows, "picture": str(out)}))
        return
    warn_about_model(loaded)
    console = Console(highlight=False, soft_wrap=True)
    if found.explanation.conservation.caution:
        warn(found.explanation.conservation.caution)
    table = [
        [str(r["channel"]), f"{r['relevance']:.4g}", f"{r['share']:.1%}", *([", ".join(r["references"])] if samples else [])]
        for r in rows
    ]
    heads = ["channel", "relevance", "of the output", *(["most relevant in"] if samples else [])]
    title = f"channels of {found.layer} in {name} ({float(found.explanation.output):.4g}) by {loaded.name}"
    print_table(console, heads, table, title)
    if samples is None:
        note("pass --data FOLDER to show the samples in which each channel is most relevant")
    console.print(f"saved {out}", markup=False)


def _channels(given: str) -> int | list[int]:
    parts = [part.strip() for part in given.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise InputError(
            f"--channels {given}; expected a number, or channel indices separated by commas: 3,17,230 (one alone: 17,)"
        )
    return int(parts[0]) if len(parts) == 1 and "," not in given else list(map(int, parts))


def _prototype_settings(loaded: "LoadedModel", x: "Tensor") -> dict[str, Any]:
    from whence.frontends.common.prototypes import default_image

    return {"image": default_image("none", tuple(x.shape[1:]), loaded.preprocessing.bounds), "n_steps": STEPS}
