"""Settings of methods with one row per sample, for calls that split the samples into batches or repeat them."""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.core.tables import is_pandas
from whence.errors import InputError, count_noun

SETTINGS = ("baseline", "baselines", "feature_mask")


def method_of_samples(method: Any, numbers: Sequence[int], count: int | None) -> Any:
    """Return the method with the rows of the given samples, or the method itself if none of its settings has rows by sample.

    >>> method_of_samples(whence.LRP(baseline=torch.rand(100, 8)), [3, 7], count=100).baseline.shape
    torch.Size([2, 8])

    Args:
        method: A method of whence, or anything else, which is returned as it is.
        numbers: Indices of the samples; they may repeat.
        count: Number of all samples; None if it is not known.
    Raises:
        InputError: A setting has another number of rows than there are samples.
    """
    if not is_dataclass(method) or not hasattr(method, "explanations") or isinstance(method, type):
        return method
    inner = getattr(method, "method", None)
    changed = {"method": found} if (found := method_of_samples(inner, numbers, count)) is not inner else {}
    for name in SETTINGS:
        value = getattr(method, name, None)
        chosen = _rows(value, numbers, count, f"{type(method).__name__}({name}=…)")
        if chosen is not value:
            changed[name] = chosen
    return replace(method, **changed) if changed else method


def _rows(value: Any, numbers: Sequence[int], count: int | None, owner: str) -> Any:
    if isinstance(value, Mapping):
        found: Any = {name: _rows(part, numbers, count, owner) for name, part in value.items()}
        return found if any(found[name] is not value[name] for name in value) else value
    if isinstance(value, list | tuple):
        found = tuple(_rows(part, numbers, count, owner) for part in value)
        return found if any(new is not old for new, old in zip(found, value, strict=True)) else value
    if not (isinstance(value, Tensor | np.ndarray) and value.ndim) and not is_pandas(value):
        return value
    if len(value) == 1:
        return value
    if len(value) != count and (count is not None or max(numbers) >= len(value)):
        there = "an unknown number of samples" if count is None else count_noun(count, "sample")
        raise InputError(f"{owner} has {len(value)} rows for {there}; give one per sample, or one for all samples")
    rows: Any = list(numbers)
    if isinstance(value, Tensor):
        return value[torch.tensor(rows, device=value.device)]
    return value[rows] if isinstance(value, np.ndarray) else value.iloc[rows]
