"""What the page is answered, computed in a process of its own."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from whence.cli.methods import PRESETS, configured
from whence.errors import InputError, RuleError, TargetError, suggestion
from whence.explain import explain
from whence.explainer import Explainer
from whence.explanation import Explanation
from whence.inside.channels import channels_last, strongest
from whence.lrp.rules import AlphaBeta, Epsilon, Gamma, ZPlus
from whence.methods.lrp import LRP
from whence.methods.readings import layer_shapes
from whence.methods.table import IN_ONE_GRAPH, METHODS
from whence.models.digits import digit_samples
from whence.models.registry import BUNDLED, LoadedModel, load_model
from whence.nests import tensors
from whence.targets import Logit
from whence.web.pictures import decoded, drawn, opened, packed, shown
from whence.web.questions import FileQuestion, PartQuestion, Question, Settings

CLASSES_SHOWN = 10
CHANNELS_SHOWN = 12


@dataclass
class Models:
    """The models that the server was started with, loaded in this process."""

    names: Sequence[tuple[str, str | None]]  # with their weights
    loaded: dict[str, LoadedModel] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LoadedModel:
        weights = dict(self.names)
        if name not in weights:
            raise InputError(f"no model {name!r} was started here{suggestion(name, weights)}")
        if name not in self.loaded:
            self.loaded[name] = load_model(name, weights[name])
        return self.loaded[name]


_models = Models(())


def begin(names: Sequence[tuple[str, str | None]]) -> None:
    """What a process does first."""
    global _models
    torch.set_num_threads(1)
    _models = Models(names)
    for name, _ in names:
        loaded = _models[name]
        if loaded.name in BUNDLED:  # the first explanation writes the graph that the others replay
            _explainer(name, "lrp", Settings().model_dump_json())(torch.zeros(1, *_shape(loaded)) + 0.5)


def about(names: Sequence[str]) -> list[dict[str, Any]]:
    """What there is to ask."""
    return [
        {
            "name": name,
            "takes": "text" if _models[name].text is not None else "drawing" if name in BUNDLED else "picture",
            "trained": _models[name].trained is not False,
            "classes": list(map(str, _models[name].classes)),
            "methods": [m for m in METHODS if m != "shapley"],
            "presets": list(PRESETS),
        }
        for name in names
    ]


def explained(question: Question) -> dict[str, Any]:
    """Why this output?"""
    loaded, x = _read(question)
    e = _explained(question, loaded, x)
    found = _told(loaded, x, e)
    for name, relevance in tensors(e.relevance).items():
        found["relevance"] = packed(relevance[0].sum(0) if relevance.dim() == 4 else relevance[0])
        if loaded.text is None:
            found["picture"] = shown(tensors(e.inputs)[name][0], loaded.preprocessing)
    if loaded.text is not None:
        found["tokens"] = e.with_tokens(loaded.text.tokenizer).tokens_of(0)
    return found


def layers(question: Question) -> dict[str, Any]:
    """Where relevance is, layer by layer, from the input up."""
    loaded, x = _read(question)
    shapes = {name: shape for name, shape in layer_shapes(loaded.model, x).items() if len(shape) == 4 and shape[0] == 1}
    names = [name for name in shapes if not any(other.startswith(f"{name}.") for other in shapes)]
    e = _explained(question, loaded, x, names)
    found = []
    for name in names:
        r = channels_last(loaded.model, e, name)[0]
        channels = _strongest(r.flatten(0, 1).sum(0), float(e.output))
        about = {"name": name, "kind": _kind(loaded.model, name), "shape": list(shapes[name][1:])}
        found.append(about | {"map": packed(r.sum(-1)), "channels": channels})
    return _told(loaded, x, e) | {"layers": found}


def through(question: PartQuestion) -> dict[str, Any]:
    """What flows through one channel, as a heatmap of the input."""
    loaded, x = _read(question)
    if question.channel is None:
        raise InputError("which channel?")
    e = explain(loaded.model, x, _target(question, loaded), method=_method(question, loaded, x),
                through={question.layer: question.channel}, progress=False)  # fmt: skip
    return {"relevance": packed(e.relevance[0].sum(0)), "amount": float(e.conservation.output), "output": float(e.output)}


def written(question: FileQuestion) -> bytes:
    """The explanation as a file's bytes."""
    loaded, x = _read(question)
    e = _explained(question, loaded, x)
    e = e if loaded.text is None else e.with_tokens(loaded.text.tokenizer)
    with TemporaryDirectory() as folder:
        return e.save(Path(folder) / f"explanation.{question.format}").read_bytes()


def digits() -> list[dict[str, Any]]:
    """Some to begin with."""
    x, y = digit_samples()
    pixels = (x * 255).round().byte().flatten(1)
    return [
        {"label": label, "pixels": b64encode(bytes(row)).decode()}
        for label, row in zip(y.tolist(), pixels.tolist(), strict=True)
    ]


def _explained(question: Question, loaded: LoadedModel, x: Any, layers: Sequence[str] = ()) -> Explanation:
    target, method = _target(question, loaded), _method(question, loaded, x)
    if loaded.name in BUNDLED and isinstance(method, IN_ONE_GRAPH):
        explainer = _explainer(question.model, question.method, question.settings.model_dump_json())
        return explainer(x, target, layers=layers)
    return explain(loaded.model, x, target, method=method, layers=layers, class_names=loaded.classes, progress=False)


@lru_cache(maxsize=64)
def _explainer(model: str, method: str, settings: str) -> Explainer:
    """One that replays, for what is asked at every stroke."""
    loaded = _models[model]
    question = Question(model=model, method=method, settings=Settings.model_validate_json(settings))
    x = torch.zeros(1, *_shape(loaded))
    return Explainer(loaded.model, _method(question, loaded, x), class_names=loaded.classes, capture=True)


def _read(question: Question) -> tuple[LoadedModel, Any]:
    loaded = _models[question.model]
    if question.drawing is not None and loaded.text is None:
        return loaded, drawn(question.drawing)
    if question.picture is not None and loaded.text is None:
        return loaded, loaded.preprocessing.of_image(opened(decoded(question.picture)))
    if question.text is not None and loaded.text is not None:
        return loaded, loaded.text.read(question.text)
    raise InputError(f"{loaded.name} reads {'a text' if loaded.text is not None else 'a picture'}, and none was sent")


def _target(question: Question, loaded: LoadedModel) -> Logit:
    target, other = _index(question.target, loaded), _index(question.rather_than, loaded)
    if target is not None and target == other:
        raise TargetError("the class is the same as the one it is compared with; there is no difference to explain")
    return Logit(target, other, question.position)


def _index(given: int | str | None, loaded: LoadedModel) -> int | None:
    if given is None or isinstance(given, int):
        return given
    if given in loaded.classes:
        return list(loaded.classes).index(given)
    if loaded.text is not None and not loaded.classes:
        return loaded.text.token_id(given)
    raise TargetError(f"{loaded.name} has no class {given!r}{suggestion(given, loaded.classes)}")


def _method(question: Question, loaded: LoadedModel, x: Any) -> Any:
    settings = question.settings
    if question.method in PRESETS:
        return configured("lrp", question.method, loaded, x, is_picture=loaded.text is None)
    if question.method not in METHODS:
        raise RuleError(f"no method {question.method!r}{suggestion(question.method, METHODS)}")
    if question.method != "lrp" or settings.rule == "default":
        return configured(question.method, None, loaded, x, is_picture=loaded.text is None)
    dense = Epsilon(settings.epsilon)
    rules = {
        "gamma": Gamma(settings.gamma),
        "alpha_beta": AlphaBeta(settings.alpha, settings.alpha - 1, part=settings.part),
        "epsilon": dense,
        "z_plus": ZPlus(),
    }
    kinds = {type(module) for module in loaded.model.modules()} if isinstance(loaded.model, nn.Module) else set()
    chosen = {nn.Conv1d: rules[settings.rule], nn.Conv2d: rules[settings.rule], nn.Linear: dense}
    mine: dict[Any, Any] = {kind: rule for kind, rule in chosen.items() if kind in kinds}
    return LRP(mine | LRP().rules)  # type: ignore[operator]


def _told(loaded: LoadedModel, x: Any, e: Explanation) -> dict[str, Any]:
    """The prediction and the account."""
    account = e.conservation
    with torch.no_grad():
        outputs = loaded.model(**x) if isinstance(x, dict) else loaded.model(x)
    logits = getattr(outputs, "logits", outputs)
    logits = logits[:, -1] if logits.dim() == 3 else logits
    likeliest = logits[0].softmax(0).topk(min(CLASSES_SHOWN, logits.shape[1]))
    (target,) = e.target_names()
    index = e.target.index if isinstance(e.target, Logit) else e.target
    return {
        "target": {"name": target, "index": int(index[0]) if isinstance(index, Tensor) else None},
        "classes": [
            {"index": i, "name": _name(i, loaded), "share": share}
            for i, share in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        ],
        "output": float(account.output),
        "relevance_sum": float(account.relevance),
        "absorbed": None if account.absorbed is None else float(account.absorbed),
        "adds_up": account.adds_up,
        "caution": account.caution,
        "note": e.note,
    }


def _name(index: int, loaded: LoadedModel) -> str:
    if index < len(loaded.classes):
        return str(loaded.classes[index])
    return loaded.text.tokenizer.decode([index]) if loaded.text is not None else str(index)


def _strongest(relevance: Tensor, output: float) -> list[dict[str, Any]]:
    chosen = strongest(relevance, CHANNELS_SHOWN, output)
    return [{"channel": c, "share": float(relevance[c]) / output if output else 0.0} for c in chosen]


def _kind(model: Any, name: str) -> str:
    return type(model.get_submodule(name)).__name__


def _shape(loaded: LoadedModel) -> tuple[int, ...]:
    size = loaded.preprocessing.size or (28, 28)
    return (loaded.preprocessing.channels, *size)
