"""The identity of constant tensors in caches: their memory, version and contents.

The version counter alone does not tell: fused optimisers, the running statistics of batch norms and `t.data` change values
without it. One sum over each tensor costs far less than the passes that read it.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from whence.lrp.torch_compat.saved_tensors import version_of


def tensor_identity(t: Tensor) -> Hashable:
    """Return what differs if the tensor is another, or was modified."""
    return (t.data_ptr(), version_of(t), t.dtype, t.shape, t.stride(), *checksums((t,)))


def checksums(tensors: Sequence[Tensor]) -> tuple[float | None, ...]:
    """Return a sum over each tensor, in one transfer for each device; None for tensors without values that can be read."""
    found: list[float | None] = [None] * len(tensors)
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
    return torch.view_as_real(t.resolve_conj()).sum(dtype=torch.float64) if t.is_complex() else t.sum(dtype=torch.float64)
