"""The result of an evaluation: values, means with intervals and curves, as a table, a figure, a file or an HTML report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.core.files import PICTURE_SUFFIXES, text_writer, write_json
from whence.core.result import Result
from whence.errors import RuleError, count_noun, suggest_or_list, value_repr
from whence.evaluation.bootstrap import Interval, mean_interval, paired_interval
from whence.evaluation.metrics.faithfulness_curves import FlippingCurves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (*PICTURE_SUFFIXES, ".csv", ".json", ".html")
ARROWS = {"higher": "↑", "lower": "↓"}
ORDERS = ("most_first", "least_first")
GRID = 41  # number of points of mean curves


@dataclass(frozen=True)
class Failure:
    """A sample for which a method or metric failed."""

    method: str
    sample: int
    message: str


@dataclass(frozen=True, repr=False, eq=False)
class Evaluation(Result):
    """The values of several metrics for several methods.

    >>> found = whence.evaluate(model, (x, y), ["lrp", "random"], ["srg"])
    >>> found.table[0]
    {'method': 'lrp', 'metric': 'srg', 'mean': 5.2, 'low': 4.6, 'high': 5.8, 'n': 50, 'failed': 0, 'better': 'higher'}
    >>> found.values["lrp"]["srg"], found.best("srg")

    Intervals are the middle 95 % of bootstrapped means.

    Args:
        values: `values[method][metric]` `[n]`; NaN for samples without a value.
        better: Which values of each metric are better: "higher", "lower" or "neither".
        failures: The samples that failed, with the method and the error message.
        curves: `curves[method][order]`, the mean scores of the first flipping metric over the fraction of regions removed, with
            the most relevant or the least relevant regions first ("most_first", "least_first").
    """

    values: Mapping[str, Mapping[str, Tensor]]
    better: Mapping[str, str]  # metric -> 'higher', 'lower' or 'neither'
    failures: Sequence[Failure] = ()
    curves: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # method -> order -> [points]

    @classmethod
    def of(cls, found: Mapping[str, Mapping[str, Tensor]], metrics: Sequence[Any], failures: Sequence[Failure]) -> "Evaluation":
        """Build the result from `found[method][metric]` and the metrics."""
        names = [metric.name for metric in metrics]
        values = {method: {name: scores[name] for name in names} for method, scores in found.items()}
        curves = {
            method: {order: scores[order].nanmean(0) for order in ORDERS if order in scores} for method, scores in found.items()
        }
        drawn = {method: of_method for method, of_method in curves.items() if of_method}
        return cls(values, {metric.name: metric.better for metric in metrics}, failures, drawn)

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """The mean of each metric of each method with its bootstrap interval, by method and metric."""
        return {method: {name: mean_interval(v) for name, v in scores.items()} for method, scores in self.values.items()}

    @property
    def words(self) -> list[list[str]]:
        """One row per method: its name, then the means and intervals as text."""
        return [[method, *map(format_interval, found.values())] for method, found in self.intervals.items()]

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row per method and metric: mean, interval, number of samples, number of failures."""
        rows = []
        for method, intervals in self.intervals.items():
            failed = sum(failure.method == method for failure in self.failures)
            for metric, found in intervals.items():
                rows.append(
                    {"method": method, "metric": metric, **found._asdict(), "failed": failed, "better": self.better[metric]}
                )
        return rows

    def differences(self, metric: str, to: str) -> list[dict[str, Any]]:
        """Compute the mean difference of each method to a reference method, paired by sample, with its bootstrap interval.

        Two methods differ if the interval does not contain 0.

        Args:
            metric: The name of a metric.
            to: The name of the reference method.
        Returns:
            One row per other method.
        """
        reference = self._of(to)[self._metric(metric)]
        others = {name: scores[metric] for name, scores in self.values.items() if name != to}
        return [
            {"method": name, "metric": metric, "to": to, **paired_interval(values, reference)._asdict()}
            for name, values in others.items()
        ]

    def best(self, metric: str) -> str:
        """Return the name of the method with the best mean.

        Args:
            metric: The name of a metric, for which higher or lower values are better.
        """
        if self.better[self._metric(metric)] == "neither":
            raise RuleError(f"neither higher nor lower values of {metric} are better; compare the values in the table")
        sign = 1 if self.better[metric] == "higher" else -1
        means = {name: sign * found[metric].mean for name, found in self.intervals.items()}
        return max(means, key=lambda name: -math.inf if math.isnan(means[name]) else means[name])

    @property
    def heads(self) -> list[str]:
        """The name of each metric with an arrow that says which values are better."""
        return [f"{name} {ARROWS.get(better, '')}".strip() for name, better in self.better.items()]

    def __repr__(self) -> str:
        lines = [["", *self.heads], *self.words]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )
        return f"{text}\n{self.footnote}"

    @property
    def footnote(self) -> str:
        """The number of samples, and the samples that failed, as text."""
        count = max(len(values) for scores in self.values.values() for values in scores.values())
        alike: dict[tuple[str, str], list[int]] = {}
        for (sample, message), methods in self._blamed.items():
            for method in ["every method"] if len(methods) == len(self.values) > 1 else methods:
                alike.setdefault((method, message), []).append(sample)
        failed = [
            f"{method} failed on {len(samples)}: {_join(samples)} ({message})" for (method, message), samples in alike.items()
        ]
        few = " (too few for intervals)" if count < 5 else ""
        return "; ".join([f"{count_noun(count, 'sample')}, means with 95 % intervals{few}", *failed])

    @property
    def _blamed(self) -> dict[tuple[int, str], list[str]]:
        """The methods that failed, by sample and error message."""
        found: dict[tuple[int, str], list[str]] = {}
        for f in self.failures:
            found.setdefault((f.sample, f.message), []).append(f.method)
        return found

    def save(self, path: str | Path) -> Path:
        """Write a figure (.png, .pdf, …), the table (.csv), all values (.json) or a report (.html), and return the path."""
        return self._save(path, {".json": self._write_json, ".html": text_writer(self._page)})

    def figure(self) -> "Figure":
        """Return a figure of the means of each metric with their intervals, and of the mean curves."""
        from whence.plotting.interval_plots import MetricMeans, ScoreCurve, interval_figure

        panels = []
        for metric, better in self.better.items():
            found = [of_method[metric] for of_method in self.intervals.values()]
            title = f"{metric} {f'({better} is better)' if better in ARROWS else ''}".strip()
            panels.append(MetricMeans(title, list(self.values), [i.mean for i in found], [(i.low, i.high) for i in found]))
        drawn = {
            method: [
                ScoreCurve(torch.linspace(0, 1, GRID).tolist(), curve.tolist(), order == ORDERS[0])
                for order, curve in orders.items()
            ]
            for method, orders in self.curves.items()
        }
        return interval_figure(panels, drawn)

    def _of(self, method: str) -> Mapping[str, Tensor]:
        if method not in self.values:
            raise RuleError(
                f"no method {value_repr(method)} in this evaluation{suggest_or_list(method, self.values, 'it has')}"
            )
        return self.values[method]

    def _metric(self, name: str) -> str:
        if name not in self.better:
            raise RuleError(f"no metric {name!r} in this evaluation{suggest_or_list(name, self.better, 'it has')}")
        return name

    def _write_json(self, path: Path) -> None:
        failures = [vars(failure) for failure in self.failures]
        write_json(path, {"table": self.table, "values": self.values, "curves": self.curves, "failures": failures})

    def _page(self) -> str:
        from whence.plotting.html_pages import embed_figure, render_page

        failures = [(f.method, f.sample, f.message) for f in self.failures]
        return render_page(
            "evaluation.html",
            heads=["method", *self.heads],
            rows=self.words,
            footnote=self.footnote,
            failures=failures,
            picture=embed_figure(self.figure()),
        )


def format_interval(found: Interval) -> str:
    """Format a mean and its interval.

    >>> format_interval(Interval(5.1234, 4.4, 5.9, 50))
    '5.12 [4.4, 5.9]'
    """
    if math.isnan(found.mean):
        return "–"
    return f"{found.mean:.3g}" + ("" if math.isnan(found.low) else f" [{found.low:.2g}, {found.high:.2g}]")


def resample_curves(curves: FlippingCurves) -> dict[str, Tensor]:
    """Interpolate both curves at the same fractions for all samples, `[N, points]`."""
    grid = torch.linspace(0, 1, GRID, dtype=torch.float64).expand(len(curves.fractions), -1).contiguous()
    fractions = curves.fractions.contiguous()
    right = torch.searchsorted(fractions, grid).clamp(1, fractions.shape[1] - 1)
    start, end = fractions.gather(1, right - 1), fractions.gather(1, right)
    share = ((grid - start) / (end - start).clamp(min=1e-12)).clamp(0, 1)
    return {
        order: torch.lerp(curve.gather(1, right - 1), curve.gather(1, right), share)
        for order, curve in zip(ORDERS, (curves.most_first, curves.least_first), strict=True)
    }


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
