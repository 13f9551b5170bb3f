"""Datasets of any kind as numbered rows: an input, and a label if there is one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from whence.core.inputs import Inputs, as_tensor
from whence.core.trees import Tree, map_leaves, short_repr
from whence.errors import InputError, first_line

Row = tuple[Tree, int | None]
LABELS = ("label", "labels")  # column names used by Hugging Face


@dataclass(frozen=True)
class UnreadableRow:
    """A row that cannot be read, or whose shape differs from the others."""

    index: int
    message: str


@dataclass(frozen=True)
class SampleBatch:
    """A batch of samples: inputs, labels if there are any, and the indices of the samples in the dataset."""

    inputs: Inputs
    labels: Tensor | None
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def one_by_one(self) -> "Iterator[SampleBatch]":
        """Yield each sample as a batch of one."""
        for i, number in enumerate(self.numbers):
            labels = None if self.labels is None else self.labels[i : i + 1]
            yield SampleBatch(self.inputs.of_samples(torch.tensor([i])), labels, [number])


@dataclass(frozen=True)
class DatasetRows:
    """The rows of a dataset, read on demand.

    >>> rows = DatasetRows.of((x, y))
    >>> rows.read(range(10, 20))
    """

    count: int
    row: Callable[[int], Row]

    @classmethod
    def of(cls, data: Any, read: Callable[[Any], Any] | None = None) -> "DatasetRows":
        """Wrap `(x, y)` or `x` of tensors, or a map-style dataset (of PyTorch, of Hugging Face, a folder of images).

        The rows of a dataset are inputs or pairs of input and label; `read` converts other rows to these.
        """
        if is_in_memory(data) and read is not None:
            raise InputError("read= applies to the rows of a dataset; got tensors")
        if is_in_memory(data):
            return cls._of_tensors(*split_labels(data))
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            raise InputError(
                f"a {type(data).__name__} has no __len__ or no __getitem__, so it cannot be resumed; "
                "pass a map-style dataset, or a list of its rows"
            )
        made = (lambda i: read(data[i])) if read is not None else data.__getitem__
        return cls(_length(data), lambda i: _split_row(made(i)))

    @classmethod
    def _of_tensors(cls, x: Tree, y: Any) -> "DatasetRows":
        inputs = Inputs.of(as_tensor(x))
        nest, count = inputs.nest, inputs.batch_size
        labels = None if y is None else torch.as_tensor(as_tensor(y)).reshape(-1)
        if labels is not None and len(labels) != count:
            raise InputError(f"{len(labels)} labels for {count} samples; give one per sample")
        return cls(count, lambda i: (map_leaves(lambda t: t[i], nest), None if labels is None else int(labels[i])))

    @property
    def shape(self) -> Any:
        """The shape of the first row that can be read."""
        for i in range(self.count):
            with suppress(Exception):
                if found := _shape(self.row(i)[0]):
                    return found
        return None

    @property
    def first(self) -> SampleBatch:
        """The first row that can be read, as a batch."""
        failed: list[UnreadableRow] = []
        for i in range(self.count):
            one, failed = self.read([i])
            if one is not None:
                return one
        if not self.count:
            raise InputError("the data is empty; there are no rows to read")
        raise InputError(f"none of {self.count} samples can be read{f': {failed[0].message}' if failed else ''}")

    def read(self, numbers: Sequence[int], usual: Any = None) -> tuple[SampleBatch | None, list[UnreadableRow]]:
        """Read rows by index.

        Returns the samples, or None if there are none, and the rows that cannot be read or that differ from the `usual` shape,
        by default that of the first of these rows.
        """
        found: list[tuple[int, Row]] = []
        failed: list[UnreadableRow] = []
        for i in numbers:
            try:
                found.append((i, self.row(i)))
            except Exception as error:
                failed.append(UnreadableRow(i, f"{type(error).__name__}: {error}".splitlines()[0]))
        usual = usual or next((_shape(x) for _, (x, _) in found), None)
        alike = []
        for i, (x, label) in found:
            if (shape := _shape(x)) == usual:
                alike.append((i, (x, label)))
            else:
                failed.append(
                    UnreadableRow(i, f"sample of shape {shape} among samples of shape {usual}; resize them to one shape")
                )
        try:
            return _make_batch(alike) if alike else None, failed
        except InputError:  # for example NaN in some of the samples
            flaws = {row[0]: flaw for row in alike if (flaw := _row_error(row)) is not None}
            sound = [row for row in alike if row[0] not in flaws]
            return _make_batch(sound) if sound else None, [*failed, *flaws.values()]


def _make_batch(rows: list[tuple[int, Row]]) -> SampleBatch:
    labels = [-1 if label is None else label for _, (_, label) in rows]
    inputs = Inputs.of(_collate([x for _, (x, _) in rows])).detached()
    return SampleBatch(inputs, torch.tensor(labels) if any(label >= 0 for label in labels) else None, [i for i, _ in rows])


def _row_error(row: tuple[int, Row]) -> UnreadableRow | None:
    try:
        _make_batch([row])
    except InputError as error:
        return UnreadableRow(row[0], first_line(error))
    return None


def is_in_memory(data: Any) -> bool:
    """Return whether the data consists of the samples themselves, rather than a dataset or loader."""
    return isinstance(data, Tensor | Mapping | tuple) or hasattr(data, "dtype") or hasattr(data, "columns")


def split_labels(data: Any) -> tuple[Tree, Any]:
    """Split data into inputs and labels; labels are None for inputs alone."""
    if isinstance(data, Mapping) and (name := next((name for name in LABELS if name in data), None)) is not None:
        return {key: value for key, value in data.items() if key != name}, data[name]
    if isinstance(data, list | tuple) and len(data) == 2 and is_label_like(data[1]):
        return data[0], data[1]
    return (tuple(data) if isinstance(data, list) else data), None


def is_label_like(thing: Any) -> bool:
    """Return whether the second element of a pair can be labels: None, a list, a vector of numbers, or a number."""
    shape = getattr(thing, "shape", None)
    column = shape is not None and (len(shape) <= 1 or (len(shape) == 2 and shape[1] == 1 and "int" in str(thing.dtype)))
    return thing is None or isinstance(thing, list | int) or column


def _length(data: Any) -> int:
    try:
        return len(data)
    except TypeError as error:
        raise InputError(f"the length of this {type(data).__name__} is unknown; pass a map-style dataset") from error


def _split_row(row: Any) -> Row:
    x, y = split_labels(row)
    try:
        return x, None if y is None else int(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"row[1] must be an int label, got {short_repr(y)}; pass read=, a function from a row to "
            "(input, label) or ((inputs, …), None)"
        ) from error


def _shape(x: Tree) -> Any:
    if isinstance(x, dict):
        return {name: _shape(part) for name, part in x.items()}.__repr__()
    if isinstance(x, list | tuple):
        return tuple(map(_shape, x))
    return tuple(getattr(x, "shape", ()))


def _collate(rows: list[Tree]) -> Tree:
    try:
        found: Any = default_collate(rows)
    except TypeError as error:
        raise InputError(f"{first_line(error)}; pass read=, a function from a row to a tensor or (tensor, label)") from error
    return tuple(found) if isinstance(found, list) else found
