"""Estimators of scikit-learn and libraries alike as functions of tables, explained by Shapley values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
    """

    function: Callable[..., Any]
    class_names: Sequence[str]

    @classmethod
    def of(cls, model: Any) -> "EstimatorFunction | None":
        """Return the function of a fitted estimator; None for other models, which are called themselves."""
        if callable(model) or isinstance(model, type) or not (hasattr(model, "fit") and hasattr(model, "predict")):
            return None
        way = next(way for way in FUNCTIONS if hasattr(model, way))
        labels = list(map(str, getattr(model, "classes_", ())))
        function = getattr(model, way)
        if way == "predict_proba":
            return cls(function, labels)
        if labels and way == "predict":
            raise InputError(
                f"{type(model).__name__} predicts labels, without probabilities; fit a model with predict_proba "
                "(sklearn.calibration.CalibratedClassifierCV around it)"
            )
        if way == "decision_function" and labels:
            return cls(function, labels if len(labels) > 2 else [f"decision for {labels[-1]}"])
        return cls(function, ["prediction" if way == "predict" else "decision function"])


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
