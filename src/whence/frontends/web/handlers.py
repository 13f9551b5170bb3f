"""Handlers of the page's requests, run in worker processes."""

import os
import shutil
import tempfile
import threading
from base64 import b64encode
from collections.abc import MutableSequence
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.core.explain import explain
from whence.core.explanation import Explanation
from whence.core.feature_table import FeatureTable
from whence.core.trees import named_leaves
from whence.errors import InputError
from whence.evaluation.reliability import reliability
from whence.frontends.common.methods import METHODS_OF_FUNCTIONS, PRESETS, default_method, row_imputer
from whence.frontends.web.images import pack_tensor, tensor_to_png
from whence.frontends.web.output_choices import OutputChoices
from whence.frontends.web.progress_counter import report_progress, use_counter
from whence.frontends.web.request_parsing import (
    describe_prediction,
    explain_question,
    make_question_method,
    make_target,
    read_question,
    replaying_explainer,
)
from whence.frontends.web.schemas import ChannelRequest, DownloadRequest, ExplainRequest
from whence.frontends.web.served_models import ServerConfig, input_shape, models
from whence.mechanistic.channel_relevance import relevance_channels_last, top_channels
from whence.methods.layer_reader import layer_shapes, leaf_layers
from whence.methods.registry import METHODS
from whence.models.bundled import DIGIT_MODELS
from whence.models.digits import digit_samples
from whence.models.loaded_model import LoadedModel

CHANNELS_SHOWN = 12


def initialize_worker(served: ServerConfig, folder: str, counter: MutableSequence[int]) -> None:
    """Prepare a worker process, with its folder of temporary files: load the models and trace the graphs of bundled ones."""
    tempfile.tempdir = folder
    use_counter(counter)
    threading.Thread(target=_end_with_server, args=(folder,), daemon=True).start()
    torch.set_num_threads(1)
    models.served = served
    for name, _ in served.models:
        loaded = models[name]
        if loaded.name in DIGIT_MODELS:  # the first explanation traces the graph that the others replay
            replaying_explainer(name, "lrp")(torch.zeros(1, *input_shape(loaded)) + 0.5)


def _end_with_server(folder: str) -> None:
    """End this process, and remove its temporary files, when the server has ended, even if it was killed."""
    server = parent_process()
    if server is not None:
        wait([server.sentinel])
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


def confirm_start() -> None:
    """Return once a worker process has started."""


def describe_models(_: None) -> list[dict[str, Any]]:
    """Return the models with their kinds of input, classes and methods."""
    return [
        {
            "name": name,
            "takes": "drawing" if name in DIGIT_MODELS else loaded.kind,
            "trained": loaded.trained is not False,
            "classes": list(map(str, loaded.class_names)),
            "writes": loaded.text is not None and not loaded.class_names,
            "chats": bool(loaded.text is not None and getattr(loaded.text.tokenizer, "chat_template", None)),
            "columns": list(loaded.feature_names or getattr(loaded.table, "columns", ())),
            "sampling_rate": None if loaded.series is None else loaded.series.sampling_rate,
            "methods": available_methods(loaded),
            "method": default_method(loaded),
            "presets": list(PRESETS) if isinstance(loaded.model, nn.Module) else [],
            "data": models.has_data(name),
        }
        for name, loaded in ((name, models[name]) for name, _ in models.served.models)
    ]


def available_methods(loaded: LoadedModel) -> list[str]:
    """Return the methods that suit a model, the default first."""
    if not isinstance(loaded.model, nn.Module):
        return list(METHODS_OF_FUNCTIONS)
    first = default_method(loaded)
    return [first, *(name for name in METHODS if name not in (first, *(() if loaded.table is not None else ("shapley",))))]


def explain_handler(question: ExplainRequest) -> dict[str, Any]:
    """Return the explanation of a prediction."""
    loaded, x = read_question(question)
    outputs = OutputChoices.of(loaded, x)
    e = explain_question(question, loaded, x, outputs)
    found = describe_prediction(outputs, e, loaded.model)
    if loaded.table is not None:
        return found | {"features": _features(e)}
    if loaded.series is not None:
        rows = (e.relevance[0], e.inputs[0]) if loaded.series.channels_first else (e.relevance[0].T, e.inputs[0].T)
        names, rate = list(loaded.series.channels), loaded.series.sampling_rate
        found |= {"channels": names, "sampling_rate": rate}
        return found | dict(zip(("relevance", "series"), map(pack_tensor, rows), strict=True))
    for name, relevance in named_leaves(e.relevance).items():
        found["relevance"] = pack_tensor(relevance[0].sum(0) if relevance.dim() == 4 else relevance[0])
        if loaded.kind == "picture":
            found["picture"] = tensor_to_png(named_leaves(e.inputs)[name][0], loaded.preprocessing)
    if loaded.text is not None:
        found["tokens"] = e.tokens_of(0)
    return found


def _features(e: Explanation) -> list[dict[str, Any]]:
    """Return the features of a row with their values and relevance."""
    table = FeatureTable.of(e)
    rows = zip(table.names, table.labels(0), table.relevance[0].tolist(), strict=True)
    return [{"name": str(name), "value": value, "relevance": r} for name, value, r in rows]


def reliability_handler(question: ExplainRequest) -> dict[str, Any]:
    """Return what keeping and replacing the most relevant features does to the output."""
    loaded, x = read_question(question)
    e = explain_question(question, loaded, x, OutputChoices.of(loaded, x))
    found = reliability(loaded.model, e, x, imputer=row_imputer(loaded), progress=report_progress)
    return {"sentences": list(found.sentences)}


def layers_handler(question: ExplainRequest) -> dict[str, Any]:
    """Return the relevance of each layer, from the input up."""
    loaded, x = read_question(question)
    shapes = {name: shape for name, shape in layer_shapes(loaded.model, x).items() if len(shape) == 4 and shape[0] == 1}
    names = leaf_layers(shapes)
    outputs = OutputChoices.of(loaded, x)
    e = explain_question(question, loaded, x, outputs, names)
    found = []
    for name in names:
        r = relevance_channels_last(loaded.model, e, name)[0]
        channels = _top_channels(r.flatten(0, 1).sum(0), float(e.output))
        about = {"name": name, "kind": _module_type(loaded.model, name), "shape": list(shapes[name][1:])}
        found.append(about | {"map": pack_tensor(r.sum(-1)), "channels": channels})
    return describe_prediction(outputs, e) | {"layers": found}


def channel_handler(question: ChannelRequest) -> dict[str, Any]:
    """Return the heatmap of the relevance that flows through one channel."""
    loaded, x = read_question(question)
    if question.channel is None:
        raise InputError("missing channel; expected channel=INDEX")
    target = make_target(question, loaded, OutputChoices.of(loaded, x))
    e = explain(loaded.model, x, target, method=make_question_method(question, loaded, x),
                through={question.layer: question.channel}, progress=False)  # fmt: skip
    return {
        "relevance": pack_tensor(e.relevance[0].sum(0)),
        "amount": float(e.conservation.explained),
        "output": float(e.output),
    }


def download_handler(question: DownloadRequest) -> bytes:
    """Return the explanation as the bytes of a file."""
    loaded, x = read_question(question)
    e = explain_question(question, loaded, x, OutputChoices.of(loaded, x))
    with tempfile.TemporaryDirectory() as folder:
        return e.save(Path(folder) / f"explanation.{question.format}").read_bytes()


def digits_handler() -> list[dict[str, Any]]:
    """Return the bundled digits."""
    x, y = digit_samples()
    pixels = (x * 255).round().byte().flatten(1)
    return [
        {"label": label, "pixels": b64encode(bytes(row)).decode()}
        for label, row in zip(y.tolist(), pixels.tolist(), strict=True)
    ]


def _top_channels(relevance: Tensor, output: float) -> list[dict[str, Any]]:
    chosen = top_channels(relevance, CHANNELS_SHOWN, output)
    return [{"channel": c, "share": float(relevance[c]) / output if output else 0.0} for c in chosen]


def _module_type(model: Any, name: str) -> str:
    return type(model.get_submodule(name)).__name__
