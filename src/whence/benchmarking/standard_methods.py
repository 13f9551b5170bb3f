"""The methods of the benchmark: those of whence, random relevance, and an edge filter that never looks at the network."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.benchmarking.ground_truth_task import GroundTruthTask
from whence.errors import RuleError
from whence.evaluation.random_baseline import Random
from whence.methods.feature_masks import patches
from whence.methods.integrated_gradients import ExpectedGradients
from whence.methods.lrp import LRP
from whence.methods.perturbation import FeatureAblation
from whence.methods.registry import resolve_method
from whence.methods.shapley import Shapley

LARGE = 400  # number of entries from which on those of a picture are removed in patches
SHAPLEY_BUDGET = 500
CELLS_PER_SIDE = 8
LAPLACE = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])


def ablation(task: GroundTruthTask) -> Any:
    return FeatureAblation(task.neutral, feature_mask=feature_groups(task))


def shapley(task: GroundTruthTask) -> Any:
    groups = feature_groups(task)
    count = task.x[0].numel() if groups is None else int(groups.max()) + 1
    return Shapley(baselines=task.neutral, feature_mask=groups, budget=max(SHAPLEY_BUDGET, 3 * count))


def expected_gradients(task: GroundTruthTask) -> Any:
    return ExpectedGradients(task.background)


def lrp_from_mean(task: GroundTruthTask) -> Any:
    """Return LRP that is measured from the mean of the training data."""
    if not task.background.is_floating_point():
        raise RuleError("token ids have no mean")
    return LRP(baseline=task.background.mean(0, keepdim=True))


def edge_filter(task: GroundTruthTask) -> Any:
    """Return the magnitude of the Laplacian of the picture, which does not depend on the network."""
    if task.kind != "picture":
        raise RuleError("an edge filter needs pictures")
    return lambda model, x, target: laplacian(x)


def laplacian(x: Tensor) -> Tensor:
    """Return |Laplacian| of each channel, `[N, C, H, W]`."""
    channels = x.shape[1]
    kernel = LAPLACE.to(x).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels).abs()


def feature_groups(task: GroundTruthTask) -> Tensor | None:
    """Return patches for large pictures, None for single entries."""
    if task.kind != "picture" or task.x[0].numel() < LARGE:
        return None
    return patches(task.x[:1], -(-task.x.shape[-1] // CELLS_PER_SIDE))


MethodFactory = Callable[[GroundTruthTask], Any]  # makes the method, or function of another library, for a task

BASELINES: Mapping[str, MethodFactory] = {"random": lambda task: Random(), "edge filter": edge_filter}
STANDARD_METHODS: Mapping[str, MethodFactory] = {
    **{
        name: lambda task, name=name: resolve_method(name)
        for name in (
            "lrp", "gradient_times_input", "sensitivity", "integrated_gradients", "smooth_grad", "guided_backprop", "grad_cam"
        )
    },
    "lrp_from_mean": lrp_from_mean,
    "expected_gradients": expected_gradients,
    "feature_ablation": ablation,
    "shapley": shapley,
}  # fmt: skip
