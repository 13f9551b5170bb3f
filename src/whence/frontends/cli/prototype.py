"""`whence prototype`: images that maximise classes or channels."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from whence.errors import InputError, RuleError, value_repr
from whence.frontends.cli.options import Device, Json, Weights
from whence.frontends.common.choices import PARAMETERIZATIONS
from whence.frontends.common.terminal import print_table, warn, warn_about_model

if TYPE_CHECKING:
    from whence.models.loaded_model import LoadedModel
    from whence.prototypes.prototypes import Prototypes


def prototype(
    model: Annotated[str, typer.Option(help="digits, torchvision:NAME, timm:NAME or FILE.py:FACTORY.")] = "digits",
    weights: Weights = None,
    device: Device = None,
    target: Annotated[
        str | None, typer.Option(help="Classes by index or name, such as 3, 0-9 or cat,dog; or layer:channel.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="A layer by name (`whence models --layers NAME` lists layers).")] = None,
    channels: Annotated[str | None, typer.Option(help="Channels of --layer, such as 3 or 0-15. Default: 0-15.")] = None,
    beside: Annotated[
        Path | None, typer.Option(help="A .npy batch of data: draw its nine samples with the highest activation as well.")
    ] = None,
    prior: Annotated[str | None, typer.Option(help="none or l2; for digits also expert or decoder.")] = None,
    strength: Annotated[float | None, typer.Option(help="Strength of the prior.")] = None,
    image: Annotated[str | None, typer.Option(help=f"Parameterization of the image: {', '.join(PARAMETERIZATIONS)}.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the image. Default: the input size of the model.")] = None,
    n_steps: Annotated[int, typer.Option(help="Number of steps of the search.")] = 512,
    seed: Annotated[int, typer.Option(help="Random seed of the start and of the transforms.")] = 0,
    out: Annotated[Path, typer.Option(help="Output file: .png, .pdf, .svg, .npz or .safetensors.")] = Path("prototypes.png"),
    as_json: Json = False,
) -> None:
    """Draw the input that maximises a class, a channel or a neuron (activation maximisation).

    Without arguments: the ten digits under the priors l2, expert and decoder, side by side.
    """
    from whence.core.files import PICTURE_SUFFIXES, atomic_write, check_writable
    from whence.frontends.common.prototypes import search_prototypes
    from whence.models.registry import load_model
    from whence.prototypes.prototypes import compare_priors

    check_writable(out, (*PICTURE_SUFFIXES, ".npz", ".safetensors"))
    _check(prior, image, size, layer, channels)
    loaded = load_model(model, weights, device=device)
    loaded.check_reads_images("prototypes need a model of images")
    concepts = _parse_concepts(target, layer, channels, loaded)
    settings: dict[str, Any] = {"n_steps": n_steps, "seed": seed}
    if loaded.name == "digits" and (prior, layer, image, beside) == (None,) * 4 and out.suffix in PICTURE_SUFFIXES:
        found = {
            name: search_prototypes(loaded, concepts, name, strength, None, size, settings)
            for name in ("l2", "expert", "decoder")
        }
        drawn = compare_priors(found)
        with atomic_write(out) as beside_it:
            drawn.savefig(beside_it)
    else:
        name = prior or "none"
        if strength is not None and name == "none":
            raise RuleError("--strength is the strength of a prior; choose one with --prior")
        prototypes = search_prototypes(loaded, concepts, name, strength, image, size, settings)
        prototypes = prototypes if beside is None else _with_samples(prototypes, loaded, concepts, beside)
        prototypes.save(out)
        found = {name: prototypes}
    report = {"model": loaded.name, "trained": loaded.trained, "picture": str(out), "prototypes": _report(found)}
    if as_json:
        print(json.dumps(report))
    else:
        warn_about_model(loaded)
        _print(report)


def _check(prior: str | None, image: str | None, size: int | None, layer: str | None, channels: str | None) -> None:
    from whence.frontends.common.prototypes import PRIORS

    if channels is not None and layer is None:
        raise RuleError("--channels needs --layer")
    if prior not in (None, *PRIORS):
        raise RuleError(f"unknown prior {value_repr(prior)}; choose from {', '.join(PRIORS)}")
    if image not in (None, *PARAMETERIZATIONS):
        raise RuleError(f"unknown image parameterization {value_repr(image)}; choose from {', '.join(PARAMETERIZATIONS)}")
    if size is not None and size < 1:
        raise InputError(f"--size {size}; expected at least 1")


def _parse_concepts(target: str | None, layer: str | None, channels: str | None, loaded: "LoadedModel") -> list[Any]:
    if layer is not None and target is not None:
        raise RuleError("--target and --layer are mutually exclusive")
    if layer is not None:
        return [f"{layer}:{part.strip()}" for part in (channels or "0-15").split(",")]
    if target is not None and ":" in target:
        return [part.strip() for part in target.split(",")]
    if target is None:
        if not loaded.class_names:
            raise RuleError("expected --target, or --layer and --channels")
        return list(range(min(10, len(loaded.class_names))))
    classes: list[Any] = []
    for part in target.split(","):
        first, dash, last = part.partition("-")
        if dash and first.isdecimal() and last.isdecimal():
            classes.extend(range(int(first), int(last) + 1))
        else:
            classes.append(loaded.class_index(part.strip()))
    return classes


def _with_samples(found: "Prototypes", loaded: "LoadedModel", concepts: list[Any], data: Path) -> "Prototypes":
    from whence.frontends.common.data import read_array
    from whence.prototypes.top_samples import top_samples

    samples = read_array(data)
    top = top_samples(loaded.model, concepts, samples, n_samples=min(9, len(samples)))
    return found.beside(samples[top.indices])


def _report(found: "dict[str, Prototypes]") -> list[dict[str, Any]]:
    return [
        {
            "prior": prior,
            "concept": name,
            "activation": float(p.activation[k]),
            "log_prob": None if p.log_prob is None else float(p.log_prob[k]),
            "note": p.note,
        }
        for prior, p in found.items()
        for k, name in enumerate(p.names)
    ]


def _print(report: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for note in dict.fromkeys(row["note"] for row in report["prototypes"] if row["note"]):
        warn(note)
    rows, likely = [], any(row["log_prob"] is not None for row in report["prototypes"])
    for row in report["prototypes"]:
        log_prob = "" if row["log_prob"] is None else f"{row['log_prob']:.4g}"
        rows.append((row["prior"], row["concept"], f"{row['activation']:.4g}", *([log_prob] if likely else [])))
    heads = ("prior", "concept", "activation", *(["log p(x)"] if likely else []))
    print_table(console, heads, rows, f"prototypes of {report['model']}", words=2)
    console.print(f"saved {report['picture']}", markup=False)
