"""Estimators of scikit-learn and libraries alike as functions of tables, explained by Shapley values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from whence.core.inputs import Inputs
from whence.errors import InputError
from whence.methods.shapley import Shapley

FUNCTIONS = ("predict_proba", "decision_function", "predict")  # of which the first that an estimator has is explained
BACKGROUND_ROWS, FEWEST_ROWS = 50, 10


@dataclass(frozen=True, eq=False)
class EstimatorFunction:
    """The function that is explained of an estimator: its probabilities, else its decision function, else its predictions.

    >>> EstimatorFunction.of(pipeline).class_names
    ['no', 'yes']

    Args:
        function: The function of tables.
        class_names: Names of its outputs. The decision function of two classes has one output, for the second.
        ambiguous_labels: The labels, where an integer may mean one of them or the index of an output.
    """

    function: Callable[..., Any]
    class_names: Sequence[str]
    ambiguous_labels: Sequence[str] = ()

    @classmethod
    def of(cls, model: Any) -> "EstimatorFunction | None":
        """Return the function of a fitted estimator; None for other models, which are called themselves."""
        if callable(model) or isinstance(model, type) or not (hasattr(model, "fit") and hasattr(model, "predict")):
            return None
        way = next(way for way in FUNCTIONS if hasattr(model, way))
        classes = np.asarray(getattr(model, "classes_", ()), dtype=object)
        of_one_output = classes.ndim == 1 and all(np.ndim(label) == 0 for label in classes)
        labels, function = list(map(str, classes)) if of_one_output else [], getattr(model, way)
        numbered = labels if _reads_as_other_numbers(labels) else ()
        if way == "predict" and len(classes):
            raise InputError(
                f"{type(model).__name__} predicts labels, without probabilities; fit it so that it has predict_proba, or pass "
                "a function of the frame that returns numbers"
            )
        if way == "decision_function" and len(labels) > 2 and _compares_pairs(model):
            raise InputError(
                f"the decision function of {type(model).__name__} compares pairs of classes; fit it with "
                "decision_function_shape='ovr'"
            )
        if way == "decision_function" and labels:
            return cls(function, labels, numbered) if len(labels) > 2 else cls(function, labels[-1:], labels)
        if way == "predict_proba":
            return cls(function, labels, numbered)
        return cls(function, ["prediction" if way == "predict" else "decision function"])


def _reads_as_other_numbers(labels: Sequence[str]) -> bool:
    """Return whether labels are numbers, in any type, but not those of the outputs."""
    try:
        return [float(label) for label in labels] != list(range(len(labels)))
    except ValueError:
        return False


def _compares_pairs(model: Any) -> bool:
    """Return whether an estimator, or the last step of a pipeline, has a decision function for each pair of classes."""
    last = model.steps[-1][1] if hasattr(model, "steps") else model
    return getattr(last, "decision_function_shape", None) == "ovo"


def method_for_arrays(inputs: Inputs) -> Shapley:
    """Return the default method for functions of arrays and data frames: Shapley values against rows of the inputs themselves.

    Raise `InputError` if these are too few to stand for the data.
    """
    count = inputs.batch_size
    if count < FEWEST_ROWS:
        raise InputError(
            f"Shapley values compare each row with others, and the input has {count}; pass "
            "method=whence.Shapley(background=frame), with 20 to 100 rows of the training data"
        )
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:BACKGROUND_ROWS].sort().values
    rows = inputs.of_samples(chosen)
    return Shapley(background=rows.nest)
