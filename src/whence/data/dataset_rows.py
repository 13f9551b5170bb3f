"""Whatever a data set is, as numbered rows: an input, and a label where there is one."""

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
LABELS = ("label", "labels")  # what Hugging Face calls them


@dataclass(frozen=True)
class UnreadableRow:
    """A row that could not be read or does not fit the others."""

    index: int
    message: str


@dataclass(frozen=True)
class SampleBatch:
    """Some of the data: inputs, their labels if there are any, and their numbers among all."""

    inputs: Inputs
    labels: Tensor | None
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def one_by_one(self) -> "Iterator[SampleBatch]":
        for i, number in enumerate(self.numbers):
            labels = None if self.labels is None else self.labels[i : i + 1]
            yield SampleBatch(self.inputs.of_samples(torch.tensor([i])), labels, [number])


@dataclass(frozen=True)
class DatasetRows:
    """Rows of a data set, read when they are asked for.

    >>> rows = Rows.of((x, y))
    >>> rows.read(range(10, 20))
    """

    count: int
    row: Callable[[int], Row]

    @classmethod
    def of(cls, data: Any, read: Callable[[Any], Any] | None = None) -> "DatasetRows":
        """`(x, y)` or `x` of tensors, or a map-style data set (PyTorch's, Hugging Face's, a folder of pictures) whose rows are
        inputs or pairs of input and label, or are made so by `read`."""
        if is_in_memory(data) and read is not None:
            raise InputError("read= applies to the rows of a dataset; got tensors")
        if is_in_memory(data):
            return cls._of_tensors(*split_labels(data))
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            raise InputError(
                f"a {type(data).__name__} has no length, or no rows by number, so it cannot be resumed; "
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
            raise InputError(f"{len(labels)} labels for {count} samples; give one each")
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
            raise InputError("the data is empty; its activations cannot be read")
        raise InputError(f"none of {self.count} samples can be read{f': {failed[0].message}' if failed else ''}")

    def read(self, numbers: Sequence[int], usual: Any = None) -> tuple[SampleBatch | None, list[UnreadableRow]]:
        """The rows of those numbers, None of them left being no samples; and those that cannot be read, or are not of the
        `usual` shape, that of the first if not given."""
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
                failed.append(UnreadableRow(i, f"a sample of {shape} among others of {usual}; resize them alike"))
        try:
            return _make_batch(alike) if alike else None, failed
        except InputError:  # numbers of some that are none, say
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
    """Whether it is the samples themselves."""
    return isinstance(data, Tensor | Mapping | tuple) or hasattr(data, "dtype") or hasattr(data, "columns")


def split_labels(data: Any) -> tuple[Tree, Any]:
    """Inputs and labels, of what may be inputs alone."""
    if isinstance(data, Mapping) and (name := next((name for name in LABELS if name in data), None)) is not None:
        return {key: value for key, value in data.items() if key != name}, data[name]
    if isinstance(data, list | tuple) and len(data) == 2 and is_label_like(data[1]):
        return data[0], data[1]
    return (tuple(data) if isinstance(data, list) else data), None


def is_label_like(thing: Any) -> bool:
    """Whether the second of a pair may be the labels of the first: none, a list, numbers in a row, or one number."""
    shape = getattr(thing, "shape", None)
    column = shape is not None and (len(shape) <= 1 or (len(shape) == 2 and shape[1] == 1 and "int" in str(thing.dtype)))
    return thing is None or isinstance(thing, list | int) or column


def _length(data: Any) -> int:
    try:
        return len(data)
    except TypeError as error:
        raise InputError(f"the length of this {type(data).__name__} is unknown; give a map-style data set") from error


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
