"""Evaluations and audits as HTML pages."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from whence.auditing.audit import audit
from whence.errors import InputError, suggest
from whence.evaluation.evaluate import METHODS as USUAL, METRICS as USUAL_METRICS, evaluate
from whence.evaluation.metrics.registry import METRICS
from whence.frontends.common.data import first_sample
from whence.frontends.common.methods import ALL_NAMES, check_methods, check_names, method_or_preset, removal_settings
from whence.frontends.web.progress_counter import report_progress
from whence.frontends.web.schemas import AuditRequest, EvaluationRequest
from whence.frontends.web.served_models import models
from whence.stores.store import open_store

REFERENCES = re.compile(r"\s*\([^()]*\b(?:19|20)\d\d[^()]*\)")


def available_metrics() -> dict[str, Any]:
    """Return the methods and metrics that can be chosen, the default ones first."""
    return {
        "methods": [*USUAL, *(name for name in ALL_NAMES if name not in USUAL)],
        "metrics": [*USUAL_METRICS, *(name for name in METRICS if name not in USUAL_METRICS)],
        "usual": [*USUAL, *USUAL_METRICS],
        "about": {name: first_sentence(kind) for name, kind in METRICS.items()},
    }


def first_sentence(kind: type) -> str:
    """Return the first sentence of the docstring of a class, on one line and without references."""
    paragraph = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    return REFERENCES.sub("", paragraph).split(". ")[0].rstrip(".")


def evaluation_report(question: EvaluationRequest) -> str:
    """Return the page of an evaluation on the model's data."""
    check_methods(question.methods)
    check_names(question.metrics, list(METRICS), "metric")
    loaded = models[question.model]
    samples = models.data_of(question.model, question.count)
    first, bounded = first_sample(samples), loaded.preprocessing.bounds_known
    methods = {name: method_or_preset(name, loaded, first, bounded) for name in question.methods}
    taken_away = removal_settings(None, None, None, loaded, question.metrics)
    return _render(evaluate(loaded.model, samples, methods, question.metrics, progress=report_progress, **taken_away))


def audit_report(question: AuditRequest) -> str:
    """Return the page of an audit of one of the stores."""
    if question.store not in models.served.stores:
        raise InputError(
            f"unknown store {question.store!r}; pass it as --store when starting the "
            f"server{suggest(question.store, models.served.stores)}"
        )
    store = open_store(question.store)
    tested: dict[str, Any] = {}
    if question.model is not None:
        data = models.data_of(question.model, store.manifest.count)
        tested = {"model": models[question.model].model, "data": data}
    found = audit(store, layer=question.layer or "auto", group_by=question.group_by, progress=report_progress, **tested)
    return _render(found)


def _render(result: Any) -> str:
    with TemporaryDirectory() as folder:
        return result.save(Path(folder) / "report.html").read_text(encoding="utf-8")
