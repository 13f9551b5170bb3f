"""All metrics by their short names; a metric is a frozen dataclass that computes one value per sample of an explained batch.

>>> whence.evaluate(model, (x, y), ["lrp", "random"], ["srg", whence.metrics.MaxSensitivity(radius=0.1)])
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor

from whence.errors import RuleError, suggest_or_list, value_repr
from whence.evaluation.evaluation_batch import ExplainedBatch
from whence.evaluation.metrics.complexity import (
    Completeness,
    Complexity,
    ConservationGap,
    RelevanceRatio,
    Sparseness,
)
from whence.evaluation.metrics.faithfulness_curves import (
    ABPC,
    AOPC,
    IROF,
    LIF,
    MIF,
    SRG,
    Deletion,
    Insertion,
    Monotonicity,
    Selectivity,
)
from whence.evaluation.metrics.faithfulness_subsets import Infidelity, SensitivityN
from whence.evaluation.metrics.localization import (
    PointingGame,
    RelevanceMass,
    RelevanceRank,
    TopKIntersection,
)
from whence.evaluation.metrics.randomization import (
    MPRT,
    EfficientMPRT,
    RandomLogit,
    SmoothMPRT,
)
from whence.evaluation.metrics.robustness import Continuity, MaxSensitivity, RelativeInputStability, RelativeOutputStability


class Metric(Protocol):
    """Interface of metrics: computes one value per sample of an explained batch, NaN if there is none.

    `name` is the short name; `better` says which values are better: "higher", "lower" or "neither".
    """

    name: ClassVar[str]
    better: ClassVar[str]  # "higher", "lower" or "neither"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        """Compute the values `[N]`."""
        ...


METRICS: dict[str, type[Any]] = {
    metric.name: metric
    for metric in (SRG, MIF, LIF, AOPC, ABPC, Deletion, Insertion, Selectivity, IROF, Monotonicity, SensitivityN, Infidelity,
                   Continuity, MaxSensitivity, RelativeInputStability, RelativeOutputStability, MPRT, SmoothMPRT, EfficientMPRT,
                   RandomLogit, PointingGame, RelevanceMass, RelevanceRank, TopKIntersection, Sparseness, Complexity,
                   Completeness, ConservationGap, RelevanceRatio)
}  # fmt: skip

Metrics = Sequence[Metric | str] | Metric | str


def make_metrics(given: Metrics, removal: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics themselves.

    Metrics given by name that remove regions use the settings in `removal`, and their defaults for all others.
    """
    wanted = [given] if isinstance(given, str) or callable(given) else list(given)
    if not wanted:
        raise RuleError(f"no metrics given; choose from {', '.join(METRICS)}")
    found = [_by_name(metric, removal) if isinstance(metric, str) else metric for metric in wanted]
    for metric in found:
        if isinstance(metric, type) or not callable(metric) or not hasattr(metric, "name"):
            raise RuleError(
                f"{value_repr(metric)} is not a metric; pass one such as whence.metrics.SRG(), or a name: {', '.join(METRICS)}"
            )
    if removal and not any(isinstance(metric, str) and removes_regions(METRICS[metric]()) for metric in wanted):
        raise RuleError(f"no metric given by name removes regions, so {', '.join(removal)} would have no effect")
    twice = next((metric.name for i, metric in enumerate(found) if metric.name in [m.name for m in found[:i]]), None)
    if twice:
        raise RuleError(f"two metrics are named {twice!r}; evaluate them in separate calls")
    return found


def removes_regions(metric: Any) -> bool:
    """Return whether the metric removes regions of the input."""
    return bool({f.name for f in fields(metric)} & {"flipping", "removal"})


def _by_name(name: str, removal: Mapping[str, Any]) -> Metric:
    if name not in METRICS:
        raise RuleError(f"unknown metric {name!r}{suggest_or_list(name, METRICS)}")
    metric = METRICS[name]()
    if not removal or not removes_regions(metric):
        return metric
    steps = {"n_steps": removal["n_steps"]} if "n_steps" in removal else {}
    given = {key: value for key, value in removal.items() if key != "n_steps"}
    if hasattr(metric, "flipping"):
        return replace(metric, flipping=replace(metric.flipping, removal=replace(metric.flipping.removal, **given), **steps))
    return replace(metric, removal=replace(metric.removal, **given))
