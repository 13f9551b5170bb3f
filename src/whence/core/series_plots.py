"""Plots of the relevance of time series: channels over time, frequencies, and steps of a forecast."""

from collections.abc import Sequence

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.explanation_data import ExplanationData
from whence.core.feature_plots import Plot, check_explanation
from whence.core.series_rows import series_of_input, series_rows, step_time
from whence.core.spectrum import SpectralRelevance
from whence.core.trees import named_leaves
from whence.errors import InputError, value_repr
from whence.plotting.stacked_panels import Panel
from whence.plotting.time_series import MAX_LINES, SeriesHeatmap, Spectrum, Ticks, TimeSeries


@check_arguments
def series(explanation: ExplanationData, sample: int = 0) -> Plot:
    """Plot the relevance of a series: its channels over time, the sums over channels and over time, and the values.

    >>> e = whence.explain(model, x).with_time(sampling_rate=100)
    >>> whence.plots.series(e).to_frame()                # relevance by channel and step

    Args:
        explanation: Explanation of series `[N, C, T]`, `[N, T, C]` or `[N, T]`.
        sample: Number of the sample.

    Returns:
        A `Plot`, whose table has a row for each channel and step.

    Raises:
        InputError: The explanation is not of series, or there is no such sample.
    """
    name, x, relevance = series_of(explanation, sample)
    panels: list[Panel] = [series_heatmap(explanation, name, relevance, _title(explanation, sample))]
    if len(x) <= MAX_LINES:
        panels.append(lines_of_series(explanation, name, x, relevance, "values"))
    return Plot("the relevance of a series", panels, series_rows(explanation, name, x, relevance, {}))


@check_arguments
def spectrum(explanation: ExplanationData, sample: int = 0) -> Plot:
    """Plot the relevance of the frequencies of a series (DFT-LRP, Vielhaben et al. 2024).

    >>> whence.plots.spectrum(whence.explain(model, wave).with_time(sampling_rate=16000))

    The relevance of all frequencies adds up to that of all steps. It needs an explanation that is a modified gradient times the
    input: LRP, gradient × input, integrated gradients from zero.

    Args:
        explanation: Explanation of series, for frequencies in hertz `with_time(sampling_rate=…)`.
        sample: Number of the sample.

    Returns:
        A `Plot`, whose table has a row for each frequency.

    Raises:
        InputError: The explanation is not of series, or there is no such sample.
    """
    _, x, relevance = series_of(explanation, sample)
    found = SpectralRelevance.of(x, relevance)
    axis = explanation.time_axis
    rate, unit = (axis.rate, "hertz") if axis is not None and axis.rate else (1.0, "cycles per step")
    left = f",  of steps at zero {found.left_over:.4g}" if found.left_over else ""
    title = f"{_title(explanation, sample)},  of frequencies {float(found.relevance.sum()):.4g}{left}"
    panel = Spectrum(found.frequencies * rate, found.amplitude, found.relevance, title, unit)
    columns = (found.frequencies * rate, found.amplitude, found.relevance)
    numbers = zip(*(column.tolist() for column in columns), strict=True)
    rows = [{"frequency": f, "amplitude": amplitude, "relevance": r} for f, amplitude, r in numbers]
    return Plot("the relevance of frequencies", [panel], rows)


@check_arguments
def horizons(explanations: Sequence[ExplanationData], sample: int = 0) -> Plot:
    """Plot which steps of a series each step of a forecast rests on.

    >>> whence.plots.horizons(whence.explain_targets(model, x, range(24)))

    Args:
        explanations: Explanations of the steps of the forecast, in order, as `explain_targets` returns them.
        sample: Number of the sample.

    Returns:
        A `Plot`, whose table has a row for each step of the forecast and of the series.

    Raises:
        InputError: The explanations are not of one series.
    """
    if not isinstance(explanations, list | tuple) or not explanations:
        raise InputError(f"expected a list of explanations, got {value_repr(explanations)}")
    found = [series_of(e, sample)[2].sum(0) for e in explanations]
    if len({len(row) for row in found}) > 1:
        raise InputError("the explanations are of series of several lengths; pass those of the targets of one input")
    first, heat = explanations[0], torch.stack(found)
    names = [e.heading(sample) for e in explanations]
    panel = SeriesHeatmap(heat, f"relevance for {len(heat)} outputs", names, "output", *_time_of(first))
    rows = [
        {"output": names[h], "step": t, "time": step_time(first, t), "relevance": value}
        for h, values in enumerate(heat.tolist())
        for t, value in enumerate(values)
    ]
    return Plot(f"the relevance of a series for {len(heat)} outputs", [panel], rows)


def series_of(e: ExplanationData, sample: int) -> tuple[str, Tensor, Tensor]:
    """Return the name, values and relevance `[C, T]` of the first series of a sample; raise `InputError` if there is none."""
    check_explanation(e)
    if not isinstance(sample, int) or not -len(e) <= sample < len(e):
        raise InputError(f"no sample {value_repr(sample)}; the explanation has {len(e)}")
    for name, relevance in named_leaves(e.relevance).items():
        if len(relevance) == len(e) and name not in e.tokens and (found := series_of_input(e, name, sample)) is not None:
            return name, *found
    shapes = ", ".join(str(list(t.shape)) for t in named_leaves(e.relevance).values())
    raise InputError(
        f"expected an explanation of series [N, T, C] or [N, C, T], got relevance of shape {shapes}; for series [N, T] call "
        "with_time(…) first, and for others pass feature_names= of the channels to explain()"
    )


def lines_of_series(e: ExplanationData, name: str, x: Tensor, relevance: Tensor, title: str) -> TimeSeries:
    """Return the panel of a series with a line for each channel."""
    return TimeSeries(x, relevance, title, _names(e, name, len(x)), *_time_of(e))


def series_heatmap(e: ExplanationData, name: str, relevance: Tensor, title: str) -> SeriesHeatmap:
    """Return the panel of a series with a row for each channel."""
    return SeriesHeatmap(relevance, title, _names(e, name, len(relevance)), "channel", *_time_of(e))


def _names(e: ExplanationData, name: str, count: int) -> Sequence[str]:
    names = e.feature_names.get(name, ())
    return names if len(names) == count else ()


def _time_of(e: ExplanationData) -> tuple[str, Ticks | None]:
    """Return the name of the time axis and its ticks."""
    axis = e.time_axis
    return ("step", None) if axis is None else (axis.name, axis.ticks)


def _title(e: ExplanationData, sample: int) -> str:
    account = e.conservation
    return f"{e.heading(sample)}:  f = {account.explained[sample]:.4g},  ΣR = {account.relevance[sample]:.4g}"
