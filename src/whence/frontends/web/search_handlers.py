"""Handlers of requests that run an optimisation: prototypes, concepts of channels, adversarial examples."""

from typing import Any

import torch

from whence.errors import InputError
from whence.frontends.common.data import read_images
from whence.frontends.common.prototypes import default_image, search_prototypes
from whence.frontends.web.images import pack_tensor, tensor_to_png
from whence.frontends.web.output_choices import OutputChoices, class_probabilities
from whence.frontends.web.progress_counter import report_progress
from whence.frontends.web.request_parsing import (
    describe_prediction,
    explain_question,
    make_question_method,
    make_target,
    read_question,
)
from whence.frontends.web.schemas import AttackRequest, ChannelRequest, PrototypeRequest
from whence.frontends.web.served_models import models
from whence.mechanistic.concepts import concepts
from whence.robustness.attack import attack
from whence.robustness.attack_methods import FGSM, PGD

STEPS, REFERENCES = 128, 6


def prototypes_handler(question: PrototypeRequest) -> dict[str, Any]:
    """Return prototypes of classes."""
    loaded = models[question.model]
    loaded.check_reads_images("prototypes need a model of images")
    chosen = [index for given in question.classes if (index := loaded.class_index(given)) is not None]
    found = search_prototypes(
        loaded,
        chosen,
        question.prior,
        None,
        None,
        None,
        {"n_steps": question.n_steps, "seed": question.seed, "progress": report_progress},
    )
    with torch.no_grad():
        shares = class_probabilities(loaded, loaded.model(found.images))
    assert shares is not None  # the prototypes are of classes
    rows = zip(chosen, found.images, found.activation.tolist(), shares, strict=True)
    return {
        "note": found.note,
        "prototypes": [
            {
                "name": loaded.class_name(k),
                "activation": a,
                "share": float(p[k]),
                "picture": tensor_to_png(x, loaded.preprocessing),
            }
            for k, x, a, p in rows
        ],
    }


def concept_handler(question: ChannelRequest) -> dict[str, Any]:
    """Return the prototype of a channel, and the parts of the data where it was most relevant."""
    loaded, x = read_question(question)
    if question.channel is None:
        raise InputError("missing channel; expected channel=INDEX")
    data = read_images(models.data_of(question.model)) if models.has_data(question.model) else None
    settings = {"image": default_image("none", tuple(x.shape[1:]), loaded.preprocessing.bounds), "n_steps": STEPS}
    target = make_target(question, loaded, OutputChoices.of(loaded, x))
    found = concepts(
        loaded.model, x, question.layer, target, channels=[question.channel], reference_inputs=data,
        n_references=REFERENCES, prototypes=settings, method=make_question_method(question, loaded, x),
        progress=report_progress,
    )  # fmt: skip
    assert found.prototypes is not None
    references = found.references[0] if found.references else ()
    return {
        "prototype": tensor_to_png(found.prototypes[0], loaded.preprocessing),
        "references": [
            {
                "index": r.index,
                "picture": tensor_to_png(r.crop, loaded.preprocessing),
                "relevance": pack_tensor(r.relevance.sum(0)),
            }
            for r in references
        ],
    }


def attack_handler(question: AttackRequest) -> dict[str, Any]:
    """Return an adversarial example and its explanation."""
    loaded, x = read_question(question)
    loaded.check_reads_images("attacks need a model of images")
    kind = FGSM if question.attack == "fgsm" else PGD
    found = attack(loaded.model, x, None, kind(question.epsilon, box=loaded.preprocessing.box))
    free = question.model_copy(update={"target": None, "rather_than": None})
    outputs = OutputChoices.of(loaded, found.inputs)
    e = explain_question(free, loaded, found.inputs, outputs)
    return describe_prediction(outputs, e) | {
        "picture": tensor_to_png(found.inputs[0], loaded.preprocessing),
        "relevance": pack_tensor(e.relevance[0].sum(0)),
        "success": bool(found.success),
        "distance": float(found.distances()),
        "before": loaded.class_name(int(found.before)),
    }
