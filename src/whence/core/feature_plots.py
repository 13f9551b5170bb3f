"""Plots of the relevance of table rows: waterfall, beeswarm, mean bars, heatmap and scatter plot."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.explanation_data import ExplanationData
from whence.core.feature_table import FeatureTable
from whence.core.files import Rows
from whence.core.result import Result
from whence.errors import InputError, value_repr
from whence.plotting.feature_summaries import Beeswarm, MeanBars, RowHeatmap, ValueScatter
from whence.plotting.stacked_panels import Panel, stack_panels
from whence.plotting.waterfalls import Waterfall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_FEATURES = 15
MAX_TARGETS = 4  # that are drawn apart
NEGLIGIBLE = 1e-3  # of the largest bar


@dataclass(frozen=True, eq=False, repr=False)
class Plot(Result):
    """A figure, and the numbers in it.

    >>> plot = whence.plots.beeswarm(e)
    >>> plot.save("beeswarm.png"), plot.to_frame()

    Args:
        title: What the figure shows.
        panels: The panels of the figure.
        rows: The numbers in it.
    """

    title: str
    panels: Sequence[Panel]
    rows: Rows

    def __repr__(self) -> str:
        return f"Plot of {self.title}"

    @property
    def table(self) -> Rows:
        """The numbers in the figure."""
        return self.rows

    def figure(self) -> "Figure":
        """Return the figure."""
        return stack_panels(self.panels)


@check_arguments
def waterfall(explanation: ExplanationData, sample: int | None = None, *, max_features: int = MAX_FEATURES) -> Plot:
    """Plot the way from the base value to the output of table rows, a bar for each feature, with its value.

    >>> e = whence.explain(pipeline, frame, "yes")
    >>> whence.plots.waterfall(e[0]).save("waterfall.png")

    Args:
        explanation: Explanation of table rows `[N, columns]`.
        sample: Number of the row; by default all rows, with one scale and one order of features.
        max_features: Number of features with a bar of their own; the others share one.

    Returns:
        A `Plot`, whose table has a row for each bar.

    Raises:
        InputError: The explanation is not of table rows, or there is no such row.
    """
    check_explanation(explanation)
    if sample is not None:
        if not isinstance(sample, int) or not -len(explanation) <= sample < len(explanation):
            raise InputError(f"no row {value_repr(sample)}; the explanation has {len(explanation)}")
        explanation = explanation[sample]
    _check_max_features(max_features)
    features = FeatureTable.of(explanation)
    panels = waterfalls(explanation, features, max_features)
    bars = [
        {"row": i, "bar": name, "amount": amount}
        for i, panel in enumerate(panels)
        for name, amount in [panel.start, *panel.steps, *panel.others, panel.end]
    ]
    return Plot(f"{len(panels)} rows from base value to output", panels, bars)


@check_arguments
def beeswarm(explanation: ExplanationData, *, max_features: int = MAX_FEATURES) -> Plot:
    """Plot the relevance of each feature in all rows as points, coloured by the feature's value.

    Rows of several targets, such as the predicted class of each row, are drawn apart, those of the most frequent targets.

    >>> whence.plots.beeswarm(whence.explain(pipeline, frame, "yes"))

    Args:
        explanation: Explanation of table rows `[N, columns]`.
        max_features: Number of features, those of the largest mean |relevance|.

    Returns:
        A `Plot`, whose table has a row for each feature: mean |relevance|, mean, and correlation of relevance and value.

    Raises:
        InputError: The explanation is not of table rows.
    """
    return _summary_plot(explanation, max_features, "relevance in", Beeswarm)


@check_arguments
def bar(explanation: ExplanationData, *, max_features: int = MAX_FEATURES) -> Plot:
    """Plot the mean |relevance| of each feature over all rows.

    >>> whence.plots.bar(whence.explain(pipeline, frame, "yes")).to_frame()

    Args:
        explanation: Explanation of table rows `[N, columns]`.
        max_features: Number of features, those of the largest mean |relevance|.

    Returns:
        A `Plot`, whose table has a row for each feature.

    Raises:
        InputError: The explanation is not of table rows.
    """

    def bars(relevance: Tensor, _: Tensor, names: Sequence[str], title: str) -> MeanBars:
        return MeanBars(relevance.abs().mean(0), names, title)

    return _summary_plot(explanation, max_features, "mean |relevance| over", bars)


@check_arguments
def heatmap(explanation: ExplanationData, *, max_features: int = MAX_FEATURES) -> Plot:
    """Plot the relevance of all features in all rows as a heatmap, with the rows in the order of their output.

    >>> whence.plots.heatmap(whence.explain(pipeline, frame, "yes"))

    Args:
        explanation: Explanation of table rows `[N, columns]`.
        max_features: Number of features, those of the largest mean |relevance|.

    Returns:
        A `Plot`, whose table has a row for each feature.

    Raises:
        InputError: The explanation is not of table rows.
    """
    features, chosen = _summary(explanation, max_features)
    outputs = explanation.output.detach().double().cpu()
    order = outputs.argsort(descending=True, stable=True)
    names = [features.names[i] for i in chosen]
    title = f"{_what(explanation)}: {len(features)} rows{_left_out(features, chosen)}"
    panel = RowHeatmap(features.relevance[order][:, chosen], outputs[order], names, title)
    return Plot(f"relevance of {len(chosen)} features in {len(features)} rows", [panel], _statistics(features))


@check_arguments
def scatter(explanation: ExplanationData, feature: str | int) -> Plot:
    """Plot the relevance of one feature over its value, a point for each row.

    >>> whence.plots.scatter(whence.explain(pipeline, frame, "yes"), "age")

    Args:
        explanation: Explanation of table rows `[N, columns]`.
        feature: Name or number of the feature.

    Returns:
        A `Plot`, whose table has a row for each point.

    Raises:
        InputError: The explanation is not of table rows, or has no such feature.
    """
    check_explanation(explanation)
    features = FeatureTable.of(explanation)
    i = features.number(feature)
    values, relevance, categories = features.values[:, i], features.relevance[:, i], []
    if bool(values.isnan().all()):
        labels = [features.features[i].label(row) for row in range(len(features))]
        categories = sorted(set(labels))
        values = torch.tensor([float(categories.index(label)) for label in labels])
    panel = ValueScatter(values, categories, relevance, features.names[i], f"{_what(explanation)}: {features.names[i]}")
    points = [{"row": n, "value": features.value(n, i), "relevance": r} for n, r in enumerate(relevance.tolist())]
    return Plot(f"the relevance of {features.names[i]}", [panel], points)


def waterfalls(e: ExplanationData, features: FeatureTable, max_features: int = MAX_FEATURES) -> list[Waterfall]:
    """Return a waterfall for each row, with one scale and one order of features."""
    order = features.order()
    chosen, rest = order[:max_features], order[max_features:]
    if len(rest) == 1:
        chosen, rest = order, []
    found = [_waterfall(e, features, chosen, rest, row) for row in range(len(features))]
    low, high = min(w.range[0] for w in found), max(w.range[1] for w in found)
    return [Waterfall(w.title, w.start, w.steps, w.others, w.end, (low, high)) for w in found]


def _waterfall(e: ExplanationData, features: FeatureTable, chosen: Sequence[int], rest: Sequence[int], row: int) -> Waterfall:
    account, captions = e.conservation, features.captions(row)
    steps = [(captions[i], float(features.relevance[row, i])) for i in chosen]
    if rest:
        steps.append((f"{len(rest)} other features", float(features.relevance[row, list(rest)].sum())))
    base = 0.0 if account.baseline is None else float(account.baseline[row])
    start = ("base value" if account.baseline is not None else "zero", base)
    total, output = float(account.relevance[row]), float(account.explained[row])
    others = []
    elsewhere = total - float(features.relevance[row].sum())  # of inputs that are no vectors
    absorbed = 0.0 if account.absorbed is None else float(account.absorbed[row])
    gap = output - base - total - absorbed
    largest = max(map(abs, [output - base, total, *(amount for _, amount in steps)]))
    for name, amount in (("other inputs", elsewhere), ("absorbed by biases", absorbed), ("not accounted for", gap)):
        if abs(amount) > NEGLIGIBLE * largest:
            others.append((name, amount))
    which = f"row {row}, " if len(e) > 1 else ""
    title = f"{which}{e.heading(row)} {e.note}".rstrip() + f":  f = {output:.4g},  ΣR = {total:.4g}{method_suffix(e)}"
    return Waterfall(title, start, steps, others, ("output", output))


def check_explanation(explanation: Any) -> None:
    """Raise `InputError` for anything but an explanation."""
    if not isinstance(explanation, ExplanationData):
        raise InputError(f"expected an Explanation, as whence.explain returns, got {type(explanation).__name__}")


def _summary_plot(
    explanation: ExplanationData,
    max_features: int,
    shown: str,
    panel: Callable[[Tensor, Tensor, Sequence[str], str], Panel],
) -> Plot:
    """Return a plot with a panel for the rows of each target, of their relevance and values, names of features and title."""
    features, chosen = _summary(explanation, max_features)
    names = [features.names[i] for i in chosen]
    end = f"{_left_out(features, chosen)}{method_suffix(explanation)}"
    panels = []
    for target, rows in _rows_by_target(explanation).items():
        title = f"{target}: {shown} {len(rows)} rows{end}"
        panels.append(panel(features.relevance[rows][:, chosen], features.values[rows][:, chosen], names, title))
    return Plot(f"{shown} {len(features)} rows", panels, _statistics(features))


def _summary(explanation: ExplanationData, max_features: int) -> tuple[FeatureTable, list[int]]:
    """Return the features of an explanation, and the numbers of those that are drawn."""
    check_explanation(explanation)
    _check_max_features(max_features)
    features = FeatureTable.of(explanation)
    return features, features.order()[:max_features]


def _check_max_features(given: Any) -> None:
    if not isinstance(given, int) or given < 1:
        raise InputError(f"max_features={value_repr(given)}; expected an int of at least 1")


def method_suffix(e: ExplanationData) -> str:
    """Return the method of an explanation for a title: "  (Shapley)"."""
    name = repr(e.method).partition("(")[0]
    return f"  ({name})" if e.method is not None and name.isidentifier() else ""


def _rows_by_target(e: ExplanationData) -> dict[str, list[int]]:
    """Return the rows of each target, of which those with the most rows."""
    names = e.target_names()
    counts = Counter(names).most_common(MAX_TARGETS)
    rows = {name: [i for i, of_row in enumerate(names) if of_row == name] for name, _ in counts}
    return {e.heading(numbers[0]): numbers for numbers in rows.values()}


def _what(e: ExplanationData) -> str:
    """Return what is explained in all rows, or how many targets there are."""
    names = list(dict.fromkeys(e.target_names()))
    return e.heading() if len(names) == 1 else f"{len(names)} targets ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _left_out(features: FeatureTable, chosen: Sequence[int]) -> str:
    left = len(features.names) - len(chosen)
    return f" ({left} more features)" if left else ""


def _statistics(features: FeatureTable) -> Rows:
    """Return a row for each feature, the largest first."""
    means, signed = features.relevance.abs().mean(0), features.relevance.mean(0)
    return [
        {
            "feature": features.names[i], "mean_abs_relevance": float(means[i]), "mean_relevance": float(signed[i]),
            "correlation": _correlation(features.values[:, i], features.relevance[:, i]),
        }
        for i in features.order()
    ]  # fmt: skip


def _correlation(values: Tensor, relevance: Tensor) -> float | None:
    """Return the correlation of a feature's values and relevance; None where one of them does not vary."""
    known = ~values.isnan()
    both = torch.stack([values[known], relevance[known]])
    if both.shape[1] < 2 or not bool((both.std(1) > 0).all()):
        return None
    return float(torch.corrcoef(both)[0, 1])
