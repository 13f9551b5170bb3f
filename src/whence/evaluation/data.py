"""Whatever samples come in: tensors, with labels or without, data sets, loaders; a batch at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

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
    start = 0
    for inputs, labels in _pairs(data, batch_size):
        found = Inputs.of(inputs).detached()
        numbers = range(start, start + found.batch_size)
        yield Samples(found, _labels(labels, len(numbers)), numbers)
        start = numbers.stop
    if not start:
        raise InputError("the data is empty; there is nothing to evaluate")


def opened(data: Any, batch_size: int | None) -> tuple[Inputs, Any]:
    """The first inputs, and the data, which may have to be begun to know them."""
    pieces = data if _is_whole(data) or hasattr(data, "__getitem__") or not hasattr(data, "__iter__") else chain_of(data)
    if isinstance(pieces, tuple) and not _is_whole(data):
        first, data = pieces
        return Inputs.of(_pair(first)[0]), data
    return next(iter(batches(data, batch_size or 1))).inputs, data


def chain_of(data: Any) -> tuple[Any, Any]:
    """The first piece of an iterable, and the whole of it again."""
    if hasattr(data, "dataset") and not isinstance(data, Iterator):  # a loader starts anew
        return next(iter(data)), data
    pieces = iter(data)
    first = next(pieces, None)
    if first is None:
        raise InputError("the data is empty; there is nothing to evaluate")
    return first, chain([first], pieces)


def count(data: Any) -> int | None:
    """How many samples there are, if that can be known before they are read."""
    if _is_whole(data):
        return Inputs.of(_pair(data)[0]).batch_size
    if hasattr(data, "batch_size") and hasattr(data, "dataset"):
        data = data.dataset
    try:
        return len(data)
    except TypeError:
        return None


def _pairs(data: Any, batch_size: int | None) -> Iterator[tuple[Nest, Any]]:
    if type(data).__name__ == "IterableDataset" or any(k.__name__ == "IterableDataset" for k in type(data).__mro__):
        raise InputError("an IterableDataset gives single samples; put it into a DataLoader, which makes batches of them")
    if _is_whole(data):
        inputs, labels = _pair(data)
        yield from _cut(inputs, labels, batch_size)
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        yield from _of_dataset(data, batch_size)
    elif hasattr(data, "__iter__"):
        yield from map(_pair, data)
    else:
        raise InputError(f"data must be x, (x, y), a data set or a loader, not {type(data).__name__}")


def _is_whole(data: Any) -> bool:
    """Whether it is the samples themselves."""
    return isinstance(data, Tensor | Mapping | tuple) or hasattr(data, "dtype") or hasattr(data, "columns")


def _pair(data: Any) -> tuple[Nest, Any]:
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
    from torch.utils.data import default_collate

    size = batch_size
    start = 0
    while start < len(data):
        if size is None:
            first, _ = _pair(default_collate([data[start]]))
            size = min(MOST_AT_ONCE, automatic_batch_size(Inputs.of(first)))
        items = [data[i] for i in range(start, min(start + size, len(data)))]
        try:
            yield _pair(default_collate(items))
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
