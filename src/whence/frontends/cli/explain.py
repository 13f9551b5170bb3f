"""`whence explain`: the heatmap of a model's prediction for an image, a text or a bundled digit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from whence.errors import InputError, TargetError
from whence.frontends.cli.options import Input, Json, Model, OptionalMethod, Rules, Sample, Size, Weights
from whence.frontends.cli.picture_targets import PictureTarget
from whence.frontends.common.terminal import print_table, warn, warn_about_model

if TYPE_CHECKING:
    from torch import Tensor

    from whence.core.explanation import Explanation
    from whence.models.loaded_model import LoadedModel

MOST_NAMED = 20  # classes
EXAMPLE_INPUTS = {
    "picture": ("an image", "photo.jpg"),
    "text": ("a text", "'a sentence'"),
    "table": ("a table", "rows.csv"),
    "series": ("a time series", "series.csv"),
}
PART_LABELS = {
    "relevance": "relevance",
    "absorbed": "absorbed (the share of biases, ε, shifts, softmaxes and second-order terms)",
    "baseline": "baseline (the output at the baseline or root)",
}


def explain(
    input: Input = None,
    model: Model = "digits",
    weights: Weights = None,
    size: Size = None,
    target: Annotated[
        str | None, typer.Option(help="The class or token to explain, by index or name. Default: the top class.")
    ] = None,
    rather_than: Annotated[str | None, typer.Option(help="Explain the difference to this class or token.")] = None,
    position: Annotated[
        int, typer.Option(help="Position of the token after which a language model predicts; -1 is the last.")
    ] = -1,
    detection: Annotated[
        str | None, typer.Option(help="Explain a detected box: its number by score, a class, CLASS:NUMBER, or all boxes.")
    ] = None,
    score: Annotated[float, typer.Option(help="The least score of a box.")] = 0.5,
    region: Annotated[
        str | None, typer.Option(help="Explain a class of a segmentation, by index or name; 'predicted' for the largest.")
    ] = None,
    point: Annotated[
        str | None,
        typer.Option(help="The region: a pixel X,Y, of the photo as the model takes it. Default: the predicted part."),
    ] = None,
    box: Annotated[str | None, typer.Option(help="The region: a box LEFT,TOP,RIGHT,BOTTOM in those pixels.")] = None,
    method: OptionalMethod = None,
    rules: Rules = None,
    sample: Sample = 0,
    text: Annotated[list[str] | None, typer.Option(help="Text of vision-language models; repeatable for CLIP.")] = None,
    out: Annotated[
        Path, typer.Option(help="Output file: .png, .jpg, .pdf, .svg, .html, .csv, .json, .npz or .safetensors.")
    ] = Path("heat.png"),
    reliable: Annotated[
        bool, typer.Option("--reliability", help="Also measure whether the most relevant features keep the output.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Explain a prediction by a heatmap of relevance."""
    from whence.core.explain import explain as run
    from whence.core.targets import Logit
    from whence.evaluation.reliability import reliability
    from whence.frontends.common.comparisons import check_comparison
    from whence.frontends.common.data import is_array_file
    from whence.frontends.common.methods import default_method, make_method, row_imputer
    from whence.models.registry import load_model

    _check(method or "lrp", rules, out)
    place = PictureTarget(detection, score, region, point, box)
    place.check(target, rather_than)
    loaded = load_model(model, weights, size=size)
    x = (
        read_input(input, loaded, sample)
        if loaded.vision_language is None
        else loaded.vision_language.read(_require_image(input, loaded), text or [])
    )
    if text and loaded.vision_language is None:
        raise InputError(f"--text: {loaded.name} does not take an image and a text")
    chosen = make_method(method or ("lrp" if rules else default_method(loaded)), rules, loaded, x, not is_array_file(input))
    if loaded.vision_language is not None and loaded.vision_language.compares:
        explained: Any = _text_target(loaded.model, x, text or [], target, rather_than)
    else:
        if detection == "all":
            _explain_boxes(loaded, x, score, chosen, out, as_json)
            return
        explained = place.read(loaded) or Logit(loaded.target_class(target), loaded.target_class(rather_than), position)
    if isinstance(explained, Logit) and explained.index is not None and explained.index == explained.rather_than:
        raise TargetError(f"--target and --rather-than are both {target}; expected two different classes")
    explanation = run(
        loaded.model, x, explained, method=chosen, class_names=loaded.class_names, feature_names=loaded.feature_names
    )
    check_comparison(explanation)
    if loaded.text is not None:
        explanation = explanation.with_tokens(loaded.text.tokenizer)
    if loaded.series is not None and loaded.series.sampling_rate is not None:
        explanation = explanation.with_time(sampling_rate=loaded.series.sampling_rate)
    explanation.save(out)
    report = _report(explanation, loaded, input, sample, out)
    if reliable:
        report["reliability"] = reliability(loaded.model, explanation, x, imputer=row_imputer(loaded)).sentences
    if as_json:
        print(json.dumps(report))
    else:
        warn_about_model(loaded, loaded.kind == "picture" and not is_array_file(input))
        _print(report)


def _explain_boxes(loaded: "LoadedModel", x: Any, score: float, method: Any, out: Path, as_json: bool) -> None:
    from whence.core.explain_detections import explain_detections
    from whence.core.result import RESULT_SUFFIXES

    if out.suffix not in RESULT_SUFFIXES:
        raise InputError(f"cannot save all boxes as {out.name!r}; the suffix must be one of {', '.join(RESULT_SUFFIXES)}")
    boxes = explain_detections(loaded.model, x, score=score, method=method, class_names=loaded.class_names)
    boxes.save(out)
    if as_json:
        print(json.dumps({"model": loaded.name, "boxes": list(boxes.table), "picture": str(out)}))
        return
    warn_about_model(loaded, True)
    console = Console(highlight=False, soft_wrap=True)
    columns = ("box", "label", "score", "left", "top", "right", "bottom", "output", "relevance")
    rows = [tuple(f"{v:.4g}" if isinstance(v, float) else str(v) for v in map(row.get, columns)) for row in boxes.table]
    print_table(console, columns, rows, f"{len(boxes)} boxes by {loaded.name}")
    console.print(f"saved {out}", markup=False)


def _require_image(input: str | None, loaded: "LoadedModel") -> str:
    if input is None:
        raise InputError(
            f"nothing to explain: pass a photo, as in `whence explain photo.jpg --text 'a cat' --model {loaded.name}`"
        )
    return input


def _text_target(
    model: Any, x: Any, texts: list[str], target: str | None, rather_than: str | None
) -> "Callable[[Any], Tensor]":
    """Return a target function, the score of one text for the image; the text of the highest score if none is named."""
    import torch

    chosen, other = (_number(text, texts) for text in (target, rather_than))
    if chosen is None:
        with torch.no_grad():
            chosen = int(model(**x).logits_per_image.argmax(1))

    def score(outputs: Any) -> "Tensor":
        scores = outputs.logits_per_image
        return scores[:, chosen] if other is None else scores[:, chosen] - scores[:, other]

    score.__name__ = texts[chosen] if other is None else f"{texts[chosen]} rather than {texts[other]}"
    return score


def _number(text: str | None, texts: list[str]) -> int | None:
    if text is None or text in texts:
        return None if text is None else texts.index(text)
    if text.isdecimal() and int(text) < len(texts):
        return int(text)
    raise TargetError(f"{text!r} is not one of the --text options; pass one of them, or an index from 0 to {len(texts) - 1}")


def _check(method: str, rules: str | None, out: Path) -> None:
    """Check the options that can be checked before the model is loaded."""
    from whence.core.explanation import SUFFIXES
    from whence.core.files import check_writable
    from whence.frontends.common.methods import method_and_rules

    method_and_rules(method, rules)
    check_writable(out, SUFFIXES)


def read_input(given: str | None, loaded: "LoadedModel", sample: int, command: str = "explain") -> Any:
    """Return the input to explain: an image, an array, a text, a row of a table, a series, or a bundled example."""
    from whence.frontends.common.data import is_array_file, read_array
    from whence.frontends.common.text_files import read_text
    from whence.models.bundled import DIGIT_MODELS
    from whence.models.csv_inputs import read_csv_file
    from whence.models.image_files import read_image, to_8bit

    if given is None:
        if loaded.examples is None:
            what, example = EXAMPLE_INPUTS[loaded.kind]
            raise InputError(f"nothing to {command}: pass {what}, as in `whence {command} {example} --model {loaded.name}`")
        examples = loaded.examples()
        if not 0 <= sample < len(examples):
            raise InputError(
                f"--sample {sample} is out of range: there are {len(examples)} bundled inputs, 0 to {len(examples) - 1}"
            )
        return examples[sample]
    if loaded.text is not None:
        return loaded.text.read(read_text(given))
    if loaded.series is not None and not is_array_file(given):
        return loaded.series.read(read_csv_file(given))
    if loaded.table is not None and not is_array_file(given):
        rows = loaded.table.read(read_csv_file(given))
        if not 0 <= sample < len(rows):
            raise InputError(f"--sample {sample} is out of range: {given} has {len(rows)} rows, 0 to {len(rows) - 1}")
        return rows[sample : sample + 1]
    if is_array_file(given):
        return _to_model_dtype(read_array(Path(given)), loaded.model)
    image = to_8bit(read_image(given), given)
    if loaded.name in DIGIT_MODELS and image.size != loaded.preprocessing.size:
        warn(f"{loaded.name} expects digits, white on black, 28 × 28; pass another model for other images: --model")
    return loaded.preprocessing.of_image(image)


def _to_model_dtype(x: "Tensor", model: Any) -> "Tensor":
    """Return floating-point inputs in the dtype of the model."""
    from whence.core.devices import first_weight

    weight = first_weight(model)
    return x if weight is None or not x.is_floating_point() else x.to(weight.dtype)


def _report(explanation: "Explanation", loaded: "LoadedModel", input: str | None, sample: int, out: Path) -> dict[str, Any]:
    from torch import Tensor

    from whence.core.targets import Logit

    account, target = explanation.conservation, explanation.target
    index = target.index if isinstance(target, Logit) else None
    numbers = index.tolist() if isinstance(index, Tensor) else [None] * len(explanation)
    texts = _text(explanation) if explanation.tokens else {}
    return {
        "model": loaded.name,
        "trained": loaded.trained,
        "input": _input_name(input, loaded, sample),
        "method": type(explanation.method).__name__,
        "rules": repr(rules) if (rules := getattr(explanation.method, "rules", None)) is not None else None,
        "target": [{"index": i, "name": name} for i, name in zip(numbers, explanation.target_names(), strict=True)],
        "output": account.output.tolist(),
        "relevance": account.relevance.tolist(),
        "absorbed": None if account.absorbed is None else account.absorbed.tolist(),
        "baseline": None if account.baseline is None else account.baseline.tolist(),
        "adds_up": account.adds_up,
        "error": account.error.tolist(),
        "photo": loaded.vision_language is not None,
        "note": explanation.note,
        "caution": account.caution,
        "picture": str(out),
        **texts,
    }


def _input_name(input: str | None, loaded: "LoadedModel", sample: int) -> str:
    if input is None:
        return f"bundled {'digit' if loaded.name.startswith('digits') else 'example'} {sample}"
    return f"row {sample} of {input}" if loaded.table is not None else input


def _text(explanation: "Explanation") -> dict[str, Any]:
    """Return the tokens and relevance of the first text, or of the most relevant of several texts for one image."""
    from whence.core.trees import named_leaves

    name, rows = next(iter(explanation.tokens.items()))
    relevance = named_leaves(explanation.relevance)[name]
    row = 0 if len(rows) == len(explanation) else int(relevance.abs().sum(1).argmax())
    return {"tokens": rows[row], "scores": relevance[row].tolist()}


def _print(report: dict[str, Any]) -> None:
    import torch

    console = Console(highlight=False, soft_wrap=True)
    if "tokens" in report:
        from whence.plotting import token_text

        console.print(token_text.terminal_text(*token_text.merge_runs(report["tokens"], torch.tensor(report["scores"]))))
        console.print()
    named = "a text" if "tokens" in report and not report["photo"] else report["input"]
    parts = [part for part in ("relevance", "absorbed", "baseline") if report[part] is not None]
    headings = ("target", "output", *parts, *(["error"] if report["adds_up"] else []))
    rows = []
    for i, target in enumerate(report["target"]):
        number = target["index"]
        name = target["name"] if number is None or target["name"] == str(number) else f"{number} {target['name']}"
        amounts = [f"{report[heading][i]:{'.0e' if heading == 'error' else '.4g'}}" for heading in headings[1:]]
        rows.append((name, *amounts))
    of_rules = f", {report['rules']}" if report["rules"] else ""
    print_table(console, headings, rows, f"{report['model']} on {named}, explained by {report['method']}{of_rules}")
    if report["note"]:
        console.print(f"the explained output: {report['note']}")
    if report["caution"]:
        warn(report["caution"])
    for sentence in report.get("reliability", ()):
        console.print(sentence)
    if len(parts) > 1:
        console.print(f"output = {' + '.join(PART_LABELS[part] for part in parts)}")
    console.print(f"saved {report['picture']}", markup=False)
