"""Metrics that compare relevance with a known truth: a mask of relevant entries, or their right relevance."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from whence.errors import InputError
from whence.evaluation.evaluation_batch import ExplainedBatch
from whence.evaluation.metrics.localization import reduce_to_masks


@dataclass(frozen=True)
class TruthPrecision:
    """Share of the n entries of largest |R| that are inside the mask of n entries (Clark et al. 2023, XAI-TRIS)."""

    name: ClassVar[str] = "precision"
    better: ClassVar[str] = "higher"
    needs_masks: ClassVar[bool] = True

    def __call__(self, case: ExplainedBatch) -> Tensor:
        heat, mask = reduce_to_masks(case)
        size, inside = mask.flatten(1).sum(1), mask.flatten(1).gather(1, _descending(heat.abs()))
        top = torch.arange(inside.shape[1]) < size[:, None]
        return (inside & top).sum(1) / size


@dataclass(frozen=True)
class SquaredError:
    """Mean squared difference between relevance and its right values (Lee et al. 2025, XAI-Units)."""

    name: ClassVar[str] = "squared_error"
    better: ClassVar[str] = "lower"
    needs_masks: ClassVar[bool] = True

    def __call__(self, case: ExplainedBatch) -> Tensor:
        truth = case.batch.masks
        if truth is None:
            raise InputError("the squared error needs masks=, the right relevance of each sample")
        return (case.flat() - truth.flatten(1).double()).square().mean(1)


@dataclass(frozen=True)
class AveragePrecision:
    """Area under precision over recall of the time steps, or features, of the mask, ranked by |Σ R| (Ismail et al. 2020).

    Args:
        over: "time" sums R `[N, T, F]` over features and ranks time steps, "features" the other way around.
    """

    over: Literal["time", "features"]

    better: ClassVar[str] = "higher"
    needs_masks: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"average_precision_{self.over}"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        heat, mask = reduce_to_masks(case)
        other = 2 if self.over == "time" else 1
        return average_precision(heat.sum(other).abs(), mask.any(other))


@dataclass(frozen=True)
class EdgeAUC:
    """Area under the ROC curve of the edges inside the mask, among all edges of the graph, ranked by relevance.

    The input is a symmetric adjacency matrix `[N, V, V]`; the relevance of an edge is that of both of its entries.
    """

    name: ClassVar[str] = "edge_auc"
    better: ClassVar[str] = "higher"
    needs_masks: ClassVar[bool] = True

    def __call__(self, case: ExplainedBatch) -> Tensor:
        heat, mask = reduce_to_masks(case)
        edges = case.batch.inputs.parts[0].cpu() > 0
        once = edges.triu(1)
        both = heat + heat.transpose(1, 2)
        return torch.stack([roc_auc(r[at], m[at]) for r, m, at in zip(both, mask, once, strict=True)])


@dataclass(frozen=True)
class PartCorrelation:
    """Correlation of the parts' relevance with the drop of the output when a part is not drawn (Hesse et al. 2023).

    This is the single-deletion protocol of FunnyBirds. A sample whose parts all have the same relevance gets 0.

    Args:
        parts: The part at each pixel of each sample, `[N, H, W]`; −1 for none.
        drops: The drop of the output without each part, `[N, P]`.
    """

    parts: Tensor
    drops: Tensor

    name: ClassVar[str] = "part_correlation"
    better: ClassVar[str] = "higher"

    def __call__(self, case: ExplainedBatch) -> Tensor:
        rows = torch.tensor(list(case.batch.numbers))
        parts, drops = self.parts[rows], self.drops[rows].double()
        heat = next(iter(case.relevance.values())).double().cpu().sum(1)
        sums = torch.stack([(heat * (parts == part)).flatten(1).sum(1) for part in range(drops.shape[1])], 1)
        a, b = (t - t.mean(1, keepdim=True) for t in (sums, drops))
        size = a.norm(dim=1) * b.norm(dim=1)
        return torch.where(size > 0, (a * b).sum(1) / size, 0.0)


def average_precision(scores: Tensor, mask: Tensor) -> Tensor:
    """Return Σ (precision at k) · (whether the k-th entry is in the mask) / |mask| for each row, `[N]`."""
    inside = mask.gather(1, _descending(scores)).double()
    precision = inside.cumsum(1) / torch.arange(1, inside.shape[1] + 1)
    return (precision * inside).sum(1) / inside.sum(1)


def roc_auc(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the probability that an entry inside the mask has a larger score than one outside; ties count half."""
    inside, outside = scores[labels], scores[~labels]
    larger = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
    return larger.mean()


def _descending(scores: Tensor) -> Tensor:
    """Return the order of the entries of each row by descending score; ties are in a fixed random order.

    Equal scores in the order of the entries would favour masks at the beginning.
    """
    flat = scores.flatten(1)
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))
    return shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]
