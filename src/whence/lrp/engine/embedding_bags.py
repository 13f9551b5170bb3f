"""`F.embedding_bag` as a function of the looked-up vectors."""

import torch
from torch import Tensor

from whence.lrp.engine.function_calls import Call

ARGUMENT_NAMES = (
    "input weight offsets max_norm norm_type scale_grad_by_freq mode sparse per_sample_weights include_last_offset padding_idx"
)


def pool_bags(call: Call, vectors: Tensor) -> Tensor:
    """Return the sums, means or maxima `[bags, d]` of the vectors `[…, d]` of the ids of each bag."""
    ids, _, offsets, _, _, _, mode, _, weights, last, padding = call.bind(
        ARGUMENT_NAMES, offsets=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, mode="mean", sparse=False,
        per_sample_weights=None, include_last_offset=False, padding_idx=None,
    )  # fmt: skip
    bag, count = _bag_indices(ids, offsets, last)
    kept = torch.ones_like(bag, dtype=torch.bool) if padding is None else ids.flatten() != padding
    vectors, bag = vectors.reshape(ids.numel(), -1)[kept], bag[kept]
    if weights is not None:
        vectors = vectors * weights.flatten()[kept, None]
    empty = vectors.new_zeros(count, vectors.shape[1])
    if mode == "max":
        return empty.scatter_reduce(0, bag[:, None].expand(vectors.shape), vectors, "amax", include_self=False)
    sums = empty.index_add(0, bag, vectors)
    return sums if mode == "sum" else sums / torch.bincount(bag, minlength=count).clamp(min=1)[:, None]


def _bag_indices(ids: Tensor, offsets: Tensor | None, last: bool) -> tuple[Tensor, int]:
    """Return the bag index of each id, and the number of bags."""
    if offsets is None:
        return torch.arange(len(ids), device=ids.device).repeat_interleave(ids.shape[1]), len(ids)
    starts = offsets[:-1] if last else offsets
    places = torch.arange(len(ids), device=ids.device)
    return torch.searchsorted(starts.contiguous(), places, right=True) - 1, len(starts)
