"""Whatever samples come in: tensors, with labels or without, data sets, loaders; a batch at a time."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, SequentialSampler

from whence.core.inputs import Inputs, as_tensor
from whence.core.trees import Nest, each
from whence.data.dataset_rows import Rows, Samples, Unreadable, is_whole, pair
from whence.errors import InputError, TargetError
from whence.methods.batching import automatic_batch_size

MOST_AT_ONCE = 64
Read = Callable[[Any], Any]  # makes an input, or a pair of input and label, of a row


def batches(
    data: Any, batch_size: int | None = None, read: Read | None = None, share: tuple[int, int] = (0, 1)
) -> Iterator[Samples | Unreadable]:
    """`(x, y)`, `x` (a tensor, array, frame, or dict of them), a data set of pairs or inputs, or a loader of their batches; and
    the rows that cannot be read. Of a `share` (i, n) every n-th batch from the i-th on.

    >>> [len(samples) for samples in batches((torch.rand(100, 3), torch.zeros(100).long()), 64)]
    [64, 36]
    """
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size={batch_size!r}; give the number of samples that are explained at once, or None")
    if isinstance(data, IterableDataset):
        raise InputError("an IterableDataset gives single samples; put it into a DataLoader, which makes batches of them")
    if is_map_style(data):
        rows = Rows.of(data, read)
        usual = rows.shape
        for numbers in islice(pieces(rows, batch_size), share[0], None, share[1]):
            yield from of_rows(rows, numbers, usual)
        return
    if read is not None:
        raise InputError("read makes inputs of the rows of a data set; tensors and batches are taken as they are")
    yield from islice(_numbered(_pairs(data, batch_size)), share[0], None, share[1])


def is_map_style(data: Any) -> bool:
    """Whether its rows are read by number."""
    return not is_whole(data) and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def pieces(rows: Rows, batch_size: int | None = None) -> list[range]:
    """The numbers of the rows that are read at once."""
    size = batch_size or min(MOST_AT_ONCE, automatic_batch_size(rows.first.inputs))
    return [range(start, min(start + size, rows.count)) for start in range(0, rows.count, size)]


def of_rows(rows: Rows, numbers: range, usual: Any) -> Iterator[Samples | Unreadable]:
    """Those of a piece."""
    samples, failed = rows.read(numbers, usual)
    yield from failed
    if samples is not None:
        yield samples


def whole(found: Iterable[Samples | Unreadable]) -> list[Samples]:
    """All of them, where none may be missing."""
    samples = []
    for piece in found:
        if isinstance(piece, Unreadable):
            raise InputError(f"sample {piece.index} cannot be read: {piece.message}; leave it out")
        samples.append(piece)
    if not samples:
        raise InputError("the data is empty; there is nothing to evaluate")
    return samples


def count_of(data: Any) -> int | None:
    """Samples in all, where that is known before they are read."""
    if is_whole(data):
        return Inputs.of(pair(data)[0]).batch_size
    try:
        if hasattr(data, "batch_size") and hasattr(data, "sampler"):  # a loader
            if data.batch_size is None:  # its batches are made elsewhere
                return None
            count = len(data.sampler)
            return count - count % data.batch_size if data.drop_last else count
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def is_shuffled(data: Any) -> bool:
    """Whether it is a loader that gives samples in another order than they have in the data."""
    return hasattr(data, "sampler") and not isinstance(data.sampler, SequentialSampler)


def _numbered(pairs: Iterable[tuple[Nest, Any]]) -> Iterator[Samples]:
    start = 0
    for inputs, labels in pairs:
        found = Inputs.of(inputs).detached()
        numbers = range(start, start + found.batch_size)
        yield Samples(found, _labels(labels, len(numbers)), numbers)
        start = numbers.stop


def _pairs(data: Any, batch_size: int | None) -> Iterator[tuple[Nest, Any]]:
    if is_whole(data):
        return _cut(*pair(data), batch_size)
    if hasattr(data, "__iter__"):
        return map(pair, data)
    raise InputError(f"data must be x, (x, y), a data set or a loader, not {type(data).__name__}")


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


def _labels(labels: Any, n: int) -> Tensor | None:
    if labels is None:
        return None
    found = torch.as_tensor(as_tensor(labels)).reshape(-1)
    if len(found) != n:
        raise TargetError(f"{len(found)} labels for {n} samples; give one each")
    return found
