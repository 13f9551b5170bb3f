"""`whence audit STORE`: a report of clusters of explanations, suspicious clusters first."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from whence.errors import InputError
from whence.frontends.cli.options import Device, Limit, Size, Weights
from whence.frontends.common.choices import DATA_HELP, GROUP_COLUMNS
from whence.frontends.common.terminal import print_table

if TYPE_CHECKING:
    from torch import Tensor

MOST_LISTED = 8


def audit(
    store: Annotated[str, typer.Argument(help="A store, the folder or URL that `whence explain-dataset` wrote.")],
    model: Annotated[str | None, typer.Option(help="The explained model, to test the clusters on: its name or path.")] = None,
    weights: Weights = None,
    size: Size = None,
    device: Device = None,
    data: Annotated[str | None, typer.Option(help=f"The explained data. {DATA_HELP}")] = None,
    limit: Limit = None,
    layer: Annotated[
        str, typer.Option(help="Audit the relevance of this layer's channels instead of the input, without tests.")
    ] = "auto",
    group_by: Annotated[
        str, typer.Option(help=f"How samples are grouped into classes: {', '.join(GROUP_COLUMNS)}.")
    ] = "prediction",
    clusters: Annotated[int | None, typer.Option(help="Clusters of each class. Default: by the eigengap.")] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(help="NAME=IMAGE: report the share of relevance on the bright pixels of IMAGE; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the clustering.")] = 0,
    out: Annotated[Path, typer.Option(help="Output file: .html, .json, .png, .pdf or .svg.")] = Path("report.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, for scripts.")] = False,
) -> None:
    """Cluster the explanations of a store, and report what decides a class though it should not. Pass --model to test it."""
    from whence.auditing.audit import SUFFIXES, audit as run
    from whence.core.files import check_writable
    from whence.frontends.common.data import read_data
    from whence.models.registry import load_model

    check_writable(out, SUFFIXES)
    if model is None and data is not None:
        raise InputError("--data needs --model, the explained model, to test the clusters on")
    loaded = None if model is None else load_model(model, weights, size=size, device=device)
    samples = None if loaded is None else read_data(data, loaded, "audit", limit)
    found = run(
        store, model=loaded and loaded.model, data=samples, layer=layer, group_by=group_by, n_clusters=clusters,
        masks=dict(map(_mask, mask or [])), seed=seed,
    )  # fmt: skip
    found.save(out)
    if as_json:
        print(found.json())
        return
    console = Console(highlight=False, soft_wrap=True)
    rows = [
        [found.name(c.group), str(c.number), str(c.size), f"{c.excess:.1%}",
         "–" if c.evidence is None else f"{c.evidence.effect:.2f}", "⚠" if c.suspicious else "",
         "–" if c.accuracy is None else f"{c.accuracy:.1%}"]
        for c in found.clusters[:MOST_LISTED]
    ]  # fmt: skip
    heads = ["class", "cluster", "samples", "excess", "effect", "", "accuracy"]
    print_table(console, heads, rows, f"{len(found.clusters)} clusters of {len(found.store)} explanations", words=2)
    console.print(str(found), markup=False)
    for group in found.skipped:
        console.print(f"not clustered: {group}", markup=False)
    console.print(f"saved {out}", markup=False)


def _mask(given: str) -> tuple[str, "Tensor"]:
    """Return the name and the mask of the bright pixels of an image, from NAME=IMAGE."""
    import numpy as np
    import torch

    from whence.models.image_files import read_image

    name, equals, path = given.partition("=")
    if not equals:
        raise InputError(f"--mask {given}; expected NAME=IMAGE, as in --mask ruler=ruler.png")
    return name, torch.from_numpy(np.asarray(read_image(path).convert("L")) >= 128)
