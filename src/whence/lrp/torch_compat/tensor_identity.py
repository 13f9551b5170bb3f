"""The identity of constant tensors in caches: their memory, version and contents.

The version counter alone does not tell: fused optimisers, the running statistics of batch norms and `t.data` change values
without it. One sum over the bits of each tensor costs far less than the passes that read it.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from whence.lrp.torch_compat.saved_tensors import version_of

FEW_WORDS = 4096  # up to which positions are not weighted: it would take longer than the sum
COLUMNS = 509  # a prime, which no size of a layer divides
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # by their size in bytes


def tensor_identity(t: Tensor) -> Hashable:
    """Return what differs if the tensor is another, or was modified."""
    return (t.data_ptr(), version_of(t), t.dtype, t.shape, t.stride(), *checksums((t,)))


def checksums(tensors: Sequence[Tensor]) -> tuple[int | None, ...]:
    """Return a checksum of each tensor, in one transfer for each device; None for tensors without values that can be read."""
    found: list[int | None] = [None] * len(tensors)
    with torch.no_grad(), torch.inference_mode(False), _disable_current_modes(), torch._C.DisableTorchFunction():
        by_device: dict[torch.device, list[int]] = {}
        for i, t in enumerate(tensors):
            if t.layout is torch.strided and not t.is_meta and not t.is_quantized:
                by_device.setdefault(t.device, []).append(i)
        for places in by_device.values():
            sums = torch.stack([_sum(tensors[i].detach()) for i in places]).tolist()
            for i, value in zip(places, sums, strict=True):
                found[i] = value
    return tuple(found)


def _sum(t: Tensor) -> Tensor:
    """Return a weighted sum over the bits of a tensor as 64-bit integers, modulo 2^64.

    It is exact, so that the smallest change of one entry shows, and takes a tenth of the time of a sum of floats in double
    precision. The weights differ by position in large tensors, so that exchanged entries show too.
    """
    numbers, size = t.numel(), t.element_size()
    if t.is_conj() or t.is_neg() or not _is_dense(t) or t.storage_offset() * size % 8:
        t = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
        return t.sum(dtype=torch.float64).view(torch.int64)
    flat = t.as_strided((numbers,), (1,))
    rest = numbers % (8 // size) if size < 8 else 0
    words = flat[: numbers - rest].view(torch.int64)
    if len(words) > FEW_WORDS:
        whole = len(words) - len(words) % COLUMNS
        total = (words[:whole].view(-1, COLUMNS).sum(0) * _column_weights(t.device)).sum() + words[whole:].sum()
    else:
        total = words.sum()
    return total + flat[numbers - rest :].view(INTEGERS[size]).sum() if rest else total


@lru_cache
def _column_weights(device: torch.device) -> Tensor:
    return torch.arange(1, COLUMNS + 1, device=device)


def _is_dense(t: Tensor) -> bool:
    """Return whether the entries of a tensor lie side by side in memory, in some order."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.is_contiguous() or (t.dim() in formats and t.is_contiguous(memory_format=formats[t.dim()]))
