"""Explanations as `shap.Explanation`, for the plots of SHAP."""

from typing import TYPE_CHECKING, Any

import numpy as np

from whence.core.explanation import Explanation
from whence.core.feature_table import FeatureTable, has_features
from whence.core.input_layouts import as_picture
from whence.core.optional_packages import import_package
from whence.core.trees import named_leaves
from whence.errors import InputError

if TYPE_CHECKING:
    import shap


def to_shap(explanation: Explanation) -> "shap.Explanation":
    """Return an explanation as a `shap.Explanation`: values, base values, data and names.

    >>> values = whence.adapters.to_shap(whence.explain(pipeline, frame, "yes"))
    >>> shap.plots.beeswarm(values), shap.plots.waterfall(values[0])

    Base values are the outputs minus the relevance, so that SHAP's plots end at the output: the output at the baseline, or for
    LRP the share that biases absorbed.

    Args:
        explanation: Explanation of table rows, of texts with tokens, or of one tensor; images get their channels last.

    Returns:
        A `shap.Explanation` with a row for each sample.

    Raises:
        InputError: The explanation is of several inputs that are not vectors.
        MissingPackageError: shap is not installed.
    """
    shap = import_package("shap")
    output = explanation.conservation.explained.detach().double().cpu().numpy()
    base = output - explanation.conservation.relevance.detach().double().cpu().numpy()
    names = list(explanation.target_names())
    if has_features(explanation):
        features = FeatureTable.of(explanation)
        data = np.array([[features.value(n, i) for i in range(len(features.names))] for n in range(len(features))], object)
        numeric = not any(isinstance(value, str) for value in data.flat)
        return shap.Explanation(
            features.relevance.numpy(), base, data.astype(float) if numeric else data,
            feature_names=list(features.names), output_names=names[0] if len(set(names)) == 1 else None,
        )  # fmt: skip
    name, *others = named_leaves(explanation.relevance)
    if others:
        raise InputError(f"expected an explanation of one input, got {', '.join(named_leaves(explanation.relevance))}")
    relevance = explanation.entry_relevance(name)
    if name in explanation.tokens:
        rows = [np.array(words, object) for words in explanation.tokens[name]]
        values = [row.detach().double().cpu().numpy() for row in relevance]
        return shap.Explanation(_stacked(values), base, _stacked(rows), feature_names=_stacked(rows))
    x = named_leaves(explanation.inputs)[name]
    both = (np.stack([_channels_last(explanation, name, sample) for sample in t]) for t in (relevance, x))
    values, data = both
    return shap.Explanation(values, base, data)


def _channels_last(e: Explanation, name: str, sample: Any) -> np.ndarray:
    picture = as_picture(e, name, sample.detach().double().cpu())
    return (picture.movedim(0, -1) if picture.dim() == 3 else picture).numpy()


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    """Return rows of several lengths as an array of objects, rows of one length as a matrix."""
    if len({len(row) for row in rows}) == 1:
        return np.stack(rows)
    found = np.empty(len(rows), object)
    found[:] = rows
    return found
