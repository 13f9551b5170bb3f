"""Whatever a data set is, as numbered rows: an input, and a label where there is one."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from whence.errors import InputError
from whence.evaluation.data import is_whole, pair
from whence.inputs import Inputs, as_tensor
from whence.nests import Nest, each

Row = tuple[Nest, int | None]


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be read or does not fit the others."""

    index: int
    message: str


@dataclass(frozen=True)
class Rows:
    """Rows of a data set, read when they are asked for.

    >>> rows = Rows.of((x, y))
    >>> rows.read(range(10, 20))
    """

    count: int
    row: Callable[[int], Row]

    @classmethod
    def of(cls, data: Any, read: Callable[[Any], Any] | None = None) -> "Rows":
        """`(x, y)` or `x` of tensors, or a map-style data set (PyTorch's, Hugging Face's, a folder of pictures) whose rows are
        inputs or pairs of input and label, or are made so by `read`."""
        if is_whole(data) and read is not None:
            raise InputError("read makes inputs of rows; tensors are taken as they are. Give a data set of rows")
        if is_whole(data):
            return cls._of_tensors(*pair(data))
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            raise InputError(
                f"a {type(data).__name__} has no length, or no rows by number, so that nothing could be resumed; give a "
                "map-style data set, or a list of its rows"
            )
        made = (lambda i: read(data[i])) if read is not None else data.__getitem__
        return cls(_length(data), lambda i: _parted(made(i)))

    @classmethod
    def _of_tensors(cls, x: Nest, y: Any) -> "Rows":
        inputs = Inputs.of(as_tensor(x))
        nest, count = inputs.nest, inputs.batch_size
        labels = None if y is None else torch.as_tensor(as_tensor(y)).reshape(-1)
        if labels is not None and len(labels) != count:
            raise InputError(f"{len(labels)} labels for {count} samples; give one each")
        return cls(count, lambda i: (each(lambda t: t[i], nest), None if labels is None else int(labels[i])))

    @property
    def shape(self) -> Any:
        """The shape of the first row that can be read."""
        for i in range(self.count):
            with suppress(Exception):
                if found := _shape(self.row(i)[0]):
                    return found
        return None

    def read(self, numbers: Sequence[int], usual: Any = None) -> "tuple[list[int], Nest, Tensor | None, list[Unreadable]]":
        """The rows of those numbers as a batch: numbers, inputs, labels; and those that cannot be read, or are not of the
        `usual` shape, that of the first if not given."""
        found: list[tuple[int, Row]] = []
        failed: list[Unreadable] = []
        for i in numbers:
            try:
                found.append((i, self.row(i)))
            except Exception as error:
                failed.append(Unreadable(i, f"{type(error).__name__}: {error}".splitlines()[0]))
        shapes = [_shape(x) for _, (x, _) in found]
        usual = usual or next(iter(shapes), None)
        for (i, _), shape in zip(found, shapes, strict=True):
            if shape != usual:
                failed.append(Unreadable(i, f"a sample of {shape} among others of {usual}; resize them alike"))
        alike = [row for row, shape in zip(found, shapes, strict=True) if shape == usual]
        if not alike:
            return [], None, None, failed
        labels = [-1 if label is None else label for _, (_, label) in alike]
        inputs = default_collate([x for _, (x, _) in alike])
        known = any(label >= 0 for label in labels)
        return [i for i, _ in alike], _as_nest(inputs), torch.tensor(labels) if known else None, failed


def _length(data: Any) -> int:
    try:
        return len(data)
    except TypeError as error:
        raise InputError(f"the length of this {type(data).__name__} is unknown; give a map-style data set") from error


def _parted(row: Any) -> Row:
    x, y = pair(row)
    return x, None if y is None else int(y)


def _shape(x: Nest) -> Any:
    if isinstance(x, dict):
        return {name: _shape(part) for name, part in x.items()}.__repr__()
    if isinstance(x, list | tuple):
        return tuple(map(_shape, x))
    return tuple(getattr(x, "shape", ()))


def _as_nest(inputs: Any) -> Nest:
    return tuple(inputs) if isinstance(inputs, list) else inputs
