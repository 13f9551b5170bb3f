"""Data frames as arrays of numbers, and back, for models that take data frames."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whence.errors import InputError

LARGEST_INTEGER = 2.0**53  # up to which all integers are exact in float64


@dataclass(frozen=True, eq=False)
class TableFormat:
    """The columns of a pandas data frame: numbers as they are, everything else as the codes of its categories.

    >>> table = TableFormat.of(frame)
    >>> table.decode(table.encode(frame)).equals(frame)
    True
    """

    empty: Any  # the frame without its rows
    categories: dict[Any, list] = field(default_factory=dict)  # of each column without numbers; extended when encoding
    missing: dict[Any, Any] = field(default_factory=dict)  # the value of missing entries in each of these columns

    @classmethod
    def of(cls, frame: Any) -> "TableFormat":
        """Return the format of a frame."""
        if not frame.columns.is_unique:
            raise InputError("the data frame has several columns of the same name; rename them")
        named = {c: [] for c in frame.columns if not _is_numeric(frame[c].dtype)}
        return cls(frame.iloc[:0], named)

    def encode(self, frame: Any) -> np.ndarray:
        """Return the rows as numbers `[N, columns]`; float32 if all columns are float32, else float64."""
        if list(frame.columns) != list(self.empty.columns):
            raise InputError(
                f"a data frame with the columns {', '.join(map(str, frame.columns))}; expected "
                f"{', '.join(map(str, self.empty.columns))}, in this order"
            )
        single = all(str(dtype) == "float32" for dtype in self.empty.dtypes)
        columns = [self._codes(c, frame[c]) if c in self.categories else _numbers(frame[c]) for c in frame.columns]
        return np.stack(columns, 1).astype(np.float32 if single else np.float64) if columns else np.empty((len(frame), 0))

    def decode(self, rows: np.ndarray) -> Any:
        """Return a frame with the columns and dtypes of the original from numbers `[N, columns]`."""
        columns = {}
        for i, (name, dtype) in enumerate(self.empty.dtypes.items()):
            values = rows[:, i]
            if name in self.categories:
                columns[name] = self._restored(name, dtype, np.where(np.isnan(values), -1, values).astype(int))
            else:
                columns[name] = self._cast(name, values, dtype)
        return type(self.empty)(columns)

    def _restored(self, name: Any, dtype: Any, codes: np.ndarray) -> Any:
        """Return a column of categories; those of other frames are added to a categorical dtype."""
        known = np.empty(len(self.categories[name]) + 1, dtype=object)
        known[:-1], known[-1] = self.categories[name], self.missing.get(name)
        column = type(self.empty[name])(known[codes], dtype=object)
        if str(dtype) == "category":
            others = [category for category in self.categories[name] if category not in dtype.categories]
            dtype = type(dtype)([*dtype.categories, *others], ordered=dtype.ordered)
        return column.astype(dtype)

    def _cast(self, name: Any, values: np.ndarray, dtype: Any) -> Any:
        """Return numbers in a column's dtype where that changes none of them: a mean of integers stays a fraction."""
        present = values[~np.isnan(values)]
        whole = (present == np.round(present)).all() if dtype.kind in "iu" else np.isin(present, (0, 1)).all()
        if dtype.kind == "f" or whole:
            with suppress(TypeError, ValueError):  # a dtype without missing values
                return type(self.empty[name])(values).astype(dtype)
        return values

    def _codes(self, name: Any, column: Any) -> np.ndarray:
        """Return the number of each entry's category, with new categories appended; NaN for missing entries."""
        known = {_key(name, category): code for code, category in enumerate(self.categories[name])}
        codes = []
        for value, is_missing in zip(column, column.isna(), strict=True):
            if is_missing:
                self.missing.setdefault(name, value)
            codes.append(np.nan if is_missing else known.setdefault(_key(name, value), len(known)))
        self.categories[name][:] = [value for _, value in known]
        return np.asarray(codes, dtype=float)


def is_pandas(data: Any) -> bool:
    """Return whether the data is a pandas data frame; pandas is not imported."""
    return type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns")


def is_row_of_frame(data: Any) -> bool:
    """Return whether the data is a pandas series, such as a row of a data frame."""
    return type(data).__module__.partition(".")[0] == "pandas" and type(data).__name__ == "Series"


def _is_numeric(dtype: Any) -> bool:
    return getattr(dtype, "kind", "O") in "iufb" and str(dtype) != "category" and not str(dtype).startswith("Sparse")


def _numbers(column: Any) -> np.ndarray:
    numbers = column.to_numpy(dtype=float, na_value=np.nan)
    if column.dtype.kind in "iu" and bool((np.abs(numbers) > LARGEST_INTEGER).any()):
        raise InputError(
            f"the column {column.name} has integers above 2**53, which are not exact in float64; drop it if it is an "
            "identifier, or convert it to text"
        )
    return numbers


def _key(name: Any, value: Any) -> tuple[type, Any]:
    """Return the key of a category, of which 1 and True are two; raise `InputError` for values that are no categories."""
    try:
        hash(value)
    except TypeError:
        raise InputError(
            f"the column {name} has values of type {type(value).__name__}, which are no categories; drop it"
        ) from None
    return type(value), value
