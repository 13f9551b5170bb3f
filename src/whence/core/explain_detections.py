"""All boxes that a detector finds in a photo, each explained, in one result."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from whence.core.argument_checks import check_arguments
from whence.core.class_indices import class_indices
from whence.core.detection import Detection
from whence.core.detector_outputs import read_detections
from whence.core.explain import explain_targets
from whence.core.explanation import Explanation
from whence.core.files import Rows
from whence.core.inputs import Inputs, check_model
from whence.core.progress import Progress
from whence.core.result import Result
from whence.core.texts import TextModel
from whence.core.trees import Tree, short_repr
from whence.errors import InputError, TargetError, value_repr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from whence.core.explainer import Names
    from whence.methods.registry import Method


@dataclass(frozen=True, repr=False, eq=False)
class DetectionSet(Result):
    """Explanations of the boxes that a detector finds in a photo, the best first.

    >>> boxes = whence.explain_detections(detector, photo)
    >>> boxes[0].relevance
    >>> boxes.save("boxes.png")             # the photo with all boxes, and a heatmap for each

    Args:
        explanations: An `Explanation` for each box.
    """

    explanations: Sequence[Explanation]

    def __len__(self) -> int:
        return len(self.explanations)

    def __getitem__(self, number: int) -> Explanation:
        return self.explanations[number]

    def __iter__(self) -> Iterator[Explanation]:
        return iter(self.explanations)

    def __repr__(self) -> str:
        lines = [f"  {i}: {e.target_names()[0]}" for i, e in enumerate(self)]
        return "\n".join([f"{len(self)} detections, explained by {short_repr(self[0].method)}", *lines])

    @property
    def table(self) -> Rows:
        """Rows, one for each box: its class, score, corners in pixels, the explained output and the sum of relevance."""
        rows = []
        for number, e in enumerate(self):
            corners = zip(("left", "top", "right", "bottom"), e.target.box[0].tolist(), strict=True)
            rows.append(
                {"box": number, "label": e.class_name(int(e.target.labels[0])), "score": float(e.target.scores[0])}
                | dict(corners)
                | {"output": float(e.output[0]), "relevance": float(e.conservation.relevance[0])}
            )
        return rows

    def figure(self) -> "Figure":
        """Return the photo with all boxes, numbered as in the set, and below it a heatmap for each."""
        from whence.core.explanation_figures import detection_set_figure

        return detection_set_figure(self.explanations)


@check_arguments
def explain_detections(
    model: Callable[..., Any],
    inputs: Tree,
    *,
    score: float = 0.5,
    label: Any = None,
    limit: int = 10,
    no_object: bool | None = None,
    method: "Method | str | None" = None,
    class_names: "Names" = (),
    progress: Progress = True,
) -> DetectionSet:
    """Explain all boxes that a detector finds in a photo, by one forward pass and one backward pass for each.

    >>> boxes = whence.explain_detections(detector, photo, score=0.7, class_names=names)
    >>> boxes.save("boxes.png")

    Args:
        model: A detector, as for `whence.Detection`.
        inputs: One photo `[1, 3, H, W]`, or a tuple or dict of inputs of one photo.
        score: The least score of a box.
        label: Index or name of the only class whose boxes are explained; None for all.
        limit: The largest number of boxes, those of the highest scores.
        no_object: Whether the last logit means no object, as in `whence.Detection`.
        method: A method or its short name, as for `whence.explain`.
        class_names: Names of the classes.
        progress: Whether to show a progress bar, or a function that is called with (done, total) instead.

    Returns:
        A `DetectionSet`, the best box first.

    Raises:
        InputError: There are several photos.
        TargetError: The detector finds no box of that score, or its outputs have no boxes.
    """
    texts = TextModel.of(model, None, class_names)
    check_model(texts.model)
    given = Inputs.of(inputs).beside(texts.model).detached()
    if given.batch_size != 1:
        raise InputError(f"got {given.batch_size} photos; pass one at a time, as photos[:1], or whence.Detection() for a batch")
    if not isinstance(limit, int) or limit < 1:
        raise TargetError(f"limit={value_repr(limit)}; expected at least 1, the number of boxes to explain")
    wanted = texts.target(Detection(0, label, score, no_object=no_object))
    with torch.no_grad():
        (photo,) = read_detections(given.run(texts.model), given, no_object)
    index = None if wanted.label is None else int(class_indices(wanted.label, 1, "label"))
    count = len(wanted.ranked(photo, index))
    if not count:
        of_label = replace(wanted, score=0.0).ranked(photo, index)
        best = f"the best has {float(photo.scores[of_label[0]]):.3g}; lower score=" if of_label else "it finds none at all"
        which = "" if label is None else f" of class {label}"
        raise TargetError(f"the detector finds no box{which} with a score of at least {score:g}: {best}")
    targets = [Detection(number, wanted.label, score, no_object=no_object) for number in range(min(count, limit))]
    found = explain_targets(model, inputs, targets, method=method, class_names=class_names, progress=progress)
    return DetectionSet(tuple(found))
