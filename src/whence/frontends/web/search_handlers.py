"""What takes a search: pictures that excite a class or a channel most, and pictures that fool the model."""

from typing import Any

from whence.errors import InputError
from whence.frontends.cli.concepts import pictures
from whence.frontends.cli.prototype import default_image, search
from whence.frontends.web.images import packed, shown
from whence.frontends.web.resolve import answered, index_of, method_of, read, shares_of, target_of, told
from whence.frontends.web.schemas import AttackQuestion, PartQuestion, PrototypeQuestion
from whence.frontends.web.served_models import models
from whence.mechanistic.concepts import concepts
from whence.robustness.attack import attack
from whence.robustness.attack_methods import FGSM, PGD

STEPS, REFERENCES = 128, 6


def prototypes(question: PrototypeQuestion) -> dict[str, Any]:
    """What does the model take classes to be?"""
    loaded = models[question.model]
    if loaded.text is not None:
        raise InputError(f"{loaded.name} reads texts; prototypes are pictures")
    chosen = [index for given in question.classes if (index := index_of(given, loaded)) is not None]
    found = search(
        loaded, chosen, question.prior, None, None, None, {"steps": question.steps, "seed": question.seed, "progress": False}
    )
    rows = zip(chosen, found.images, found.activation.tolist(), shares_of(loaded, found.images), strict=True)
    return {
        "note": found.note,
        "prototypes": [
            {"name": loaded.called(k), "activation": a, "share": float(p[k]), "picture": shown(x, loaded.preprocessing)}
            for k, x, a, p in rows
        ],
    }


def channel(question: PartQuestion) -> dict[str, Any]:
    """What a channel stands for: a picture that excites it most, and parts of the data where it mattered most."""
    loaded, x = read(question)
    if question.channel is None:
        raise InputError("which channel?")
    data = pictures(models.data_of(question.model)) if models.has_data(question.model) else None
    settings = {"image": default_image("none", tuple(x.shape[1:]), loaded.preprocessing.bounds), "steps": STEPS}
    found = concepts(
        loaded.model, x, question.layer, target_of(question, loaded), channels=[question.channel], data=data,
        references=REFERENCES, prototypes=settings, method=method_of(question, loaded, x), progress=False,
    )  # fmt: skip
    assert found.prototypes is not None
    references = found.references[0] if found.references else ()
    return {
        "prototype": shown(found.prototypes[0], loaded.preprocessing),
        "references": [
            {"index": r.index, "picture": shown(r.crop, loaded.preprocessing), "relevance": packed(r.relevance.sum(0))}
            for r in references
        ],
    }


def attacked(question: AttackQuestion) -> dict[str, Any]:
    """A picture a little way off that the model says something else of, and why."""
    loaded, x = read(question)
    if loaded.text is not None:
        raise InputError(f"{loaded.name} reads texts; attacks are on pictures")
    kind = FGSM if question.by == "fgsm" else PGD
    found = attack(loaded.model, x, None, kind(question.epsilon, box=loaded.preprocessing.box))
    free = question.model_copy(update={"target": None, "rather_than": None})
    e = answered(free, loaded, found.inputs)
    return told(loaded, found.inputs, e) | {
        "picture": shown(found.inputs[0], loaded.preprocessing),
        "relevance": packed(e.relevance[0].sum(0)),
        "success": bool(found.success),
        "distance": float(found.distances()),
        "before": loaded.called(int(found.before)),
    }
