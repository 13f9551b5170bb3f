"""`subspaces`: directions of a layer that carry relevance (PRCA), and subspaces with distinct relevance (DRSA)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.channel_layout import channel_dim
from whence.core.conditions import Directions
from whence.core.inputs import Inputs, check_model
from whence.core.progress import Progress, progress
from whence.core.result import Result
from whence.core.targets import Target, select_target_samples
from whence.data.batches import batches, is_shuffled, require_all
from whence.errors import InputError, ModelError, RuleError, TargetError, count_noun, value_repr
from whence.lrp.engine.prepared_model import PreparedModel
from whence.mechanistic.channel_relevance import resolve_layer
from whence.methods.forward_backward import Task
from whence.methods.lrp import LRP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACES_PER_SAMPLE = 20  # random positions used of each sample
N_STEPS = 500


@dataclass(frozen=True, repr=False, eq=False)
class Subspaces(Result):
    """Orthogonal subspaces of a layer's activations.

    >>> found = whence.subspaces(model, (x, y), "features.10", target=3, algorithm="drsa", n_subspaces=4, n_dimensions=2)
    >>> whence.explain(model, x, 3, through=found.through(0))           # the relevance through the first
    >>> whence.prototype(model, whence.objectives.Direction("features.10", found.direction(0)), shape=(3, 224, 224))

    Args:
        layer: The layer.
        bases: Orthonormal bases of the subspaces, `[n_subspaces, C, n_dimensions]`, the most relevant subspace first.
        relevance: The mean relevance that each subspace carries, `[n_subspaces]`.
        total: The mean relevance of the layer at a position.
    """

    layer: str
    bases: Tensor
    relevance: Tensor
    total: float

    def __repr__(self) -> str:
        number = count_noun(len(self.bases), "subspace")
        verb = "carries" if len(self.bases) == 1 else "carry"
        carry = f"Subspaces of {self.layer}: {number} of {count_noun(self.bases.shape[2], 'dimension')} {verb}"
        if self.total > 0:
            return f"{carry} {', '.join(f'{share:.1%}' for share in (self.relevance / self.total).tolist())} of the relevance"
        return f"{carry} {', '.join(f'{r:.3g}' for r in self.relevance.tolist())}, of {self.total:.3g} in all"

    def __len__(self) -> int:
        return len(self.bases)

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each subspace: its mean relevance, and its share of the layer's mean relevance."""
        return [
            {"subspace": i, "relevance": r, "share": r / self.total if self.total else None}
            for i, r in enumerate(self.relevance.tolist())
        ]

    def figure(self) -> "Figure":
        """Return a figure of the mean relevance that each subspace carries."""
        from whence.plotting.bars import Bars
        from whence.plotting.stacked_panels import stack_panels

        names = [f"subspace {i}" for i in range(len(self))]
        return stack_panels([Bars(self.relevance, f"relevance of subspaces of {self.layer}, {self.total:.4g} in all", names)])

    def through(self, part: int) -> dict[str, Directions]:
        """Return the condition that relevance flows through this subspace, as the argument `through` of `explain`."""
        return {self.layer: Directions(self.bases[part])}

    def direction(self, part: int, number: int = 0) -> Tensor:
        """Return one of the basis vectors of a subspace, `[C]`."""
        return self.bases[part, :, number]


@check_arguments
def subspaces(
    model: Callable[..., Any],
    inputs: Any,
    layer: str,
    target: Target = None,
    *,
    algorithm: Literal["prca", "drsa"] = "prca",
    n_subspaces: int = 1,
    n_dimensions: int = 1,
    method: LRP | None = None,
    n_steps: int = N_STEPS,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = True,
) -> Subspaces:
    """Find directions of a layer that carry relevance (PRCA and DRSA, Chormai et al. 2024).

    >>> whence.subspaces(model, (x, y), "features.10", target=3, n_dimensions=4)
    Subspaces of features.10: 1 subspace of 4 dimensions carries 71.3% of the relevance

    With activations a and relevance R = aᵀc over the dataset, "prca" returns the first `n_dimensions` eigenvectors of
    E[a cᵀ + c aᵀ], which maximise E[(Uᵀa)ᵀ(Uᵀc)]. "drsa" divides the space into `n_subspaces` subspaces of `n_dimensions`
    dimensions that are each relevant for different samples: it maximises the power mean M_½ over subspaces of the power mean M₂
    over samples of ReLU(R_k).

    Args:
        model: Any callable made of torch functions; an `nn.Module` must be in eval mode. It is left unchanged.
        inputs: The dataset: `x` of shape `[M, …]`, `(x, y)`, or a loader of such batches.
        layer: Module path of the layer.
        target: What is explained, as for `explain`; the predicted class by default. One target per sample needs a loader that
            does not shuffle.
        algorithm: "prca" or "drsa".
        n_subspaces: Number of subspaces, for "drsa".
        n_dimensions: Number of dimensions of each subspace.
        method: The `LRP` whose relevance is decomposed; the default one if not given.
        n_steps: Number of optimisation steps, for "drsa".
        batch_size: Number of samples explained at once.
        seed: Random seed.
        progress: False for no progress bar, or a function that is called with (done, total).

    Returns:
        A `Subspaces` result.

    Raises:
        RuleError: If `algorithm` is unknown, or the number of subspaces or dimensions is invalid for the layer.
        SelectorError: If the model has no such layer.
        ModelError: If the layer runs more than once.
        TargetError: If there is one target per sample and the loader shuffles.
        InputError: If no relevance reaches the layer.
    """
    check_model(model)
    layer = resolve_layer(model, layer)
    if algorithm not in ("prca", "drsa"):
        raise RuleError(f"algorithm={value_repr(algorithm)}; choose 'prca' or 'drsa'")
    if algorithm == "prca" and n_steps != N_STEPS:
        raise RuleError(f"n_steps={n_steps} has no effect with algorithm='prca', which is not iterative")
    if n_subspaces < 1 or n_dimensions < 1 or (algorithm == "prca" and n_subspaces != 1):
        raise RuleError(
            f"n_subspaces={n_subspaces}, n_dimensions={n_dimensions}; expected at least 1, and n_subspaces=1 for PRCA"
        )
    a, c = _collect(model, inputs, layer, target, method or LRP(), batch_size, seed, progress)
    if n_subspaces * n_dimensions > a.shape[1]:
        raise RuleError(
            f"{n_subspaces} subspaces of {n_dimensions} dimensions exceed the {a.shape[1]} channels of the layer; give fewer"
        )
    bases = _prca(a, c, n_dimensions)[None] if algorithm == "prca" else _drsa(a, c, n_subspaces, n_dimensions, n_steps, seed)
    carried = subspace_relevance(bases, a, c).mean(0)
    order = carried.argsort(descending=True)
    return Subspaces(layer, bases[order], carried[order], float((a * c).sum(1).mean()))


def subspace_relevance(bases: Tensor, a: Tensor, c: Tensor) -> Tensor:
    """Return (U_kᵀa)ᵀ(U_kᵀc) for each row, `[rows, n_subspaces]`."""
    along = [torch.einsum("kcd,nc->nkd", bases, t) for t in (a, c)]
    return (along[0] * along[1]).sum(2)


def _prca(a: Tensor, c: Tensor, dimensions: int) -> Tensor:
    """Return the basis found by PRCA, `[C, dimensions]`."""
    cross = a.double().T @ c.double() / len(a)
    _, vectors = torch.linalg.eigh(cross + cross.T)
    return vectors[:, -dimensions:].flip(1).to(a)


def _drsa(a: Tensor, c: Tensor, parts: int, dimensions: int, steps: int, seed: int) -> Tensor:
    """Return the bases found by DRSA, `[parts, C, dimensions]`."""
    channels = a.shape[1]
    start = torch.randn(channels, parts * dimensions, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode(False), torch.enable_grad():
        free = start.to(a).clone().requires_grad_()
        optimiser = torch.optim.Adam([free], 0.05)
        scale = (a * c).sum(1).abs().mean().clamp(min=1e-30)
        for _ in range(steps):
            optimiser.zero_grad()
            carried = subspace_relevance(_split(torch.linalg.qr(free)[0], parts), a, c).relu() / scale
            strength = (carried.square().mean(0) + 1e-12).sqrt()  # M₂ over samples
            (-strength.sqrt().mean().square()).backward()  # M_½ over parts
            optimiser.step()
    return _split(torch.linalg.qr(free.detach())[0], parts)


def _split(basis: Tensor, parts: int) -> Tensor:
    return basis.unflatten(1, (parts, -1)).movedim(1, 0)


def _collect(
    model: Callable[..., Any], data: Any, layer: str, target: Target, rules: LRP, size: int, seed: int, shown: Progress
) -> tuple[Tensor, Tensor]:
    """Return activations and context vectors at some positions of every sample, `[rows, C]` each."""
    prepared, found = PreparedModel(model, lasting=True), []
    random = torch.Generator().manual_seed(seed)
    targets = torch.as_tensor(target) if isinstance(target, list | tuple) else target
    if isinstance(targets, Tensor) and targets.dim() and is_shuffled(data):
        raise TargetError("one target per sample needs a fixed order of samples; pass a loader that does not shuffle")
    samples = require_all(batches(data, size))
    with progress("subspaces", len(samples), shown) as advance:
        for batch in samples:
            inputs, here = batch.inputs.beside(model), select_target_samples(targets, torch.tensor(batch.numbers))
            gradients, _ = next(rules.gradients(Task(prepared.up_to_date(), inputs, [here], (layer,), progress=False)))
            if len(gradients.layers[layer]) > 1:
                raise ModelError(f"layer '{layer}' ran {len(gradients.layers[layer])} times; name one that runs once")
            ((a, g),) = gradients.layers[layer]
            found.append(_sample_rows(model, layer, inputs, a, g, random))
            advance(1)
    a, c = (torch.cat(part) for part in zip(*found, strict=True))
    a, c = (t.float() if t.dtype.itemsize < 4 else t for t in (a, c))
    if not a.any() or not c.any():
        raise InputError(f"no relevance reaches layer '{layer}'")
    return a, c


def _sample_rows(
    model: Any, layer: str, inputs: Inputs, a: Tensor, g: Tensor, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    dimension = channel_dim(model, layer, inputs, a)
    a, g = (t.movedim(dimension, -1).flatten(1, -2) if t.dim() > 2 else t[:, None] for t in (a, g))
    chosen = torch.randperm(a.shape[1], generator=random)[:PLACES_PER_SAMPLE]
    return a[:, chosen].flatten(0, 1), g[:, chosen].flatten(0, 1)
