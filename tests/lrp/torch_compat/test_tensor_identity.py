"""Checksums of tensors: any changed bit shows, whatever the dtype, size and layout."""

import pytest
import torch

from whence.lrp.torch_compat.tensor_identity import checksums

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.int64, torch.complex64,
    torch.complex128, torch.float8_e4m3fn,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (7,), (5, 3), (4, 3, 3, 3)], ids=str)
def test_the_smallest_change_of_any_entry_shows(dtype, shape):
    for memory_format in (torch.contiguous_format, torch.channels_last)[: 2 if len(shape) == 4 else 1]:
        t = (torch.rand(shape) * 3).to(dtype).contiguous(memory_format=memory_format)
        before = checksums((t,))
        assert checksums((t.clone(memory_format=torch.preserve_format),)) == before
        for entry in t.as_strided((t.numel(),), (1,)).view(torch.uint8).split(t.element_size()):
            entry[0] ^= 1
            assert checksums((t,)) != before
            entry[0] ^= 1


def test_exchanged_entries_of_large_tensors_show():
    x = torch.rand(100, 200)
    assert len({checksums((t.contiguous(),)) for t in (x, x.flip(0), x.flip(1), x.roll(2, 1), x.roll(1, 0), -x)}) == 6


def test_views_and_other_layouts_have_checksums_too():
    x = torch.rand(6, 7)
    views = [x.t(), x[1:], x[:, 1:], x[0, 1:], x.expand(3, 6, 7), torch.conj(x + 1j), x[2:2]]
    before = checksums(views)
    assert None not in before
    x[3, 4] += 1e-3
    assert [a != b for a, b in zip(checksums(views), before, strict=True)] == [True, True, True, False, True, False, False]
    assert checksums((x.to_sparse(), x.to("meta"))) == (None, None)
