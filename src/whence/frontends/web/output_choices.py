"""Outputs of a served model for an input, scores of classes, boxes or a map, and the targets that the page can choose."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from whence.core.detection import Detection
from whence.core.detector_outputs import read_detections
from whence.core.estimators import EstimatorFunction
from whence.core.inputs import Inputs
from whence.core.output_maps import read_map
from whence.core.region import Region
from whence.errors import TargetError
from whence.frontends.web.schemas import ExplainRequest
from whence.lrp.engine.model_outputs import logits_of
from whence.models.loaded_model import LoadedModel

BOXES_SHOWN = CLASSES_SHOWN = 10
LEAST_SCORE = 0.05


@dataclass(frozen=True)
class OutputChoices:
    """A model's outputs for one input.

    Args:
        kind: "classes", "number" (of a regression), "boxes" or "map".
        choices: What the page lists: its index, name and share, for a number its value, and for boxes the corners.
    """

    kind: Literal["classes", "number", "boxes", "map"]
    choices: list[dict[str, Any]]

    @classmethod
    def of(cls, loaded: LoadedModel, x: Any) -> "OutputChoices":
        """Run the model once."""
        inputs = Inputs.of(x).detached()
        estimator = EstimatorFunction.of(loaded.model)
        with torch.no_grad():
            outputs = inputs.run(loaded.model if estimator is None else estimator.function)
        if (value := _single_number(outputs)) is not None:
            name = str(loaded.class_names[0]) if len(loaded.class_names) else "output"
            return cls("number", [{"index": 0, "name": name, "value": value}])
        if estimator is not None and not is_probability_function(loaded.model):  # of numbers without a common scale
            values = torch.as_tensor(outputs)[0].tolist()
            numbers = [{"index": i, "name": loaded.class_name(i), "value": value} for i, value in enumerate(values)]
            return cls("classes", sorted(numbers, key=lambda number: -number["value"])[:CLASSES_SHOWN])
        if (shares := class_probabilities(loaded, outputs)) is not None:
            return cls("classes", _likeliest(loaded, shares[0]))
        try:
            (photo,) = read_detections(outputs, inputs)
        except TargetError:
            shares = _predicted_shares(read_map(outputs, inputs).scores)
            return cls("map", [choice for choice in _likeliest(loaded, shares) if choice["share"] > 0])
        order = Detection(score=LEAST_SCORE).ranked(photo, None)[:BOXES_SHOWN]
        return cls("boxes", [
            {"index": number, "name": loaded.class_name(int(photo.labels[k])), "share": float(photo.scores[k]),
             "box": photo.boxes[k].tolist()} for number, k in enumerate(order)
        ])  # fmt: skip

    def target(self, question: ExplainRequest, loaded: LoadedModel) -> Detection | Region:
        """Return the box or region that a request explains."""
        if question.rather_than is not None:
            raise TargetError("boxes and regions are explained alone; choose (nothing) for 'rather than'")
        if self.kind == "map":
            if question.point is not None and question.box is not None:
                raise TargetError("give a point or a box, not both")
            return Region(loaded.class_index(question.target), point=question.point, box=question.box)
        if not self.choices:
            raise TargetError(f"the detector finds no box with a score of at least {LEAST_SCORE}")
        return Detection(0 if question.target is None else int(question.target), score=LEAST_SCORE)


def class_probabilities(loaded: LoadedModel, outputs: Any) -> Tensor | None:
    """Return the probability of each class, or next token, `[N, C]`; None if the outputs are no scores of classes."""
    if is_probability_function(loaded.model):
        return torch.as_tensor(outputs).float()
    logits = logits_of(outputs)
    if isinstance(logits, Tensor) and logits.dim() == 3 and loaded.text is not None:
        logits = logits[:, -1]
    return logits.softmax(1) if isinstance(logits, Tensor) and logits.dim() == 2 else None


def is_probability_function(model: Any) -> bool:
    """Return whether a model is an estimator whose outputs are probabilities already."""
    return EstimatorFunction.of(model) is not None and hasattr(model, "predict_proba")


def _single_number(outputs: Any) -> float | None:
    """Return the output of a model of one number; None for other models."""
    outputs = torch.as_tensor(outputs) if not isinstance(outputs, Tensor | dict | tuple | list) else outputs
    outputs = logits_of(outputs)
    return float(outputs) if isinstance(outputs, Tensor) and outputs.dim() <= 2 and outputs.numel() == 1 else None


def _likeliest(loaded: LoadedModel, shares: Tensor) -> list[dict[str, Any]]:
    found = shares.topk(min(CLASSES_SHOWN, len(shares)))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [{"index": i, "name": loaded.class_name(i), "share": share} for i, share in pairs]


def _predicted_shares(scores: Tensor) -> Tensor:
    """Return the share of places where each class is predicted, `[C]`."""
    return torch.bincount(scores[0].argmax(0).flatten(), minlength=scores.shape[1]) / scores[0, 0].numel()
