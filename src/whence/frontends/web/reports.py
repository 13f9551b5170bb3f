"""Reports as pages: which method can be trusted, and whether there is a Clever Hans."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from whence.auditing.audit import audit
from whence.errors import InputError, suggestion
from whence.evaluation.evaluate import METHODS as USUAL, METRICS as USUAL_METRICS, evaluate
from whence.evaluation.metrics.registry import METRICS
from whence.frontends.cli.evaluate import first_sample, removal
from whence.frontends.common.methods import SEVERAL, check_known, one_of_several
from whence.frontends.web.schemas import AuditQuestion, EvaluationQuestion
from whence.frontends.web.served_models import models


def measures() -> dict[str, list[str]]:
    """What may be evaluated, and by what; those that are evaluated if nothing is chosen first."""
    return {
        "methods": [*USUAL, *(name for name in SEVERAL if name not in USUAL)],
        "metrics": [*USUAL_METRICS, *(name for name in METRICS if name not in USUAL_METRICS)],
        "usual": [*USUAL, *USUAL_METRICS],
    }


def evaluated(question: EvaluationQuestion) -> str:
    """The page of an evaluation on the model's data."""
    check_known(question.methods, SEVERAL, "method")
    check_known(question.metrics, list(METRICS), "metric")
    loaded = models[question.model]
    samples = models.data_of(question.model, question.count)
    first, bounded = first_sample(samples), loaded.preprocessing.bounds_known
    methods = {name: one_of_several(name, loaded, first, bounded) for name in question.methods}
    taken_away = removal(None, None, None, loaded, question.metrics)
    return _page(evaluate(loaded.model, samples, methods, question.metrics, progress=False, **taken_away))


def audited(question: AuditQuestion) -> str:
    """The page of an audit of one of the stores."""
    if question.store not in models.served.stores:
        raise InputError(
            f"no store {question.store!r} was named at the start{suggestion(question.store, models.served.stores)}"
        )
    return _page(audit(question.store, layer=question.layer, by=question.by, progress=False))


def _page(result: Any) -> str:
    with TemporaryDirectory() as folder:
        return result.save(Path(folder) / "report.html").read_text(encoding="utf-8")
