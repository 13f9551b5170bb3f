"""Series of an explanation, and their rows in tables: channel, step, time, value and relevance."""

from typing import Any

from torch import Tensor

from whence.core.explanation_data import ExplanationData
from whence.core.files import Rows
from whence.core.input_layouts import as_series
from whence.core.trees import named_leaves


def series_of_input(e: ExplanationData, name: str, sample: int) -> tuple[Tensor, Tensor] | None:
    """Return the values and relevance `[C, T]` of a sample of an input; None if it is no series."""
    both = (named_leaves(e.inputs)[name], e.entry_relevance(name))
    x, relevance = (as_series(e, name, t[sample].detach().float().cpu()) for t in both)
    return None if x is None or relevance is None else (x, relevance)


def series_rows(e: ExplanationData, name: str, x: Tensor, r: Tensor, about: dict[str, Any]) -> Rows:
    """Return a row for each channel and step of a series `[C, T]` of an input, each beginning with `about`."""
    names = e.feature_names.get(name, ())
    if len(names) != len(x):
        names = [f"channel {c}" for c in range(len(x))]
    about = about | ({"input": name} if name else {})
    return [
        about | {"channel": names[c], "step": t, "time": step_time(e, t), "value": value, "relevance": amount}
        for c, (of_x, of_r) in enumerate(zip(x.tolist(), r.tolist(), strict=True))
        for t, (value, amount) in enumerate(zip(of_x, of_r, strict=True))
    ]


def step_time(e: ExplanationData, step: int) -> str | float:
    """Return the time of a step: its label, its second, or its number."""
    axis = e.time_axis
    return step if axis is None else step / axis.rate if axis.rate else axis.label(step)
