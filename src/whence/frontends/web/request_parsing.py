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
from whence.frontends.common.methods import PRESETS, make_method
from whence.frontends.web.images import MAX_PIXELS, MAX_UNRESIZED_PIXELS, decode_base64, drawing_to_tensor, open_image
from whence.frontends.web.picture_outputs import PictureOutputs
from whence.frontends.web.schemas import ExplainRequest, RuleSettings
from whence.frontends.web.served_models import input_shape, models
from whence.lrp.rules.rules import AlphaBeta, Epsilon, Gamma, LinearRule, ZPlus
from whence.methods.lrp import LRP
from whence.methods.registry import METHODS, SINGLE_GRAPH_METHODS
from whence.models.registry import BUNDLED, LoadedModel


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
    raise InputError(f"{loaded.name} needs {'a text' if loaded.text is not None else 'an image'}, but the request has none")


def make_target(question: ExplainRequest, loaded: LoadedModel, outputs: PictureOutputs) -> Logit | Detection | Region:
    """Return the target of a request."""
    if outputs.kind != "classes":
        return outputs.target(question, loaded)
    target, other = loaded.class_index(question.target), loaded.class_index(question.rather_than)
    if target is not None and target == other:
        raise TargetError("the class is the same as the one it is compared with; expected two different classes")
    return Logit(target, other, question.position)


def make_question_method(question: ExplainRequest, loaded: LoadedModel, x: Any) -> Any:
    """Return the method of a request, configured for the model and its input."""
    settings = question.settings
    if question.method in PRESETS:
        return make_method("lrp", question.method, loaded, x, is_picture=loaded.text is None)
    if question.method not in METHODS:
        raise RuleError(f"unknown method {question.method!r}{suggest(question.method, METHODS)}")
    if not _sets_rules(question):
        return make_method(question.method, None, loaded, x, is_picture=loaded.text is None)
    dense, rule = Epsilon(settings.epsilon), make_rule(settings)
    kinds = {type(module) for module in loaded.model.modules()} if isinstance(loaded.model, nn.Module) else set()
    chosen = {nn.Conv1d: rule, nn.Conv2d: rule, nn.Linear: dense}
    mine: dict[Any, Any] = {kind: rule for kind, rule in chosen.items() if kind in kinds}
    return LRP(mine | LRP().rules)  # type: ignore[operator]


def explain_question(
    question: ExplainRequest, loaded: LoadedModel, x: Any, outputs: PictureOutputs, layers: Sequence[str] = ()
) -> Explanation:
    """Return the explanation that a request describes."""
    target, method = make_target(question, loaded, outputs), make_question_method(question, loaded, x)
    if loaded.name in BUNDLED and isinstance(method, SINGLE_GRAPH_METHODS) and not _sets_rules(question):
        replaying = replaying_explainer(question.model, question.method)
        return replaying(x, target, layers=layers)
    return explain(loaded.model, x, target, method=method, layers=layers, class_names=loaded.class_names, progress=False)


def make_rule(settings: RuleSettings) -> LinearRule:
    """Return the rule that the user sets by hand."""
    rules = {
        "gamma": Gamma(settings.gamma),
        "alpha_beta": AlphaBeta(settings.alpha, settings.alpha - 1, part=settings.part),
        "epsilon": Epsilon(settings.epsilon),
        "z_plus": ZPlus(),
    }
    return rules[settings.rule]


def _sets_rules(question: ExplainRequest) -> bool:
    """Return whether the user sets the rules by hand: a slider gives many settings, each of which would need its own graph."""
    return question.method == "lrp" and question.settings.rule != "default"


@lru_cache(maxsize=64)
def replaying_explainer(model: str, method: str) -> Explainer:
    """Return a cached explainer that replays a captured graph, fast enough for every stroke of a drawing."""
    loaded = models[model]
    question = ExplainRequest(model=model, method=method)
    x = torch.zeros(1, *input_shape(loaded))
    return Explainer(loaded.model, make_question_method(question, loaded, x), class_names=loaded.class_names, capture=True)


def describe_prediction(outputs: PictureOutputs, e: Explanation) -> dict[str, Any]:
    """Return the prediction, its top classes, boxes or regions, and the conservation of relevance."""
    account = e.conservation
    (target,) = e.target_names()
    index = e.target.index if isinstance(e.target, Logit | Region | Detection) else e.target
    return {
        "target": {"name": target, "index": int(index) if isinstance(index, Tensor | int) else None},
        "kind": outputs.kind,
        "classes": outputs.choices,
        "point": e.target.point if isinstance(e.target, Region) else None,
        "output": float(account.output),
        "relevance_sum": float(account.relevance),
        "absorbed": None if account.absorbed is None else float(account.absorbed),
        "adds_up": account.adds_up,
        "caution": account.caution,
        "note": e.note,
    }
