"""Whatever samples come in: tensors, with labels or without, data sets, loaders; a batch at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate

from whence.errors import InputError, TargetError
from whence.inputs import Inputs, as_tensor
from whence.methods.batches import automatic_batch_size
from whence.nests import Nest, each

MOST_AT_ONCE = 64
LABELS = ("label", "labels")  # what Hugging Face calls them


@dataclass(frozen=True)
class Samples:
    """Some of the data: inputs, their labels if there are any, and their numbers among all."""

    inputs: Inputs
    labels: Tensor | None
    numbers: range
    total: int | None = None  # samples in all, where that is known before they are read

    def each(self) -> "Iterator[Samples]":
        """One by one."""
        for i, number in enumerate(self.numbers):
            labels = None if self.labels is None else self.labels[i : i + 1]
            yield Samples(self.inputs.of_samples(torch.tensor([i])), labels, range(number, number + 1))


def batches(data: Any, batch_size: int | None = None) -> Iterator[Samples]:
    """`(x, y)`, `x` (a tensor, array, frame, or dict of them), a data set of pairs or inputs, or a loader of their batches.

    >>> [len(samples.numbers) for samples in batches((torch.rand(100, 3), torch.zeros(100).long()), 64)]
    [64, 36]
    """
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size={batch_size!r}; give the number of samples that are explained at once, or None")
    start, total = 0, _total(data)
    for inputs, labels in _pairs(data, batch_size):
        found = Inputs.of(inputs).detached()
        numbers = range(start, start + found.batch_size)
        yield Samples(found, _labels(labels, len(numbers)), numbers, total)
        start = numbers.stop
    if not start:
        raise InputError("the data is empty; there is nothing to evaluate")


def _total(data: Any) -> int | None:
    if is_whole(data):
        return Inputs.of(pair(data)[0]).batch_size
    if hasattr(data, "batch_size") and hasattr(data, "dataset"):  # a loader
        data = data.dataset
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _pairs(data: Any, batch_size: int | None) -> Iterator[tuple[Nest, Any]]:
    if isinstance(data, IterableDataset):
        raise InputError("an IterableDataset gives single samples; put it into a DataLoader, which makes batches of them")
    if is_whole(data):
        inputs, labels = pair(data)
        yield from _cut(inputs, labels, batch_size)
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        yield from _of_dataset(data, batch_size)
    elif hasattr(data, "__iter__"):
        yield from map(pair, data)
    else:
        raise InputError(f"data must be x, (x, y), a data set or a loader, not {type(data).__name__}")


def is_whole(data: Any) -> bool:
    """Whether it is the samples themselves."""
    return isinstance(data, Tensor | Mapping | tuple) or hasattr(data, "dtype") or hasattr(data, "columns")


def pair(data: Any) -> tuple[Nest, Any]:
    """Inputs and labels, of what may be inputs alone."""
    if isinstance(data, Mapping) and (name := next((name for name in LABELS if name in data), None)) is not None:
        return {key: value for key, value in data.items() if key != name}, data[name]
    if isinstance(data, list | tuple) and len(data) == 2 and are_labels(data[1]):
        return data[0], data[1]
    return (tuple(data) if isinstance(data, list) else data), None


def are_labels(thing: Any) -> bool:
    """Whether the second of a pair may be the labels of the first: none, a list, numbers in a row, or one number."""
    shape = getattr(thing, "shape", None)
    column = shape is not None and (len(shape) <= 1 or (len(shape) == 2 and shape[1] == 1 and "int" in str(thing.dtype)))
    return thing is None or isinstance(thing, list | int) or column


def _cut(inputs: Nest, labels: Any, batch_size: int | None) -> Iterator[tuple[Nest, Any]]:
    found = Inputs.of(inputs)
    whole, n = found.nest if not found.arrays and found.features is None else inputs, found.batch_size
    size = batch_size or min(MOST_AT_ONCE, automatic_batch_size(found))
    labels = None if labels is None else torch.as_tensor(as_tensor(labels)).reshape(-1)
    for start in range(0, n, size):
        rows = slice(start, start + size)
        if found.arrays or found.features is not None:
            part = whole[rows]
        else:
            part = each(lambda t, rows=rows: t[rows] if len(t) == n else t, whole)
        yield part, None if labels is None else labels[rows]


def _of_dataset(data: Any, batch_size: int | None) -> Iterator[tuple[Nest, Any]]:
    size = batch_size
    start = 0
    while start < len(data):
        if size is None:
            first, _ = pair(default_collate([data[start]]))
            size = min(MOST_AT_ONCE, automatic_batch_size(Inputs.of(first)))
        items = [data[i] for i in range(start, min(start + size, len(data)))]
        try:
            yield pair(default_collate(items))
        except RuntimeError as error:
            raise InputError(f"samples {start} to {start + len(items) - 1} differ in size; resize them alike") from error
        start += size


def _labels(labels: Any, n: int) -> Tensor | None:
    if labels is None:
        return None
    found = torch.as_tensor(as_tensor(labels)).reshape(-1)
    if len(found) != n:
        raise TargetError(f"{len(found)} labels for {n} samples; give one each")
    return found
