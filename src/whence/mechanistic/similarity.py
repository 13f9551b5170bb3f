"""`explain_similarity`: the relevance of pairs of input parts for the similarity of two embeddings (BiLRP)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from whence.core.argument_checks import check_arguments
from whence.core.explainer import Explainer
from whence.core.inputs import Inputs, check_model
from whence.core.progress import Progress, progress
from whence.core.result import Result
from whence.core.trees import Tree, named_leaves
from whence.errors import InputError, RuleError, value_repr
from whence.mechanistic.channel_relevance import unravel
from whence.methods.feature_masks import PATCHES_PER_SIDE
from whence.methods.registry import Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS_SHOWN = 30


@dataclass(frozen=True, repr=False, eq=False)
class SimilarityExplanation(Result):
    """The relevance of pairs of parts for the dot product of two embeddings.

    >>> s = whence.explain_similarity(model, x1, x2)
    >>> s.relevance                                # [N, P1, P2]: sums to s.output for conservative rules
    >>> s.top(10), s.save("pairs.png")

    Args:
        relevance: The relevance of each pair of parts, `[N, P1, P2]`.
        output: The dot product of the embeddings, or its estimate by random projections, `[N]`.
        places: The grid of the parts of both inputs: `(rows, columns)` of patches, or `(tokens,)`.
        inputs: Both inputs.
    """

    relevance: Tensor
    output: Tensor
    places: tuple[tuple[int, ...], tuple[int, ...]]
    inputs: tuple[Tree, Tree] = (None, None)

    def __repr__(self) -> str:
        shape = " × ".join(" by ".join(map(str, places)) for places in self.places)
        sums = self.relevance.sum((1, 2))
        lines = [f"output {y:.4g}, ΣR {r:.4g}" for y, r in zip(self.output.tolist(), sums.tolist(), strict=True)]
        return "\n  ".join([f"Similarity of {shape} parts", *lines])

    def top(self, count: int = 10, sample: int = 0) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
        """Return the pairs of largest |relevance|: position in the first input, position in the second, relevance."""
        r = self.relevance[sample]
        found = []
        for index in r.flatten().abs().topk(min(count, r.numel())).indices.tolist():
            i, j = divmod(index, r.shape[1])
            ends = [unravel(k, at) for k, at in zip((i, j), self.places, strict=True)]
            found.append((*ends, float(r[i, j])))
        return found

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for each sample and pair of parts, the strongest first: both positions and their relevance."""
        count = self.relevance[0].numel()
        return [
            {"sample": sample, "part": one, "other_part": other, "relevance": relevance}
            for sample in range(len(self.relevance))
            for one, other, relevance in self.top(count, sample)
        ]

    def figure(self) -> "Figure":
        """Return a figure of both images with lines between the strongest pairs, or a map of all pairs for other inputs."""
        from whence.plotting.matrices import matrix_figure
        from whence.plotting.patch_pairs import pair_lines

        both = [next(iter(named_leaves(x).values())) for x in self.inputs]
        if any(x.dim() != 4 for x in both):
            rows = [str(i) for i in range(self.relevance.shape[1])]
            return matrix_figure({f"similarity {float(self.output[0]):.4g}": self.relevance[0]}, rows, "part of the second")
        return pair_lines(both[0][0], both[1][0], self.places, self.top(PAIRS_SHOWN), f"similarity {float(self.output[0]):.4g}")


@check_arguments
def explain_similarity(
    model: Callable[..., Any],
    inputs: Tree,
    other_inputs: Tree,
    *,
    patch: int | None = None,
    n_projections: int | None = None,
    method: Method | str | None = None,
    seed: int = 0,
    progress: Progress = True,
) -> SimilarityExplanation:
    """Explain why two inputs are similar to a network, by BiLRP (Eberle et al. 2020).

    >>> whence.explain_similarity(embedder, x1, x2).save("pairs.png")

    BiLRP explains y = ⟨φ(x), φ(x')⟩ by pairs of input parts: R_ii' = Σ_m R_i(φ_m, x) · R_i'(φ_m, x'). Relevance of images is
    pooled to patches before the product and texts are taken token by token, so that memory grows with patches² instead of
    pixels². It takes D backward passes from one forward pass of each input; with `n_projections`, as many random projections
    replace the D dimensions, and estimate the product without bias.

    Args:
        model: Any callable from inputs to embeddings `[N, D]`.
        inputs: Tensor `[N, …]`, or a tuple or dict of tensors.
        other_inputs: Inputs like `inputs`, compared pair by pair.
        patch: Side in pixels of the patches that relevance of images is pooled to; some 14 patches a side if not given.
        n_projections: Number of random projections in place of the D dimensions.
        method: A method or its short name; LRP with its default rules if not given.
        seed: Random seed.
        progress: False for no progress bar, or a function that is called with (done, total).

    Returns:
        A `SimilarityExplanation`.

    Raises:
        InputError: If the model does not return embeddings `[N, D]`, their shapes differ, or a side has several inputs.
        RuleError: If `patch` or `n_projections` is invalid.
    """
    check_model(model)
    inputs = [Inputs.of(x).detached() for x in (inputs, other_inputs)]
    embeddings = [_embed(model, x) for x in inputs]
    if embeddings[0].shape != embeddings[1].shape:
        shapes = [tuple(embedding.shape) for embedding in embeddings]
        raise InputError(
            f"embeddings of shapes {shapes[0]} and {shapes[1]} differ; expected the same number of pairs and dimensions"
        )
    targets, output = _embedding_targets(embeddings, n_projections, seed)
    explainer = Explainer(model, method)
    sides: list[Tensor] = []
    places: list[tuple[int, ...]] = []
    for number, one in enumerate(inputs):
        parts = []
        with _pair_label(number, len(targets), progress) as advance:
            for e in explainer.iter_targets(one.nest, targets, progress=False):
                pooled = _pool_relevance(e.relevance, patch)
                parts.append(pooled.flatten(1))
                advance(1)
        places.append(tuple(pooled.shape[1:]))
        sides.append(torch.stack(parts))  # [D, N, P]
    relevance = torch.einsum("dnp,dnq->npq", *sides)
    return SimilarityExplanation(relevance, output, (places[0], places[1]), (inputs[0].nest, inputs[1].nest))


def _pair_label(number: int, count: int, shown: Progress) -> Any:
    return progress(f"similarity, side {number + 1}", count, shown)


def _embed(model: Callable[..., Any], inputs: Inputs) -> Tensor:
    with torch.no_grad():
        found = inputs.run(model)
    if not isinstance(found, Tensor) or found.dim() != 2:
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(f"the model returned {given}; expected embeddings [N, D]: wrap the model so that it returns them")
    return found


def _embedding_targets(embeddings: Sequence[Tensor], projections: int | None, seed: int) -> tuple[list[Any], Tensor]:
    """Return the targets of both embeddings, and the sum of their products."""
    one, other = embeddings
    dimensions = one.shape[1]
    if projections is None:
        return list(range(dimensions)), (one * other).sum(1)
    if not isinstance(projections, int) or projections < 1:
        raise RuleError(f"n_projections={value_repr(projections)}; expected a number, or None for all dimensions")
    signs = torch.randint(0, 2, (dimensions, projections), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    signs = signs.to(one) / sqrt(projections)
    targets = [lambda outputs, v=v: outputs @ v.to(outputs) for v in signs.T]
    return targets, ((one @ signs) * (other @ signs)).sum(1)


def _pool_relevance(relevance: Tree, patch: int | None) -> Tensor:
    """Return the relevance of one input summed over patches `[N, rows, columns]`, or by token or feature `[N, T]`."""
    found = named_leaves(relevance)
    if len(found) != 1:
        raise InputError(f"explain_similarity needs one input on each side, got {', '.join(found)}; wrap the model")
    (r,) = found.values()
    if r.dim() != 4:
        return r if r.dim() == 2 else r.flatten(2).sum(2)
    r = r.sum(1, keepdim=True)
    side = patch or max(1, -(-max(r.shape[2:]) // PATCHES_PER_SIDE))
    if side < 1 or prod(-(-n // side) for n in r.shape[2:]) > 4096:
        raise RuleError(f"patch={side} for images of {tuple(r.shape[2:])}; expected a size that gives at most 64 × 64 patches")
    padded = F.pad(r, (0, -r.shape[3] % side, 0, -r.shape[2] % side))
    return F.avg_pool2d(padded, side)[:, 0] * side**2
