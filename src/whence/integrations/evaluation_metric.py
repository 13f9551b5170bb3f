"""Metrics of explanations as metrics of torchmetrics, which are updated batch by batch."""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor

from whence.core.optional_packages import import_package
from whence.errors import RuleError
from whence.evaluation.evaluate import evaluate
from whence.methods.registry import Method, resolve_method

_numbers = count(1)


def evaluation_metric(
    model: Callable[..., Any], metric: str = "srg", method: Method | str | None = None, **settings: Any
) -> Any:
    """Return a metric of `whence.evaluate` as a `torchmetrics.Metric`: the mean over all samples of all batches.

    >>> srg = whence.adapters.evaluation_metric(model, "srg", "lrp")
    >>> for x, y in loader:
    ...     srg.update(x, y)
    >>> srg.compute()

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode when the metric is updated.
        metric: Name of a metric of `whence.metrics`.
        method: A method or its name; LRP by default.
        settings: Other arguments of `whence.evaluate`, such as `imputer` or `target`; by default the labels are explained.

    Returns:
        A `torchmetrics.Metric`, which can be reset, merged over processes, and put into a `MetricCollection`.

    Raises:
        MissingPackageError: torchmetrics is not installed.
        RuleError: `metric` is not one name.
    """
    torchmetrics = import_package("torchmetrics")
    if not isinstance(metric, str):
        raise RuleError(
            f"metric must be one name of whence.metrics, got {type(metric).__name__}; pass one metric for each name"
        )

    resolved = resolve_method(method)
    given: dict[str, Any] = {"target": "label"} | settings

    class MeanMetric(torchmetrics.Metric):
        """The mean of a metric of explanations over all samples."""

        full_state_update = False
        total: Tensor
        count: Tensor
        identity: Tensor  # tells it from metrics of other methods, whose states a MetricCollection would share where they agree

        def __init__(self) -> None:
            super().__init__()
            self.add_state("total", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")
            self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
            self.add_state("identity", torch.tensor(next(_numbers)), dist_reduce_fx="max")

        def update(self, inputs: Tensor, target: Tensor | None = None) -> None:
            data = inputs if target is None else (inputs, target)
            found = evaluate(model, data, {"method": resolved}, [metric], progress=False, **given)
            values = next(iter(found.values["method"].values())).double()
            valid = values[~values.isnan()]
            self.total += valid.sum().to(self.total)
            self.count += len(valid)

        def compute(self) -> Tensor:
            return self.total / self.count

    return MeanMetric()
