"""Tables and time series as comma-separated values, read as the inputs of a model."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.core.time_axis import TimeAxis
from whence.errors import InputError, LoadError, first_line, missing_path, suggest, value_repr

SEPARATORS = ",;\t"


def read_csv_file(path: str | Path) -> str:
    """Return the text of a CSV file, or raise `LoadError`."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise LoadError(missing_path(Path(path))) from error
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} is not a readable CSV file: {first_line(error)}") from error


@dataclass(frozen=True, eq=False)
class TableReader:
    """Reader of rows of a table, with the columns of its training rows.

    >>> reader = TableReader(frame)               # the training rows, or a sample of them
    >>> reader.read("age,income\\n37,52000")

    Args:
        background: Training rows, a data frame or a tensor `[N, columns]`: the names and dtypes of the columns, and the rows
            that Shapley values compare with.
        columns: Names of the columns, if `background` is a tensor.
    """

    background: Any
    columns: Sequence[str] = ()

    def __post_init__(self):
        names = list(map(str, self.background.columns)) if hasattr(self.background, "columns") else list(self.columns)
        object.__setattr__(self, "columns", names)
        if len(names) != self.background.shape[1]:
            raise InputError(f"columns has {len(names)} names for {self.background.shape[1]} columns; give one name per column")

    def read(self, text: str) -> Any:
        """Return the rows of a CSV with a header, in any order of columns, as the model takes them."""
        header, rows = _parse(text)
        missing = [name for name in self.columns if name not in header]
        if missing:
            raise InputError(
                f"the table has no column {missing[0]!r}, but {', '.join(header)}; the model takes {', '.join(self.columns)}"
            )
        unknown = [name for name in header if name not in self.columns]
        if unknown:
            raise InputError(f"the model has no column {unknown[0]!r}{suggest(unknown[0], self.columns)}; remove it")
        order = [header.index(name) for name in self.columns]
        rows = [[row[i] for i in order] for row in rows]
        if isinstance(self.background, Tensor):
            return torch.tensor([_numbers(row, self.columns, i) for i, row in enumerate(rows)], dtype=self.background.dtype)
        return self._frame(rows)

    def write(self, rows: Any) -> str:
        """Return rows as CSV with a header."""
        values = rows.tolist() if isinstance(rows, Tensor) else rows.to_numpy().tolist()
        return _write(self.columns, values)

    def _frame(self, rows: list[list[str]]) -> Any:
        """Return a data frame with the dtypes of the training rows."""
        columns = {}
        for k, (name, dtype) in enumerate(self.background.dtypes.items()):
            values: list[Any] = [row[k] for row in rows]
            if dtype.kind in "iuf":
                values = [_number(value, str(name), i) for i, value in enumerate(values)]
            elif dtype.kind == "b":
                values = [_boolean(value, str(name), i) for i, value in enumerate(values)]
            columns[name] = values
        try:
            return type(self.background)(columns).astype(dict(self.background.dtypes))
        except (ValueError, TypeError) as error:
            raise InputError(f"the table does not have the dtypes of the training rows: {first_line(error)}") from error


@dataclass(frozen=True, eq=False)
class SeriesReader:
    """Reader of a time series: one row for each time step, one column for each channel.

    >>> SeriesReader(["lead I", "lead II"], sampling_rate=100).read("lead I,lead II\\n0.1,0.0\\n0.2,0.1").shape
    torch.Size([1, 2, 2])

    Args:
        channels: Names of the channels.
        length: Number of time steps that the model takes; any if None.
        sampling_rate: Time steps per second, if known.
        channels_first: Whether the model takes `[N, channels, time]`, as Conv1d does, or `[N, time, channels]`.
    """

    channels: Sequence[str]
    length: int | None = None
    sampling_rate: float | None = None
    channels_first: bool = True

    @property
    def time_axis(self) -> TimeAxis | None:
        """The time of each step, if the sampling rate is known."""
        return None if self.sampling_rate is None else TimeAxis.of(None, self.sampling_rate)

    def read(self, text: str) -> Tensor:
        """Return the series of a CSV, with or without a header, as a batch of one."""
        names = list(self.channels)
        first = next(iter(text.strip().splitlines()), "")
        if (count := _count_numbers(first)) is not None:  # no header
            header = names if count == len(names) else map(str, range(count))
            text = f"{_separator(first).join(header)}\n{text}"
        header, rows = _parse(text)
        if len(header) != len(names):
            raise InputError(f"the series has {len(header)} columns; expected {len(names)}: {', '.join(names)}")
        order = [header.index(name) for name in names] if set(header) == set(names) else range(len(names))
        values = torch.tensor([[_numbers(row, header, i)[k] for k in order] for i, row in enumerate(rows)])
        if self.length is not None and len(values) != self.length:
            raise InputError(f"the series has {len(values)} time steps; the model takes {self.length}")
        return values.T[None].contiguous() if self.channels_first else values[None]

    def write(self, x: Tensor) -> str:
        """Return a series, a batch of one, as CSV with a header."""
        return _write(self.channels, (x[0].T if self.channels_first else x[0]).tolist())


def _parse(text: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows; columns are separated by commas, semicolons or tabs."""
    if not text.strip():
        raise InputError("the table is empty; give a header and at least one row, separated by commas")
    first = text.strip().splitlines()[0]
    separator = _separator(first)
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text.strip()), delimiter=separator) if row]
    header, rows = rows[0], rows[1:]
    if not rows:
        raise InputError("the table has a header and no row; add at least one row")
    if len(set(header)) < len(header):
        raise InputError("two columns of the table have the same name; rename one of them")
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise InputError(f"row {i + 1} has {len(row)} values; the header has {len(header)} columns")
    return header, rows


def _count_numbers(line: str) -> int | None:
    """Return the number of cells of a line of numbers; None if others are among them, as in a header."""
    try:
        return len([float(cell) for cell in line.split(_separator(line))])
    except ValueError:
        return None


def _separator(line: str) -> str:
    return max(SEPARATORS, key=line.count)


def _numbers(row: Sequence[str], columns: Sequence[str], index: int) -> list[float]:
    return [_number(value, name, index) for value, name in zip(row, columns, strict=True)]


def _number(value: str, column: str, index: int) -> float:
    try:
        return float(value) if value else float("nan")
    except ValueError as error:
        raise InputError(f"row {index + 1}, column {column!r}: {value_repr(value)} is not a number") from error


def _boolean(value: str, column: str, index: int) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise InputError(f"row {index + 1}, column {column!r}: expected true or false, got {value_repr(value)}")
    return value.lower() in ("true", "1")


def _write(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *([_short(value) for value in row] for row in rows)])
    return text.getvalue()


def _short(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value
