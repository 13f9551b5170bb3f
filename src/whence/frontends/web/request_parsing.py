"""Resolve a request: the model, its input, the target and the method."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.detection import Detection
from whence.core.explain import explain
from whence.core.explainer import Explainer
from whence.core.explanation import Explanation
from whence.core.region import Region
from whence.core.targets import Logit
from whence.errors import InputError, RuleError, TargetError, suggest
from whence.frontends.common.comparisons import check_comparison
from whence.frontends.common.methods import PRESETS, default_method, make_method
from whence.frontends.web.images import MAX_PIXELS, MAX_UNRESIZED_PIXELS, decode_base64, drawing_to_tensor, open_image
from whence.frontends.web.output_choices import OutputChoices
from whence.frontends.web.progress_counter import report_progress
from whence.frontends.web.schemas import ExplainRequest, RuleSettings
from whence.frontends.web.served_models import input_shape, models
from whence.lrp.rules.rules import AlphaBeta, Epsilon, Gamma, LinearRule, ZPlus
from whence.methods.lrp import LRP
from whence.methods.registry import METHODS, SINGLE_GRAPH_METHODS
from whence.models.bundled import DIGIT_MODELS
from whence.models.loaded_model import LoadedModel

INPUT_NAMES = {"picture": "an image", "text": "a text", "table": "a table", "series": "a time series"}
MOST_ABSORBING = 3  # layers named


def read_question(question: ExplainRequest) -> tuple[LoadedModel, Any]:
    """Return the model and its input."""
    loaded = models[question.model]
    if question.drawing is not None and loaded.text is None:
        return loaded, drawing_to_tensor(question.drawing)
    if question.picture is not None and loaded.text is None:
        limit = MAX_UNRESIZED_PIXELS if loaded.preprocessing.size is None else MAX_PIXELS
        return loaded, loaded.preprocessing.of_image(open_image(decode_base64(question.picture), limit))
    if question.text is not None and loaded.text is not None:
        return loaded, loaded.text.read(question.text)
    if question.table is not None and loaded.table is not None:
        rows = loaded.table.read(question.table)
        if question.row >= len(rows):
            raise InputError(f"row {question.row} of a table of {len(rows)} rows; rows are counted from 0")
        return loaded, rows[question.row : question.row + 1]
    if question.series is not None and loaded.series is not None:
        return loaded, loaded.series.read(question.series)
    raise InputError(f"{loaded.name} needs {INPUT_NAMES[loaded.kind]}, but the request has none")


def make_target(question: ExplainRequest, loaded: LoadedModel, outputs: OutputChoices) -> Logit | Detection | Region:
    """Return the target of a request."""
    if outputs.kind in ("boxes", "map"):
        return outputs.target(question, loaded)
    target, other = loaded.target_class(question.target), loaded.target_class(question.rather_than)
    if target is not None and target == other:
        raise TargetError("the class is the same as the one it is compared with; expected two different classes")
    return Logit(target, other, question.position)


def make_question_method(question: ExplainRequest, loaded: LoadedModel, x: Any) -> Any:
    """Return the method of a request, configured for the model and its input."""
    name, is_picture = question.method or default_method(loaded), loaded.kind == "picture"
    if name in PRESETS:
        return make_method("lrp", name, loaded, x, is_picture)
    if name not in METHODS:
        raise RuleError(f"unknown method {name!r}{suggest(name, METHODS)}")
    if not sets_rules(question):
        return make_method(name, None, loaded, x, is_picture)
    return LRP(rules_by_hand(question.settings, loaded) | LRP().rules)  # type: ignore[operator]


def rules_by_hand(settings: RuleSettings, loaded: LoadedModel) -> dict[Any, Any]:
    """Return the rules that the user sets, by the types of layers that the model has."""
    dense, rule = Epsilon(settings.epsilon), make_rule(settings)
    kinds = {type(module) for module in loaded.model.modules()} if isinstance(loaded.model, nn.Module) else set()
    chosen = {nn.Conv1d: rule, nn.Conv2d: rule, nn.Linear: dense}
    return {kind: rule for kind, rule in chosen.items() if kind in kinds}


def explain_question(
    question: ExplainRequest, loaded: LoadedModel, x: Any, outputs: OutputChoices, layers: Sequence[str] = ()
) -> Explanation:
    """Return the explanation that a request describes."""
    target, method = make_target(question, loaded, outputs), make_question_method(question, loaded, x)
    if loaded.name in DIGIT_MODELS and isinstance(method, SINGLE_GRAPH_METHODS) and not sets_rules(question):
        replaying = replaying_explainer(question.model, question.method or default_method(loaded))
        e = replaying(x, target, layers=layers)
        check_comparison(e)
        return e
    e = explain(
        loaded.model, x, target, method=method, layers=layers, class_names=loaded.class_names,
        feature_names=loaded.feature_names, progress=report_progress,
    )  # fmt: skip
    e = e if loaded.text is None else e.with_tokens(loaded.text.tokenizer)
    check_comparison(e)
    return e


def make_rule(settings: RuleSettings) -> LinearRule:
    """Return the rule that the user sets by hand."""
    rules = {
        "gamma": Gamma(settings.gamma),
        "alpha_beta": AlphaBeta(settings.alpha, settings.alpha - 1, part=settings.part),
        "epsilon": Epsilon(settings.epsilon),
        "z_plus": ZPlus(),
    }
    return rules[settings.rule]


def sets_rules(question: ExplainRequest) -> bool:
    """Return whether the user sets the rules by hand: a slider gives many settings, each of which would need its own graph."""
    return question.method in (None, "lrp") and question.settings.rule != "default"


@lru_cache(maxsize=64)
def replaying_explainer(model: str, method: str) -> Explainer:
    """Return a cached explainer that replays a captured graph, fast enough for every stroke of a drawing."""
    loaded = models[model]
    question = ExplainRequest(model=model, method=method)
    x = torch.zeros(1, *input_shape(loaded))
    return Explainer(loaded.model, make_question_method(question, loaded, x), class_names=loaded.class_names, capture=True)


def describe_prediction(outputs: OutputChoices, e: Explanation, model: Any = None) -> dict[str, Any]:
    """Return the prediction, its top classes, boxes or regions, and the conservation of relevance."""
    account = e.conservation
    (target,) = e.target_names() if outputs.kind != "number" else [outputs.choices[0]["name"]]
    index = e.target.index if isinstance(e.target, Logit | Region | Detection) else e.target
    return {
        "target": {"name": target, "index": int(index) if isinstance(index, Tensor | int) else None},
        "kind": outputs.kind,
        "classes": outputs.choices,
        "method": e.method.name,
        "baseline": None if account.baseline is None else float(account.baseline),
        "absorbed_by": _most_absorbing(e, model),
        "box": list(e.target.box) if isinstance(e.target, Region) and e.target.box is not None else None,
        "point": e.target.point if isinstance(e.target, Region) else None,
        "output": float(account.output),
        "relevance_sum": float(account.relevance),
        "absorbed": None if account.absorbed is None else float(account.absorbed),
        "adds_up": account.adds_up,
        "caution": account.caution,
        "note": e.note,
    }


def _most_absorbing(e: Explanation, model: Any) -> list[dict[str, Any]]:
    """Return the layers that absorbed most, with their types."""
    amounts = {layer: float(amount.sum()) for layer, amount in e.conservation.by_layer.items()}
    order = sorted(amounts, key=lambda layer: -abs(amounts[layer]))[:MOST_ABSORBING]
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    return [
        {"layer": layer or "(outside of modules)", "kind": type(modules[layer]).__name__ if layer in modules else "",
         "amount": amounts[layer]} for layer in order
    ]  # fmt: skip
