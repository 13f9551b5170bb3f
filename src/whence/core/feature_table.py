"""The features of table rows: names, values and relevance, with the columns of a group as one feature."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whence.core.columns import BOOLEAN, Column
from whence.core.explanation_data import ExplanationData
from whence.core.trees import named_leaves
from whence.errors import InputError

SEPARATORS = "_=-.: "  # in names of columns
MAX_VALUES = 3  # of a group of columns that are written beside its name


@dataclass(frozen=True, eq=False)
class TableFeature:
    """A feature of table rows: its columns, their values `[N, columns]`, and whether they are one-hot."""

    columns: Sequence[Column]
    values: Tensor
    one_hot: bool

    def label(self, row: int) -> str:
        """Return the value in a row as text: the category that one-hot columns encode, or the values of few columns."""
        values = self.values[row].tolist()
        if self.one_hot:
            active = [c for c, value in zip(self.columns, values, strict=True) if value]
            if not active:
                return self.columns[0].dropped or "none of these"
            start = _common_start([column.name for column in self.columns]) if len(self.columns) > 1 else ""
            return active[0].category or active[0].name.removeprefix(start)
        if self.columns[0].feature or len(self.columns) > MAX_VALUES:
            return ""
        return ", ".join(c.format(value) for c, value in zip(self.columns, values, strict=True))

    def numbers(self) -> Tensor:
        """Return the values as numbers, `[N]`; NaN where they are of several columns or of more than two categories."""
        column = self.columns[0]
        is_number = len(self.columns) == 1 and not column.feature and column.categories in ((), BOOLEAN)
        return self.values[:, 0] if is_number else torch.full_like(self.values[:, 0], torch.nan)


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Names, values and relevance of the features of table rows.

    >>> FeatureTable.of(whence.explain(model, frame)).names
    ['age', 'income', 'color']

    Args:
        names: Names of the features.
        relevance: Relevance, `[N, features]`; the sum over the columns of a feature.
        values: Values, `[N, features]`; NaN where a feature has several columns, or more than two categories.
        features: The columns and values of each feature.
    """

    names: Sequence[str]
    relevance: Tensor
    values: Tensor
    features: Sequence[TableFeature]

    def __len__(self) -> int:
        return len(self.relevance)

    @classmethod
    def of(cls, e: ExplanationData) -> "FeatureTable":
        """Return the features of an explanation's vectors, `[N]` or `[N, columns]`; raise `InputError` if there are none."""
        columns, x, relevance, mask = _columns(e)
        if not columns:
            shapes = ", ".join(str(list(t.shape)) for t in named_leaves(e.relevance).values())
            raise InputError(f"expected an explanation of table rows [N, columns], got relevance of shape {shapes}")
        if not has_common_features(e):
            raise InputError("the feature_mask differs between the rows; take one of them, such as explanation[0]")
        groups = _groups(columns, None if mask is None else mask[0])
        once = slice(None) if mask is None else slice(1)  # each column of a masked feature has the feature's relevance
        amounts = [relevance[:, g[once]].sum(1) for g in groups]
        parts = [([columns[i] for i in g], x[:, g]) for g in groups]
        features = [TableFeature(of, values, _is_one_hot(of, values)) for of, values in parts]
        names = _unique([_group_name(of) for of, _ in parts], [[column.name for column in of] for of, _ in parts])
        return cls(names, torch.stack(amounts, 1), torch.stack([f.numbers() for f in features], 1), features)

    def labels(self, row: int) -> list[str]:
        """Return the values of a row as texts; empty where a feature has no single value."""
        return [feature.label(row) for feature in self.features]

    def value(self, row: int, feature: int) -> float | str:
        """Return the value of a feature in a row: a number, or the name of a category; empty if it has no single value."""
        number = float(self.values[row, feature])
        return self.features[feature].label(row) if number != number else number

    def captions(self, row: int) -> list[str]:
        """Return the features of a row with their values: "age = 62"."""
        return [f"{name} = {label}" if label else name for name, label in zip(self.names, self.labels(row), strict=True)]

    def order(self) -> list[int]:
        """Return the features by their mean absolute relevance, largest first."""
        return self.relevance.abs().mean(0).argsort(descending=True, stable=True).tolist()

    def number(self, feature: str | int) -> int:
        """Return the number of a feature that is given by its name or number; raise `InputError` if there is none."""
        if isinstance(feature, str) and list(self.names).count(feature) == 1:
            return list(self.names).index(feature)
        if isinstance(feature, int) and not isinstance(feature, bool) and -len(self.names) <= feature < len(self.names):
            return feature % len(self.names)
        several = "; several have this name, pass its number" if feature in self.names else ""
        raise InputError(f"no feature {feature!r}; choose one of {', '.join(self.names)}{several}")


def has_common_features(e: ExplanationData) -> bool:
    """Return whether a feature of the mask is the same columns in all rows."""
    return all(len(mask) == 1 or bool((mask == mask[:1]).all()) for mask in named_leaves(e.feature_mask).values())


def has_features(e: ExplanationData) -> bool:
    """Return whether an explanation is of table rows alone, `[N, columns]`."""
    parts = named_leaves(e.relevance)
    return bool(parts) and e.time_axis is None and all(_is_vector(e, name) for name in parts)


def _is_vector(e: ExplanationData, name: str) -> bool:
    t = named_leaves(e.relevance)[name]
    return t.dim() in (1, 2) and len(t) == len(e) and name not in e.tokens and name not in e.patches


def _columns(e: ExplanationData) -> tuple[list[Column], Tensor, Tensor, Tensor | None]:
    """Return the columns of all vectors of an explanation, and their values, relevance and feature numbers, side by side."""
    relevance, inputs, masks = named_leaves(e.relevance), named_leaves(e.inputs), named_leaves(e.feature_mask)
    chosen = [name for name in relevance if _is_vector(e, name)]
    columns = [column for name in chosen for column in _columns_of_input(e, name, len(chosen) > 1)]

    def beside(parts: dict[str, Tensor]) -> Tensor:
        return torch.cat([parts[name].detach().double().cpu().reshape(len(parts[name]), -1) for name in chosen], 1)

    if not chosen:
        return [], torch.zeros(0), torch.zeros(0), None
    mask = None
    if set(chosen) <= masks.keys():
        parts = [masks[name].cpu().reshape(len(masks[name]), -1) for name in chosen]
        mask = torch.cat([part.expand(max(map(len, parts)), -1) for part in parts], 1)
    return columns, beside(inputs), beside(relevance), mask


def _columns_of_input(e: ExplanationData, name: str, several: bool) -> list[Column]:
    """Return the columns of one input; of several inputs, with the input's name before them."""
    t = named_leaves(e.relevance)[name]
    count = 1 if t.dim() == 1 else t.shape[1]
    known = list(e.columns.get(name, ())) or [Column(one) for one in e.feature_names.get(name, ())]
    columns = known or [Column(name if count == 1 and name else f"feature {i}") for i in range(count)]
    if not several or (count == 1 and not known):
        return columns
    return [replace(c, name=f"{name}: {c.name}", feature=c.feature and f"{name}: {c.feature}") for c in columns]


def _groups(columns: Sequence[Column], mask: Tensor | None) -> list[list[int]]:
    """Return the numbers of the columns of each feature: those with the same feature number, or encoded feature."""
    keys: list[object] = [c.feature or i for i, c in enumerate(columns)] if mask is None else mask.tolist()
    groups: dict[object, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return list(groups.values()) if mask is None else [groups[key] for key in sorted(groups)]  # type: ignore[type-var]


def _group_name(columns: Sequence[Column]) -> str:
    """Return the name of a feature: of its column, of what its columns encode, or what their names begin with."""
    names = [column.name for column in columns]
    features = {column.feature for column in columns}
    if len(names) == 1 and not columns[0].feature:
        return names[0]
    if len(features) == 1 and columns[0].feature:
        return columns[0].feature
    return _common_start(names).rstrip(SEPARATORS) or ", ".join(names)


def _common_start(names: Sequence[str]) -> str:
    """Return what all names begin with, up to a separator: "color_" of "color_red" and "color_green"."""
    same = next((i for i, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), min(map(len, names)))
    length = max((i + 1 for i, letter in enumerate(names[0][:same]) if letter in SEPARATORS), default=0)
    return names[0][:length]


def _unique(names: list[str], columns: Sequence[Sequence[str]]) -> list[str]:
    """Return the names of features, of which those that are the same have all their columns."""
    return [
        ", ".join(own) if names.count(name) > 1 and len(own) > 1 else name for name, own in zip(names, columns, strict=True)
    ]


def _is_one_hot(columns: Sequence[Column], values: Tensor) -> bool:
    """Return whether the columns of a feature are the categories of one variable: 0 or 1, and at most one of them 1."""
    zero_or_one = bool(((values == 0) | (values == 1)).all()) and bool((values.sum(1) <= 1).all())
    if columns[0].feature:
        return zero_or_one and len({column.feature for column in columns}) == 1
    return zero_or_one and len(columns) > 1 and bool(_common_start([column.name for column in columns]))
