"""The rows of a series in tables: channel, step, time, value and relevance."""

from typing import Any

from whence.core.explanation_data import ExplanationData
from whence.core.files import Rows
from whence.core.input_layouts import as_series
from whence.core.trees import named_leaves


def series_rows(e: ExplanationData, name: str, sample: int, about: dict[str, Any]) -> Rows:
    """Return a row for each channel and step of an input that is a series, each beginning with `about`."""
    values, relevance = named_leaves(e.inputs)[name][sample], e.entry_relevance(name)[sample]
    x, r = (as_series(e, name, t.detach().float().cpu()) for t in (values, relevance))
    if x is None or r is None:
        return []
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
