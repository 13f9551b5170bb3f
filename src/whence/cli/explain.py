"""`whence explain`: a picture or a bundled digit, a model, a heatmap."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from whence.errors import InputError, LoadError, RuleError
from whence.explain import METHODS, explain as run
from whence.explanation import SUFFIXES, Explanation
from whence.lrp import presets
from whence.lrp.composites import Composite
from whence.methods.lrp import LRP

if TYPE_CHECKING:
    from whence.models.registry import LoadedModel

PRESETS = ("epsilon_gamma", "epsilon_gamma_box", "epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "deep_taylor")
BOUNDED = ("epsilon_gamma_box", "deep_taylor")


def explain(
    input: Annotated[Path | None, typer.Argument(help="An image, or a .npy batch; a bundled digit if not given.")] = None,
    model: Annotated[str, typer.Option(help="digits, torchvision:NAME, timm:NAME or FILE.py:FACTORY.")] = "digits",
    weights: Annotated[str | None, typer.Option(help="A .safetensors, .npz or .pt file, or torchvision's DEFAULT.")] = None,
    target: Annotated[int | None, typer.Option(help="The class to explain; the predicted one if not given.")] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "lrp",
    rules: Annotated[str | None, typer.Option(help=f"Rules of lrp: {', '.join(PRESETS)}.")] = None,
    sample: Annotated[int, typer.Option(help="Which of the 50 bundled digits.")] = 0,
    out: Annotated[Path, typer.Option(help="Where to write: .png, .pdf, .svg, .html, .npz or .safetensors.")] = Path(
        "heat.png"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> None:
    """Why this output? Writes a heatmap that adds up to the prediction."""
    from whence.models.registry import load_model

    _check(method, rules, out)
    loaded = load_model(model, weights)
    x = _input(input, loaded, sample)
    is_picture = input is None or input.suffix != ".npy"
    chosen = LRP(_rules(rules, loaded, is_picture)) if method == "lrp" else METHODS[method]()
    explanation = replace(run(loaded.model, x, target, method=chosen), classes=tuple(loaded.classes))
    explanation.save(out)
    report = _report(explanation, loaded, input, sample, out)
    if as_json:
        print(json.dumps(report))
    else:
        _print(report)


def _check(method: str, rules: str | None, out: Path) -> None:
    """What can be refused before the model is loaded."""
    if method not in METHODS:
        raise RuleError(f"no method {method!r}; choose from {', '.join(METHODS)}")
    if rules is not None and (method != "lrp" or rules not in PRESETS):
        raise RuleError(f"--rules {rules}: choose from {', '.join(PRESETS)}, with --method lrp")
    if not out.parent.is_dir():
        raise LoadError(f"no folder {out.parent} to write {out.name} into")
    if out.suffix not in SUFFIXES:
        raise LoadError(f"cannot save as {out.name!r}: choose {', '.join(SUFFIXES)}")


def _rules(name: str | None, loaded: "LoadedModel", is_picture: bool) -> Composite:
    """The preset of that name; if none is given z^B at the pixels where their bounds are known."""
    bounded = is_picture and loaded.preprocessing.bounds_known
    name = name or ("epsilon_gamma_box" if bounded else "epsilon_gamma")
    if name not in BOUNDED:
        return getattr(presets, name)()
    if not bounded:
        raise RuleError(f"--rules {name} needs pixel bounds, which {loaded.name} does not state; choose another")
    return getattr(presets, name)(*loaded.preprocessing.bounds)


def _input(path: Path | None, loaded: "LoadedModel", sample: int) -> Tensor:
    if path is None:
        if loaded.name != "digits":
            raise InputError(f"nothing to explain: pass an image, as in `whence explain photo.jpg --model {loaded.name}`")
        from whence.models.digits import digit_samples

        images, _ = digit_samples()
        if not 0 <= sample < len(images):
            raise InputError(
                f"--sample {sample} is out of range: there are {len(images)} bundled digits, 0 to {len(images) - 1}"
            )
        return images[sample : sample + 1]
    if path.suffix == ".npy":
        return _read_array(path)
    return loaded.preprocessing.read(path)


def _read_array(path: Path) -> Tensor:
    import numpy as np

    if not path.is_file():
        raise LoadError(f"no file {path}")
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise LoadError(f"{path} is no readable .npy array") from error


def _report(explanation: Explanation, loaded: "LoadedModel", input: Path | None, sample: int, out: Path) -> dict[str, Any]:
    account = explanation.conservation
    absorbed = None if account.absorbed is None else account.absorbed.tolist()
    return {
        "model": loaded.name,
        "trained": loaded.trained,
        "input": f"bundled digit {sample}" if input is None else str(input),
        "method": type(explanation.method).__name__,
        "target": [{"index": int(t), "name": loaded.class_name(int(t))} for t in explanation.target],
        "output": account.output.tolist(),
        "relevance": account.relevance.tolist(),
        "absorbed": absorbed,
        "error": account.error.tolist(),
        "picture": str(out),
    }


def _print(report: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not report["trained"]:
        Console(stderr=True, soft_wrap=True).print(
            f"[yellow]warning:[/] {report['model']} has random weights; pass --weights FILE, or --weights DEFAULT to download"
        )
    table = Table(
        box=None,
        pad_edge=False,
        title=f"{report['model']} on {report['input']}, explained by {report['method']}",
        title_justify="left",
    )
    for heading in ("target", "output", "relevance", "absorbed", "error"):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    for i, target in enumerate(report["target"]):
        name = str(target["index"]) if target["name"] == str(target["index"]) else f"{target['index']} {target['name']}"
        absorbed = "not measured" if report["absorbed"] is None else f"{report['absorbed'][i]:.4g}"
        table.add_row(
            name, f"{report['output'][i]:.4g}", f"{report['relevance'][i]:.4g}", absorbed, f"{report['error'][i]:.0e}"
        )
    console.print(table)
    if report["absorbed"] is not None:
        console.print("output = relevance + absorbed (by biases, ε and shifts)")
    console.print(f"the picture lies in [bold]{report['picture']}[/]")
