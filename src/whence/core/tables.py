"""Data frames as arrays of numbers, and back, for models that take data frames."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whence.errors import InputError


@dataclass(frozen=True, eq=False)
class TableFormat:
    """The columns of a pandas data frame: numbers as they are, everything else as the codes of its categories.

    >>> table = TableFormat.of(frame)
    >>> table.decode(table.encode(frame)).equals(frame)
    True
    """

    empty: Any  # the frame without its rows
    categories: dict[Any, list] = field(default_factory=dict)  # of each column without numbers; extended when encoding

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
                codes = np.where(np.isnan(values), -1, values).astype(int)
                known = np.asarray([*self.categories[name], None], dtype=object)
                columns[name] = type(self.empty[name])(known[codes], dtype=dtype)
            else:
                columns[name] = _cast(values, dtype)
        return type(self.empty)(columns)

    def _codes(self, name: Any, column: Any) -> np.ndarray:
        """Return the number of each entry's category, with new categories appended; NaN for missing entries."""
        known = {category: code for code, category in enumerate(self.categories[name])}
        codes = [
            np.nan if missing else known.setdefault(v, len(known)) for v, missing in zip(column, column.isna(), strict=True)
        ]
        self.categories[name][:] = known
        return np.asarray(codes, dtype=float)


def is_pandas(data: Any) -> bool:
    """Return whether the data is a pandas data frame; pandas is not imported."""
    return type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns")


def _is_numeric(dtype: Any) -> bool:
    return getattr(dtype, "kind", "O") in "iufb" and str(dtype) != "category"


def _numbers(column: Any) -> np.ndarray:
    return column.to_numpy(dtype=float, na_value=np.nan)


def _cast(values: np.ndarray, dtype: Any) -> Any:
    """Return numbers in a column's dtype where that changes none of them: a mean of integers stays a fraction."""
    if dtype.kind == "f":
        return values.astype(str(dtype).lower())
    whole = np.isfinite(values).all() and (values == np.round(values)).all()
    as_bool = dtype.kind == "b" and np.isin(values, (0, 1)).all()
    return values.astype(str(dtype).lower()) if as_bool or (dtype.kind in "iu" and whole) else values
