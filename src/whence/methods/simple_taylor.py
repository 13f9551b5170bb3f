"""Simple Taylor decomposition: the first-order terms of the Taylor expansion of the output at a root."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from whence.core.explanation import Explanation
from whence.errors import RuleError, value_repr
from whence.lrp.engine.conservation import Conservation
from whence.methods import feature_masks
from whence.methods.forward_backward import (
    Task,
    explaining_rows_together,
    make_explanation,
    reject_layers,
    sum_relevance,
    target_values,
)
from whence.methods.taylor_roots import NearestRoot, ScalarFunction

KINK_NOTE = "root on a kink: the gradient there is the one-sided limit from the side of the sample"
SLOPE_TOLERANCE = 1e-2  # relative difference that gradients at and next to a root of a smooth function may have


@dataclass(frozen=True, eq=False)
class SimpleTaylor:
    """Simple Taylor decomposition, R_i = (x_i − x̃_i) · ∂f/∂x_i(x̃) at a root f(x̃) = 0 (Montavon et al. 2018, eq. 5).

    >>> e = whence.explain(model, x, target=3, method=whence.SimpleTaylor())                 # at the nearest root
    >>> e.root                                     # x̃, like x
    >>> e.conservation.absorbed                    # the terms of second and higher order, [N]
    >>> whence.SimpleTaylor("origin"), whence.SimpleTaylor(root), whence.SimpleTaylor(whence.roots.NearestRoot(low, high))

    `conservation.baseline` is f(x̃), which may differ from 0 at a root given as a number or a tensor.

    Args:
        root: "nearest"; "origin" for the limit x̃ = εx, ε → 0, which is gradient × input where f(tx) = t f(x); a number or a
            tensor like the input; or a search strategy: `whence.roots.NearestRoot`, optionally within pixel bounds,
            `whence.roots.RootTowards` given samples, or `whence.roots.RootOnManifold` of a decoder.
    Raises:
        RuleError: `root` is a string other than "nearest" and "origin".
    """

    root: Any = "nearest"

    name: ClassVar[str] = "simple_taylor"

    def __post_init__(self):
        if isinstance(self.root, str) and self.root not in ("nearest", "origin"):
            raise RuleError(
                f"root={value_repr(self.root)}; choose 'nearest', 'origin', a number, a tensor, whence.roots.NearestRoot, "
                "RootTowards or "
                "RootOnManifold"
            )

    def explanations(self, task: Task) -> Iterator[Explanation]:
        reject_layers(self, task)
        answers = target_values(task)
        task = explaining_rows_together(task, [output for output, _ in answers])
        quiet = replace(task, progress=False)
        for output, target in answers:
            function = ScalarFunction(quiet, target)
            root = self._root(function)
            at_root, slope, on_kink = _slope(function, root)
            relevance = (function.x - root) * slope
            scores = function.parts(relevance)
            remainder = output - at_root - sum_relevance(scores, len(output))
            account = Conservation(
                output, sum_relevance(scores, len(output)), remainder, {"second-order terms": remainder}, at_root
            )
            found = task.inputs.together(function.parts(root))
            yield make_explanation(self, task, output, target, scores, account, root=found, note=KINK_NOTE if on_kink else "")

    def _root(self, function: ScalarFunction) -> Tensor:
        inputs = function.task.inputs
        if isinstance(self.root, str) and self.root == "origin":
            return torch.zeros_like(function.x)
        if isinstance(self.root, str):
            return NearestRoot().near(function)
        if hasattr(self.root, "near"):
            return self.root.near(function)
        given = feature_masks.baselines(self.root, inputs)
        return function.row({i: given[i].expand_as(inputs.parts[i]) for i in inputs.explained})


def _slope(function: ScalarFunction, root: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return f and its gradient at the root, and whether any root is on a kink.

    On a kink the gradient is the one-sided limit from the side of the sample, since ReLU is not differentiable at 0.
    """
    at_root, slope = function.slope(root)
    beside = function.slope(root + (function.x - root) * torch.finfo(root.dtype).eps ** 0.5)[1]
    kinks = (beside - slope).norm(dim=1) > SLOPE_TOLERANCE * torch.maximum(beside.norm(dim=1), slope.norm(dim=1))
    return at_root, torch.where(kinks[:, None], beside, slope), bool(kinks.any())
