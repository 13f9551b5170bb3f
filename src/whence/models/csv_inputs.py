"""Tables and time series as comma-separated values, read as the inputs of a model."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.errors import InputError, LoadError, first_line, missing_path, suggest, value_repr

SEPARATORS = ",;\t"
MISSING = ("", "na", "n/a", "nan", "null", "none", "<na>", "nat")
MOST_NAMED = 10  # values in a message


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
        background: Training rows, a data frame or a tensor `[N, columns]`: the names, dtypes and categories of the columns, and
            the rows that Shapley values compare with.
        columns: Names of the columns, if `background` is a tensor.

    Raises:
        InputError: `background` is neither, or names are missing or occur twice.
    """

    background: Any
    columns: Sequence[str] = ()

    def __post_init__(self):
        rows: Any = torch.as_tensor(self.background) if isinstance(self.background, np.ndarray) else self.background
        object.__setattr__(self, "background", rows)
        of_frame = hasattr(rows, "columns") and hasattr(rows, "dtypes")
        if not of_frame and not (isinstance(rows, Tensor) and rows.dim() == 2):
            raise InputError(f"background is {value_repr(rows)}; expected a data frame, or a tensor [N, columns]")
        names = list(map(str, getattr(rows, "columns", ()))) if of_frame else list(self.columns)
        object.__setattr__(self, "columns", names)
        if len(names) != rows.shape[1]:
            raise InputError(f"columns has {len(names)} names for {rows.shape[1]} columns; give one name per column")
        _check_unique(names, "columns")

    def read(self, text: str) -> Any:
        """Return the rows of a CSV with a header, in any order of columns, as the model takes them."""
        header, rows = _parse(text, self.columns)
        order = _positions(header, self.columns)
        unknown = [name for i, name in enumerate(header) if i not in order]
        if unknown:
            raise InputError(f"the model has no column {unknown[0]!r}{suggest(unknown[0], self.columns)}; remove it")
        cells = [[row[i] for row in rows] for i in order]
        if isinstance(self.background, Tensor):
            parse = _parser_of_numbers(_numpy_dtype(self.background.dtype))
            found = [_parsed(parse, column, name) for column, name in zip(cells, self.columns, strict=True)]
            return torch.tensor(found, dtype=self.background.dtype).T.contiguous()
        frame = self.background
        parsers = [_parser(frame.iloc[:, k]) for k in range(len(self.columns))]
        columns = {
            key: _parsed(parse, column, str(key)) for key, parse, column in zip(frame.columns, parsers, cells, strict=True)
        }
        try:
            return type(frame)(columns).astype(dict(frame.dtypes))
        except (ValueError, TypeError) as error:
            raise InputError(f"the table does not have the dtypes of the training rows: {first_line(error)}") from error

    def write(self, rows: Any) -> str:
        """Return rows as CSV with a header."""
        if isinstance(rows, Tensor):
            return _write(self.columns, rows.detach().cpu().numpy())
        return _write(self.columns, zip(*(_values(rows.iloc[:, k]) for k in range(rows.shape[1])), strict=True))


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

    Raises:
        InputError: A name of a channel occurs twice.
    """

    channels: Sequence[str]
    length: int | None = None
    sampling_rate: float | None = None
    channels_first: bool = True

    def __post_init__(self):
        object.__setattr__(self, "channels", list(map(str, self.channels)))
        _check_unique(self.channels, "channels")

    def read(self, text: str) -> Tensor:
        """Return the series of a CSV as a batch of one; a header may be missing, and may have any order of channels."""
        names = list(self.channels)
        header, rows = _parse(text, names, optional_header=True)
        if header is None:
            header = names if len(rows[0]) == len(names) else list(map(str, range(len(rows[0]))))
        if len(header) != len(names):
            raise InputError(f"the series has {len(header)} columns; expected {len(names)}: {', '.join(names)}")
        order = _positions(header, names)
        parse = _parser_of_numbers(np.dtype("float32"))
        columns = [_parsed(parse, [row[i] for row in rows], name) for i, name in zip(order, names, strict=True)]
        values = torch.tensor(columns)
        if self.length is not None and values.shape[1] != self.length:
            raise InputError(f"the series has {values.shape[1]} time steps; the model takes {self.length}")
        return values[None] if self.channels_first else values.T[None].contiguous()

    def write(self, x: Tensor) -> str:
        """Return a series, a batch of one, as CSV with a header."""
        series = x[0].T if self.channels_first else x[0]
        return _write(self.channels, series.detach().cpu().numpy())


# text to cells


def _parse(text: str, names: Sequence[str], optional_header: bool = False) -> tuple[Any, list[list[str]]]:
    """Return header and rows; cells are separated by commas, semicolons or tabs, whichever fits the names best."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise InputError("the table is empty; give a header and at least one row, separated by commas")
    rows = max((_split(text, separator) for separator in SEPARATORS), key=lambda rows: _fit(rows[0], names))
    header: list[str] | None = rows[0]
    if optional_header and not _is_header(rows[0], names):
        header = None
    else:
        _check_unique([cell.strip() for cell in rows[0]], "columns of the table")
        rows = rows[1:]
    if not rows:
        raise InputError("the table has a header and no row; add at least one row")
    for i, row in enumerate(rows):
        if len(row) != len(header or rows[0]):
            where = "the header has" if header else "the first row has"
            raise InputError(f"row {i + 1} has {len(row)} values; {where} {len(header or rows[0])} columns")
    return header, rows


def _split(text: str, separator: str) -> list[list[str]]:
    """Return the cells of all lines. Empty lines are missing values of a single column, and otherwise skipped."""
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True))
    except csv.Error as error:
        raise InputError(f"the text is not a CSV: {first_line(error)}") from error
    while rows and not rows[-1]:
        rows.pop()
    while rows and not rows[0]:
        rows.pop(0)
    return [row or [""] for row in rows] if len(rows[0]) == 1 else [row for row in rows if row]


def _fit(header: Sequence[str], names: Sequence[str]) -> tuple[int, int]:
    """Return how well a header fits the names: how many it has, and its number of columns."""
    return len({_plain(cell) for cell in header} & {_plain(name) for name in names}), len(header)


def _is_header(row: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether a first row has names: one of those that are known, or neither a number nor a missing value."""
    if _fit(row, names)[0]:
        return True
    return not any(_is_number(cell) or _plain(cell) in MISSING for cell in row)


def _positions(header: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return where each name stands in a header: exactly, or else in any case and with spaces around it."""
    found = []
    for name in names:
        exact = [i for i, cell in enumerate(header) if cell == name]
        near = exact or [i for i, cell in enumerate(header) if _plain(cell) == _plain(name)]
        if len(near) != 1:
            raise InputError(f"the table has no column {name!r}, but {', '.join(header)}; the model takes {', '.join(names)}")
        found += near
    return found


def _plain(name: str) -> str:
    return name.strip().casefold()


def _check_unique(names: Sequence[str], what: str) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise InputError(f"two {what} have the same name {twice!r}; rename one of them")


# cells to values


def _parsed(parse: Callable[[str], Any], cells: Sequence[str], name: str) -> list[Any]:
    """Return the values of a column, or raise `InputError` with the row and the column of the first wrong cell."""
    found = []
    for i, cell in enumerate(cells):
        try:
            found.append(parse(cell))
        except ValueError as error:
            raise InputError(f"row {i + 1}, column {name!r}: {error}") from error
    return found


def _parser(column: Any) -> Callable[[str], Any]:
    """Return the function from cells to values of a column of a data frame; it raises `ValueError`."""
    dtype, nullable = column.dtype, not isinstance(column.dtype, np.dtype)
    kind = getattr(dtype, "kind", "O")
    if hasattr(dtype, "categories"):
        return _parser_of_values(dtype.categories, others=False)
    if kind == "b":
        return _optional(_boolean) if nullable else _boolean
    if kind in "iuf":
        parse = _parser_of_numbers(np.dtype(str(dtype).lower()) if nullable else dtype)
        return _optional(parse) if nullable else parse
    if kind in "Mm":
        return _optional(str)
    known = column.dropna().unique()
    missing = column[column.isna()]
    of_texts = all(isinstance(value, str) for value in known)
    return _parser_of_values(known, of_texts, missing.iloc[0] if len(missing) else None, bool(len(missing)))


def _parser_of_values(
    known: Sequence[Any], others: bool, missing: Any = None, has_missing: bool = True
) -> Callable[[str], Any]:
    """Return the function from the text of a value to that value; `others` says whether unknown texts are values, too."""
    by_text = {str(value): value for value in known}

    def parse(cell: str) -> Any:
        if cell in by_text:
            return by_text[cell]
        if cell.strip() in by_text:
            return by_text[cell.strip()]
        if has_missing and _plain(cell) in MISSING:
            return missing
        if others:
            return cell
        names = ", ".join(list(by_text)[:MOST_NAMED]) + (", …" if len(by_text) > MOST_NAMED else "")
        raise ValueError(f"{value_repr(cell)} is not one of the values {names}")

    return parse


def _parser_of_numbers(dtype: np.dtype) -> Callable[[str], Any]:
    """Return the function from cells to numbers of a dtype; missing values are NaN in floats, and refused in integers."""
    if dtype.kind == "b":
        return _boolean
    if dtype.kind == "f":
        return lambda cell: float("nan") if _plain(cell) in MISSING else _number(cell)
    bounds = np.iinfo(dtype)

    def parse(cell: str) -> int:
        number = _number(cell)
        exact = int(cell) if cell.strip().lstrip("+-").isdecimal() else number
        if exact != exact or exact != int(exact) or not bounds.min <= exact <= bounds.max:
            raise ValueError(f"{value_repr(cell)} is not an integer from {bounds.min} to {bounds.max}")
        return int(exact)

    return parse


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda cell: None if _plain(cell) in MISSING else parse(cell)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{value_repr(cell)} is not a number; decimals have a point") from None


def _boolean(cell: str) -> bool:
    if _plain(cell) not in ("true", "false", "1", "0"):
        raise ValueError(f"expected true or false, got {value_repr(cell)}")
    return _plain(cell) in ("true", "1")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    return torch.zeros(0, dtype=dtype if dtype != torch.bfloat16 else torch.float32).numpy().dtype


# values to text


def _values(column: Any) -> list[Any]:
    """Return the values of a column of a data frame, None where they are missing."""
    return [None if gone else value for value, gone in zip(column.tolist(), column.isna(), strict=True)]


def _write(header: Sequence[str], rows: Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value is None else str(value) for value in row] for row in rows])
    return text.getvalue()
