"""Batches of samples from tensors, pairs of inputs and labels, datasets and loaders."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, SequentialSampler

from whence.core.inputs import Inputs, as_tensor
from whence.core.trees import Tree, map_leaves
from whence.data.dataset_rows import DatasetRows, SampleBatch, UnreadableRow, is_in_memory, split_labels
from whence.errors import InputError, TargetError, value_repr
from whence.methods.batching import automatic_batch_size

MAX_BATCH_SIZE = 64
ReadFunction = Callable[[Any], Any]  # row -> input, or pair of input and label


def batches(
    data: Any, batch_size: int | None = None, read: ReadFunction | None = None, share: tuple[int, int] = (0, 1)
) -> Iterator[SampleBatch | UnreadableRow]:
    """Yield batches of samples, and the rows that cannot be read.

    >>> [len(samples) for samples in batches((torch.rand(100, 3), torch.zeros(100).long()), 64)]
    [64, 36]

    `data` is `(x, y)`, `x` (a tensor, an array, a data frame, or a dict of them), a dataset of inputs or of pairs of input and
    label, or a loader of batches of them. With `share` (i, n), yields every n-th batch, starting at the i-th.
    """
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(
            f"batch_size={value_repr(batch_size)}; expected a positive int, the number of samples per batch, or None"
        )
    if isinstance(data, IterableDataset):
        raise InputError("an IterableDataset yields single samples; wrap it in a DataLoader, which batches them")
    if is_map_style(data):
        rows = DatasetRows.of(data, read)
        usual = rows.shape
        for numbers in islice(batch_ranges(rows, batch_size), share[0], None, share[1]):
            yield from read_batch(rows, numbers, usual)
        return
    if read is not None:
        raise InputError("read= applies to the rows of a dataset; got tensors or batches")
    yield from islice(_with_numbers(_iterate_pairs(data, batch_size)), share[0], None, share[1])


def is_map_style(data: Any) -> bool:
    """Return whether the rows of the data are read by index."""
    return not is_in_memory(data) and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def batch_ranges(rows: DatasetRows, batch_size: int | None = None) -> list[range]:
    """Return the indices of the rows of each batch."""
    size = batch_size or min(MAX_BATCH_SIZE, automatic_batch_size(rows.first.inputs))
    return [range(start, min(start + size, rows.count)) for start in range(0, rows.count, size)]


def read_batch(rows: DatasetRows, numbers: range, usual: Any) -> Iterator[SampleBatch | UnreadableRow]:
    """Yield the samples of one range of rows, and the rows that cannot be read."""
    samples, failed = rows.read(numbers, usual)
    yield from failed
    if samples is not None:
        yield samples


def require_all(found: Iterable[SampleBatch | UnreadableRow]) -> list[SampleBatch]:
    """Return all batches; raise `InputError` if a row cannot be read or the data is empty."""
    samples = []
    for piece in found:
        if isinstance(piece, UnreadableRow):
            raise InputError(f"sample {piece.index} cannot be read: {piece.message}; remove it")
        samples.append(piece)
    if not samples:
        raise InputError("the data is empty")
    return samples


def dataset_size(data: Any) -> int | None:
    """Return the number of samples, or None if it is not known before they are read."""
    if is_in_memory(data):
        return Inputs.of(split_labels(data)[0]).batch_size
    try:
        if hasattr(data, "batch_size") and hasattr(data, "sampler"):  # a loader
            if data.batch_size is None:  # the loader gets ready-made batches
                return None
            count = len(data.sampler)
            return count - count % data.batch_size if data.drop_last else count
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def is_shuffled(data: Any) -> bool:
    """Return whether the data is a loader that yields samples in a different order from its dataset."""
    return hasattr(data, "sampler") and not isinstance(data.sampler, SequentialSampler)


def _with_numbers(pairs: Iterable[tuple[Tree, Any]]) -> Iterator[SampleBatch]:
    start = 0
    for inputs, labels in pairs:
        found = Inputs.of(inputs).detached()
        numbers = range(start, start + found.batch_size)
        yield SampleBatch(found, _labels(labels, len(numbers)), numbers)
        start = numbers.stop


def _iterate_pairs(data: Any, batch_size: int | None) -> Iterator[tuple[Tree, Any]]:
    if is_in_memory(data):
        return _slices(*split_labels(data), batch_size)
    if hasattr(data, "__iter__"):
        return map(split_labels, data)
    raise InputError(f"expected x, (x, y), a dataset or a loader, got {type(data).__name__}")


def _slices(inputs: Tree, labels: Any, batch_size: int | None) -> Iterator[tuple[Tree, Any]]:
    found = Inputs.of(inputs)
    whole, n = found.nest if not found.arrays and found.features is None else inputs, found.batch_size
    size = batch_size or min(MAX_BATCH_SIZE, automatic_batch_size(found))
    labels = None if labels is None else torch.as_tensor(as_tensor(labels)).reshape(-1)
    for start in range(0, n, size):
        rows = slice(start, start + size)
        if found.arrays or found.features is not None:
            part = whole[rows]
        else:
            part = map_leaves(lambda t, rows=rows: t[rows] if len(t) == n else t, whole)
        yield part, None if labels is None else labels[rows]


def _labels(labels: Any, n: int) -> Tensor | None:
    if labels is None:
        return None
    found = torch.as_tensor(as_tensor(labels)).reshape(-1)
    if len(found) != n:
        raise TargetError(f"{len(found)} labels for {n} samples; give one per sample")
    return found
