"""Columns of tables: their names, the categories of their codes, and the features that one-hot columns encode."""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from whence.core.tables import TableFormat
from whence.errors import InputError

Origin = tuple[str, str, str]  # of a column: the feature it encodes, its category, and the category without a column
NO_ORIGIN: Origin = ("", "", "")
BOOLEAN = ("False", "True")
SEPARATOR = "\0"  # between a feature and its category, in the names that one-hot encoders are asked for


@dataclass(frozen=True)
class Column:
    """A column of a table.

    >>> Column("color_red", feature="color", category="red")

    Args:
        name: Name of the column.
        feature: Feature that this column encodes together with others (one-hot); empty for a column of its own.
        category: Category of that feature which this column stands for.
        categories: Categories of a column of codes, by code.
        dropped: Category of the feature that has no column (`OneHotEncoder(drop="first")`).
    """

    name: str
    feature: str = ""
    category: str = ""
    categories: tuple[str, ...] = ()
    dropped: str = ""

    def format(self, value: float) -> str:
        """Return the text of a value: a category for a code, "missing" for NaN, else the number."""
        if value != value:
            return "missing"
        if self.categories and float(value).is_integer() and 0 <= value < len(self.categories):
            return self.categories[int(value)]
        if abs(value) == math.inf or not 1e-3 <= abs(value) < 1e9:
            return f"{value:.4g}"
        return f"{value:,.0f}" if value == int(value) else f"{value:,.{max(0, 3 - int(math.log10(abs(value))))}f}"


def columns_of_frame(table: TableFormat) -> list[Column]:
    """Return the columns of a data frame, with the categories of those that are no numbers."""
    dtypes = table.empty.dtypes.items()
    return [
        Column(str(name), categories=BOOLEAN if dtype.kind == "b" else tuple(map(str, table.categories.get(name, ()))))
        for name, dtype in dtypes
    ]


def columns_of_transformer(transformer: Any) -> list[Column]:
    """Return the output columns of a fitted transformer of scikit-learn, with the features that its encoders expanded."""
    try:
        names = list(map(str, transformer.get_feature_names_out()))
    except Exception as error:  # of NotFittedError, or of a part without names
        raise InputError(
            f"feature_names: {type(transformer).__name__} gives no names of its output columns ({error}); fit it first, or "
            "pass a list of names"
        ) from error
    origins = list(_origins(transformer, getattr(transformer, "feature_names_in_", None)))
    if len(origins) != len(names):
        origins = [NO_ORIGIN] * len(names)
    return [Column(name, f, c, dropped=dropped) for name, (f, c, dropped) in zip(names, origins, strict=True)]


def as_columns(given: Any) -> list[Column]:
    """Return names, or a fitted transformer that knows them, as columns."""
    if isinstance(given, Mapping | str):
        raise InputError(f"feature_names must be a list of names or a fitted transformer, got {type(given).__name__}")
    if hasattr(given, "get_feature_names_out"):
        return columns_of_transformer(given)
    return [name if isinstance(name, Column) else Column(str(name)) for name in given]


def _origins(transformer: Any, names: Sequence[Any] | None) -> Iterator[Origin]:
    """Yield what each output column of a transformer encodes: feature, category and dropped category; nothing for others."""
    if hasattr(transformer, "transformers_"):  # a ColumnTransformer
        for label, part, columns in transformer.transformers_:
            width = transformer.output_indices_[label]
            within = _column_names(columns, transformer)
            found = [] if isinstance(part, str) else list(_origins(part, within))
            count = width.stop - width.start
            yield from found if len(found) == count else [NO_ORIGIN] * count
    elif hasattr(transformer, "steps"):  # a Pipeline, in which an encoder may be the last step that adds columns
        encoders = [step for _, step in transformer.steps if _is_one_hot(step)]
        nested = [step for _, step in transformer.steps if hasattr(step, "transformers_")]
        for step in [*nested, *encoders][:1]:
            yield from _origins(step, names)
    elif _is_one_hot(transformer):
        yield from _one_hot_origins(transformer, names)


def _column_names(columns: Any, transformer: Any) -> list[str] | None:
    """Return the names of the columns that a part of a ColumnTransformer reads, which may be given by their places."""
    known = getattr(transformer, "feature_names_in_", None)
    if isinstance(columns, slice):
        columns = list(range(transformer.n_features_in_))[columns] if not isinstance(columns.start, str) else None
    if columns is None or isinstance(columns, str):
        return None if columns is None else [columns]
    columns = list(columns)
    if columns and isinstance(columns[0], bool):
        columns = [i for i, chosen in enumerate(columns) if chosen]
    return [str(c) if isinstance(c, str) or known is None else str(known[int(c)]) for c in columns]


def _is_one_hot(step: Any) -> bool:
    return hasattr(step, "categories_") and hasattr(step, "feature_name_combiner")


def _one_hot_origins(encoder: Any, names: Sequence[Any] | None) -> Iterator[Origin]:
    asked = copy(encoder)
    asked.feature_name_combiner = lambda feature, category: f"{feature}{SEPARATOR}{category}"
    pairs = [str(name).partition(SEPARATOR) for name in asked.get_feature_names_out(names)]
    dropped, drops = {}, encoder.drop_idx_
    for i, feature in enumerate(dict.fromkeys(feature for feature, _, _ in pairs)):
        if drops is not None and drops[i] is not None and len(drops) == len({f for f, _, _ in pairs}):
            dropped[feature] = str(encoder.categories_[i][drops[i]])
    for feature, _, category in pairs:
        yield feature, category, dropped.get(feature, "")
