"""Columns of tables: their names, the categories of their codes, and the features that one-hot columns encode."""

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    found = []
    for name, dtype in table.empty.dtypes.items():
        known = tuple(map(str, table.categories[name])) if name in table.categories else BOOLEAN if dtype.kind == "b" else ()
        found.append(Column(str(name), categories=known))
    return found


def columns_of_transformer(transformer: Any) -> list[Column]:
    """Return the output columns of a fitted transformer of scikit-learn, with the features that its encoders expanded."""
    try:
        names = list(map(str, transformer.get_feature_names_out()))
        origins = _origins(transformer)
    except Exception as error:  # of NotFittedError, or of a part without names
        raise InputError(
            f"feature_names: {type(transformer).__name__} gives no names of its output columns ({error}); fit it first, or "
            "pass a list of names"
        ) from error
    if len(origins) != len(names):
        origins = [NO_ORIGIN] * len(names)
    return [Column(name, f, c, dropped=dropped) for name, (f, c, dropped) in zip(names, origins, strict=True)]


def as_columns(given: Any, of_frame: Sequence[str] | None = None) -> list[Column]:
    """Return names, or a fitted transformer that knows them, as columns.

    Those of a transformer are put in the order of a frame's columns, which must have the same names.
    """
    if isinstance(given, Mapping | str):
        raise InputError(f"feature_names must be a list of names or a fitted transformer, got {type(given).__name__}")
    if not hasattr(given, "get_feature_names_out"):
        return [name if isinstance(name, Column) else Column(str(name)) for name in given]
    columns = columns_of_transformer(given)
    if of_frame is None:
        return columns
    by_name = {column.name: column for column in columns}
    if by_name.keys() != set(of_frame):
        raise InputError(
            f"feature_names: {type(given).__name__} has the columns {', '.join(by_name)}, the frame {', '.join(of_frame)}; "
            "pass the transformer that made the frame, or omit feature_names"
        )
    return [by_name[name] for name in of_frame]


def _origins(transformer: Any, names: Sequence[str] | None = None) -> list[Origin]:
    """Return what each output column of a transformer encodes: feature, category and dropped category; nothing for others.

    `names` are those of the columns that it reads, for parts that know none.
    """
    names = _names_read_by(transformer, names)
    if hasattr(transformer, "transformers_"):  # a ColumnTransformer
        return _origins_of_parts(transformer, names)
    if hasattr(transformer, "steps"):  # a Pipeline
        return _origins_of_steps(transformer, names)
    if hasattr(transformer, "categories_") and hasattr(transformer, "feature_name_combiner"):  # a OneHotEncoder
        return _one_hot_origins(transformer, names)
    return []


def _origins_of_parts(transformer: Any, names: Sequence[str] | None) -> list[Origin]:
    found = [NO_ORIGIN] * len(transformer.get_feature_names_out())
    for label, part, columns in transformer.transformers_:
        width = transformer.output_indices_[label]
        within = [] if isinstance(part, str) else _origins(part, _chosen_names(columns, names))
        if len(within) != width.stop - width.start:
            continue
        taken = {feature for feature, _, _ in found if feature}
        found[width] = [(f"{label}: {f}" if f in taken else f, category, dropped) for f, category, dropped in within]
    return found


def _origins_of_steps(pipeline: Any, names: Sequence[str] | None) -> list[Origin]:
    """Return the origins by the last step that encodes, for the columns that later steps leave as they are, by name."""
    steps = [step for _, step in pipeline.steps if step is not None and not isinstance(step, str)]
    for i, step in reversed(list(enumerate(steps))):
        found = _origins(step, names if i == 0 else None)
        if any(feature for feature, _, _ in found):
            encoded = dict(zip(map(str, step.get_feature_names_out()), found, strict=True))
            last = pipeline.get_feature_names_out() if len(steps) > i + 1 else list(encoded)
            return [encoded.get(str(name), NO_ORIGIN) for name in last]
    return []


def _names_read_by(transformer: Any, names: Sequence[str] | None) -> list[str] | None:
    """Return the names of the columns that a transformer reads: its own, or else those given if they are as many."""
    own = getattr(transformer, "feature_names_in_", None)
    if own is not None:
        return list(map(str, own))
    return list(names) if names is not None and len(names) == getattr(transformer, "n_features_in_", len(names)) else None


def _chosen_names(columns: Any, names: Sequence[str] | None) -> list[str] | None:
    """Return the names of the columns that a part reads, which may be given by names, places or truth values."""
    if isinstance(columns, str):
        return [columns]
    if isinstance(columns, slice):
        return None if names is None or isinstance(columns.start, str) else list(names)[columns]
    chosen = np.atleast_1d(np.asarray(columns))
    if chosen.dtype.kind in "OU":
        return list(map(str, chosen))
    places = np.flatnonzero(chosen) if chosen.dtype.kind == "b" else chosen
    return [str(i) if names is None else names[int(i)] for i in places]


def _one_hot_origins(encoder: Any, names: Sequence[str] | None) -> list[Origin]:
    asked = copy(encoder)
    asked.feature_name_combiner = lambda feature, category: f"{feature}{SEPARATOR}{category}"
    pairs = [str(name).partition(SEPARATOR) for name in asked.get_feature_names_out(names)]
    dropped, drops = {}, encoder.drop_idx_
    features = list(dict.fromkeys(feature for feature, _, _ in pairs))
    for i, feature in enumerate(features):
        if drops is not None and len(drops) == len(features) and drops[i] is not None:
            unknown = "" if encoder.handle_unknown == "error" else " or unknown"
            dropped[feature] = f"{encoder.categories_[i][drops[i]]}{unknown}"
    return [(feature, category, dropped.get(feature, "")) for feature, _, category in pairs]
