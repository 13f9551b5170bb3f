"""`whence attack`: an image and an adversarial example, each with its heatmap; or the robust features experiment."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from whence.errors import RuleError
from whence.frontends.cli.explain import read_input
from whence.frontends.cli.options import Json, Method, Sample, Size, Weights
from whence.frontends.common.terminal import print_table, warn, warn_about_model

if TYPE_CHECKING:
    from whence.core.pixel_bounds import Box
    from whence.models.loaded_model import LoadedModel
    from whence.robustness.attack_methods import Attack
    from whence.robustness.explanation_attacks import AttackExplanation

ATTACKS = ("pgd", "fgsm", "mi-fgsm", "deepfool")
EXPERIMENTS = ("robust-features",)
EPSILON = 0.15


def attack(
    input: Annotated[str | None, typer.Argument(help="An image or a .npy batch. Default: a bundled digit.")] = None,
    model: Annotated[
        str, typer.Option(help="digits, digits-robust, torchvision:NAME, timm:NAME or FILE.py:FACTORY.")
    ] = "digits",
    weights: Weights = None,
    size: Size = None,
    attack_name: Annotated[str, typer.Option("--attack", help=f"The attack: {', '.join(ATTACKS)}.")] = "pgd",
    epsilon: Annotated[
        float | None,
        typer.Option(help="Largest change of a pixel, for pixels in [0, 1]. Default: 0.15, or 8/255 for photos."),
    ] = None,
    n_steps: Annotated[int | None, typer.Option(help="Number of steps of the attack.")] = None,
    label: Annotated[str | None, typer.Option(help="The true class, by index or name. Default: the prediction.")] = None,
    target: Annotated[
        str | None, typer.Option(help="The class to be predicted, by index or name. Default: any other class.")
    ] = None,
    method: Method = "lrp",
    sample: Sample = 0,
    experiment: Annotated[str | None, typer.Option(help=f"Run an experiment instead: {', '.join(EXPERIMENTS)}.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the start and of the experiment.")] = 0,
    out: Annotated[Path, typer.Option(help="Output file: .png, .jpg, .pdf or .svg.")] = Path("attack.png"),
    as_json: Json = False,
) -> None:
    """Search for an adversarial example, and draw it next to the input, each with its heatmap."""
    from whence.core.files import PICTURE_SUFFIXES, check_writable
    from whence.core.pixel_bounds import Box
    from whence.frontends.common.data import is_array_file
    from whence.frontends.common.methods import make_method, method_and_rules
    from whence.models.registry import load_model
    from whence.robustness.explanation_attacks import explain_attack

    check_writable(out, PICTURE_SUFFIXES)
    if experiment is not None:
        given = {"--label": label, "--target": target, "--weights": weights, "--size": size, "--n-steps": n_steps,
                 "the input": input, "--attack": attack_name if attack_name != "pgd" else None, "--sample": sample or None,
                 "--method": method if method != "lrp" else None}  # fmt: skip
        _check_experiment(experiment, [name for name, value in given.items() if value is not None])
        _run_experiment(experiment, EPSILON if epsilon is None else epsilon, seed, out, as_json)
        return
    if attack_name not in ATTACKS:
        raise RuleError(f"unknown attack {attack_name!r}; choose from {', '.join(ATTACKS)}")
    method_and_rules(method)
    loaded = load_model(model, weights, size=size)
    loaded.check_reads_images("attacks need a model of images")
    x = read_input(input, loaded, sample, "attack")
    is_picture = not is_array_file(input)
    box = loaded.preprocessing.box if is_picture or loaded.preprocessing.bounds_known else Box.unbounded()
    chosen = _make_attack(attack_name, epsilon, _default_epsilon(x), n_steps, loaded.class_index(target), box, seed)
    explained_by = make_method(method, None, loaded, x, is_picture=is_picture)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pair = explain_attack(loaded.model, x, loaded.class_index(label), chosen, method=explained_by).with_class_names(
            loaded.class_names
        )
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        warn(message)
    pair.save(out)
    report = _report(pair, loaded, input, sample, out)
    if as_json:
        print(json.dumps(report))
    else:
        warn_about_model(loaded, is_picture)
        _print(report)


def _default_epsilon(x: Any) -> float:
    return 8 / 255 if x.shape[1:2] == (3,) else EPSILON


def _make_attack(
    name: str, epsilon: float | None, usual: float, n_steps: int | None, target: int | None, box: "Box", seed: int
) -> "Attack":
    from whence.robustness.attack_methods import FGSM, MIFGSM, PGD, DeepFool

    given: dict[str, Any] = {} if n_steps is None else {"n_steps": n_steps}
    if name == "deepfool":
        if target is not None or epsilon is not None:
            option = "--epsilon" if target is None else "--target"
            raise RuleError(f"{option}: DeepFool is untargeted and unbounded; choose --attack pgd")
        return DeepFool(box=box, **given)
    epsilon = usual if epsilon is None else epsilon
    if name == "fgsm":
        if n_steps is not None:
            raise RuleError("--n-steps: FGSM takes one step; choose --attack pgd")
        return FGSM(epsilon, target_classes=target, box=box)
    if name == "mi-fgsm":
        return MIFGSM(epsilon, target_classes=target, box=box, **given)
    return PGD(epsilon, target_classes=target, box=box, seed=seed, **given)


def _report(pair: "AttackExplanation", loaded: "LoadedModel", input: str | None, sample: int, out: Path) -> dict[str, Any]:
    found = pair.result
    flipped, changes = (found.before != found.after).tolist(), pair.flip.conservation.relevance.tolist()
    return {
        "model": loaded.name,
        "trained": loaded.trained,
        "input": f"bundled digit {sample}" if input is None else input,
        "attack": type(found.attack).__name__,
        "success": found.success.tolist(),
        "right_before": (found.before == found.labels).tolist(),
        "samples": [
            dict(zip(("before", "after", "largest_change", "relevance_moved", "margin_changed_by"), row, strict=True))
            for row in zip(
                pair.before.target_names(),
                pair.after.target_names(),
                found.distances().tolist(),
                pair.moved.tolist(),
                [change if flip else None for change, flip in zip(changes, flipped, strict=True)],
                strict=True,
            )
        ],
        "picture": str(out),
    }


def _print(report: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not all(report["right_before"]):
        warn("the prediction differs from --label even without an attack")
    elif not any(report["success"]):
        warn(f"{report['attack']} found no adversarial example; this does not prove that none exists")
    title = f"{report['model']} on {report['input']}, attacked by {report['attack']}"
    rows = [
        (row["before"], row["after"], f"{row['largest_change']:.4g}", f"{row['relevance_moved']:.0%}")
        for row in report["samples"]
    ]
    print_table(console, ("before", "after", "largest change", "relevance moved"), rows, title, words=2)
    console.print(f"saved {report['picture']}", markup=False)


def _check_experiment(name: str, given: list[str]) -> None:
    if name not in EXPERIMENTS:
        raise RuleError(f"unknown experiment {name!r}; choose from {', '.join(EXPERIMENTS)}")
    if given:
        raise RuleError(f"--experiment {name} trains its own networks on its own data; remove {', '.join(given)}")


def _run_experiment(name: str, epsilon: float, seed: int, out: Path, as_json: bool) -> None:
    from whence.robustness.robust_features import robust_features_experiment

    found = robust_features_experiment(epsilon, seed=seed)
    found.save(out)
    if as_json:
        print(json.dumps({"experiment": name, "rows": found.rows, "picture": str(out)}))
        return
    console = Console(highlight=False, soft_wrap=True)
    data = found.base
    rows = []
    for row in found.rows:
        if row["over"] == "epsilon" and row["value"] in (0.0, epsilon):
            simulated = f"{row['simulated']:.2%} ± {row['standard_error']:.2%}"
            rows.append((f"{row['kind']} features", f"{row['value']:g}", f"{row['exact']:.2%}", simulated))
    title = f"d = {data.d} weak features of mean {data.mean:.3g}, one strong feature right with p = {data.p}"
    print_table(console, ("classifier", "ε", "accuracy, exact", "simulated"), rows, title)
    console.print(f"saved {out}", markup=False)
