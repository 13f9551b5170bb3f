"""What the page is answered, computed in a process of its own."""

from base64 import b64encode
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from whence.core.explain import explain
from whence.core.trees import tensors
from whence.errors import InputError
from whence.frontends.common.methods import PRESETS
from whence.frontends.web.images import packed, shown
from whence.frontends.web.resolve import answered, explainer, method_of, read, target_of, told
from whence.frontends.web.schemas import FileQuestion, PartQuestion, Question, Settings
from whence.frontends.web.served_models import Served, models, shape
from whence.mechanistic.channel_relevance import channels_last, strongest
from whence.methods.layer_reader import layer_shapes, leaves
from whence.methods.registry import METHODS
from whence.models.digits import digit_samples
from whence.models.registry import BUNDLED

CHANNELS_SHOWN = 12


def begin(served: Served) -> None:
    """What a process does first."""
    torch.set_num_threads(1)
    models.served = served
    for name, _ in served.models:
        loaded = models[name]
        if loaded.name in BUNDLED:  # the first explanation writes the graph that the others replay
            explainer(name, "lrp", Settings().model_dump_json())(torch.zeros(1, *shape(loaded)) + 0.5)


def about(_: None) -> list[dict[str, Any]]:
    """What there is to ask."""
    return [
        {
            "name": name,
            "takes": "text" if models[name].text is not None else "drawing" if name in BUNDLED else "picture",
            "trained": models[name].trained is not False,
            "classes": list(map(str, models[name].classes)),
            "methods": [m for m in METHODS if m != "shapley"],
            "presets": list(PRESETS),
            "data": models.has_data(name),
        }
        for name, _ in models.served.models
    ]


def explained(question: Question) -> dict[str, Any]:
    """Why this output?"""
    loaded, x = read(question)
    e = answered(question, loaded, x)
    found = told(loaded, x, e)
    for name, relevance in tensors(e.relevance).items():
        found["relevance"] = packed(relevance[0].sum(0) if relevance.dim() == 4 else relevance[0])
        if loaded.text is None:
            found["picture"] = shown(tensors(e.inputs)[name][0], loaded.preprocessing)
    if loaded.text is not None:
        found["tokens"] = e.with_tokens(loaded.text.tokenizer).tokens_of(0)
    return found


def layers(question: Question) -> dict[str, Any]:
    """Where relevance is, layer by layer, from the input up."""
    loaded, x = read(question)
    shapes = {name: shape for name, shape in layer_shapes(loaded.model, x).items() if len(shape) == 4 and shape[0] == 1}
    names = leaves(shapes)
    e = answered(question, loaded, x, names)
    found = []
    for name in names:
        r = channels_last(loaded.model, e, name)[0]
        channels = _strongest(r.flatten(0, 1).sum(0), float(e.output))
        about = {"name": name, "kind": _kind(loaded.model, name), "shape": list(shapes[name][1:])}
        found.append(about | {"map": packed(r.sum(-1)), "channels": channels})
    return told(loaded, x, e) | {"layers": found}


def through(question: PartQuestion) -> dict[str, Any]:
    """What flows through one channel, as a heatmap of the input."""
    loaded, x = read(question)
    if question.channel is None:
        raise InputError("which channel?")
    e = explain(loaded.model, x, target_of(question, loaded), method=method_of(question, loaded, x),
                through={question.layer: question.channel}, progress=False)  # fmt: skip
    return {"relevance": packed(e.relevance[0].sum(0)), "amount": float(e.conservation.output), "output": float(e.output)}


def written(question: FileQuestion) -> bytes:
    """The explanation as a file's bytes."""
    loaded, x = read(question)
    e = answered(question, loaded, x)
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


def _strongest(relevance: Tensor, output: float) -> list[dict[str, Any]]:
    chosen = strongest(relevance, CHANNELS_SHOWN, output)
    return [{"channel": c, "share": float(relevance[c]) / output if output else 0.0} for c in chosen]


def _kind(model: Any, name: str) -> str:
    return type(model.get_submodule(name)).__name__
