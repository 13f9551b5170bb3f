"""The Python code and the command that compute the explanation on the page."""

import shlex
from dataclasses import fields
from typing import Any

from torch import Tensor

from whence.core.detection import Detection
from whence.core.region import Region
from whence.core.targets import Logit
from whence.core.trees import Tree
from whence.frontends.common.choices import BOX_PRESETS
from whence.frontends.common.methods import PRESETS, default_method
from whence.frontends.common.text_files import STANDARD_INPUT, SUFFIXES
from whence.frontends.web.output_choices import LEAST_SCORE, OutputChoices
from whence.frontends.web.request_parsing import make_question_method, make_target, read_question, rules_by_hand, sets_rules
from whence.frontends.web.schemas import CodeRequest
from whence.frontends.web.served_models import models
from whence.methods.feature_masks import PATCHES_PER_SIDE
from whence.models.loaded_model import LoadedModel

FILE_NAMES = {"drawing": "digit.png", "picture": "photo.png", "table": "rows.csv", "series": "series.csv"}


def code_handler(question: CodeRequest) -> dict[str, Any]:
    """Return the code, the command, and a hint for each where it needs one."""
    loaded, x = read_question(question)
    target = make_target(question, loaded, OutputChoices.of(loaded, x))
    return {"python": python_code(question, loaded, x, target), **command(question, loaded, target)}


def python_code(question: CodeRequest, loaded: LoadedModel, x: Tree, target: Any) -> str:
    """Return lines of Python that compute the explanation of a request."""
    weights = dict(models.served.models)[question.model]
    arguments = ["loaded.model", "x", _target_code(target), f"method={_method_code(question, loaded, x)}"]
    arguments += [f"{name}=loaded.{name}" for name in ("class_names", "feature_names") if getattr(loaded, name)]
    lines = [
        f"loaded = whence.load_model({question.model!r}{f', {weights!r}' if weights else ''})",
        f"x = {_input_code(question, loaded)}",
        "e = whence.explain(",
        *(f"    {argument}," for argument in arguments),
        ")",
    ]
    if loaded.text is not None:
        lines.append("e = e.with_tokens(loaded.text.tokenizer)")
    if loaded.series is not None and loaded.series.sampling_rate is not None:
        lines.append(f"e = e.with_time(sampling_rate={loaded.series.sampling_rate!r})")
    lines += ["print(e)", 'e.save("heat.png")']
    body = "\n".join(lines)
    used = [name for name in ("base64", "pathlib", "torch") if f"{name}." in body]
    return "\n".join([*(f"import {name}" for name in used), *([""] if used else []), "import whence", "", body])


def command(question: CodeRequest, loaded: LoadedModel, target: Any) -> dict[str, str | None]:
    """Return the command line of a request, and what it needs or why there is none."""
    if sets_rules(question):
        return {"command": None, "hint": "rules that are set by hand have no option on the command line; use the Python code"}
    given, hint = _command_input(question, loaded)
    weights = dict(models.served.models)[question.model]
    options = {"--model": question.model, "--weights": weights}
    if isinstance(target, Detection):
        options |= {"--detection": target.index, "--score": LEAST_SCORE}
    elif isinstance(target, Region):
        options |= {"--region": "predicted" if target.index is None else target.index, "--point": _numbers(target.point)}
        options |= {"--box": _numbers(target.box)}
    else:
        options |= {"--target": target.index, "--rather-than": target.rather_than}
        options |= {"--position": target.position if loaded.text is not None and target.position != -1 else None}
    name = question.method or default_method(loaded)
    options |= {"--method": None if name == default_method(loaded) else name}
    row = question.row if question.table is not None and question.sample is None else question.sample
    options |= {"--sample": row or None, "--out": "heat.png"}
    words = ["whence", "explain", *(str(w) for pair in options.items() if pair[1] is not None for w in pair)]
    if question.text is not None and question.sample is None and _reads_as_file(question.text):
        return {"command": None, "hint": "the command line would take this text for the name of a file; use the Python code"}
    words = [*words, "--", *given] if given and given[0].startswith("-") else [*words[:2], *given, *words[2:]]
    return {"command": shlex.join(words), "hint": hint}


def _reads_as_file(text: str) -> bool:
    return text == STANDARD_INPUT or (len(text.split()) == 1 and text.endswith(SUFFIXES))


def _command_input(question: CodeRequest, loaded: LoadedModel) -> tuple[list[str], str | None]:
    """Return the argument for the input, and which file it needs."""
    if question.sample is not None:
        return [], None
    if question.text is not None:
        return [question.text], None
    kind = next(name for name in FILE_NAMES if getattr(question, name) is not None)
    name = question.file or FILE_NAMES[kind]
    return [name], None if question.file else f"save the input as {name} first"


def _input_code(question: CodeRequest, loaded: LoadedModel) -> str:
    if question.sample is not None:
        return f"loaded.examples()[{question.sample}]"
    if question.text is not None:
        return f"loaded.text.read({question.text!r})"
    if question.drawing is not None:
        return (
            f'torch.frombuffer(bytearray(base64.b64decode("{question.drawing}")), dtype=torch.uint8).view(1, 1, 28, 28) / 255'
        )
    if question.picture is not None:
        return f"loaded.preprocessing.read({question.file or FILE_NAMES['picture']!r})"
    kind = "table" if question.table is not None else "series"
    rows = f"[{question.row} : {question.row + 1}]" if kind == "table" else ""
    return f"loaded.{kind}.read(pathlib.Path({question.file or FILE_NAMES[kind]!r}).read_text()){rows}"


def _target_code(target: Any) -> str:
    if isinstance(target, Detection):
        return f"whence.Detection({target.index}, score={LEAST_SCORE})"
    if isinstance(target, Region):
        place = {"point": target.point, "box": target.box}
        given = [str(target.index), *(f"{name}={tuple(value)}" for name, value in place.items() if value is not None)]
        return f"whence.Region({', '.join(given)})"
    if not isinstance(target, Logit):
        return str(target)
    given = [repr(target.index)]
    given += [] if target.rather_than is None else [f"rather_than={target.rather_than!r}"]
    given += [] if target.position == -1 else [f"position={target.position}"]
    return given[0] if len(given) == 1 else f"whence.Logit({', '.join(given)})"


def _method_code(question: CodeRequest, loaded: LoadedModel, x: Tree) -> str:
    name = question.method or default_method(loaded)
    if sets_rules(question):
        by_hand = rules_by_hand(question.settings, loaded)
        rules = ", ".join(f"torch.nn.{kind.__name__}: whence.{rule!r}" for kind, rule in by_hand.items())
        return f"whence.LRP({{{rules}}} | whence.LRP().rules)"
    if name in BOX_PRESETS:
        return f"whence.LRP(whence.presets.{name}(*loaded.preprocessing.bounds))"
    if name in PRESETS:
        return repr(name)
    method = make_question_method(question, loaded, x)
    given = []
    if "feature_mask" in {f.name for f in fields(method)} and isinstance(method.feature_mask, Tensor):
        assert isinstance(x, Tensor)
        given.append(f"feature_mask=whence.patches(x, {-(-max(x.shape[2:]) // PATCHES_PER_SIDE)})")
    if getattr(method, "background", None) is not None:
        given.append("background=loaded.table.background")
    if getattr(method, "baselines", None) is not None:
        given.append(f"baselines={method.baselines!r}")
    return f"whence.{type(method).__name__}({', '.join(given)})"


def _numbers(values: Any) -> str | None:
    return None if values is None else ",".join(f"{value:g}" for value in values)
