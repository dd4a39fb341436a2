"""Rows of bytes give back what was written into them, as views."""

import pytest
import torch

from support.codec import FakeCodec
from tesseral.core.packed import PackedTensor
from tesseral.llm.paged_rows import RowLayout, common_width


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("head_dim", [6, 8, 128])
def test_what_is_written_is_read_back(head_dim, bits, dtype):
    x = torch.randn(2, 3, 5, head_dim, generator=torch.Generator().manual_seed(0))
    states, _ = FakeCodec(head_dim, bits, bits).encode(x, x)
    if bits == 16:
        states = states.to(dtype)
    else:
        states = PackedTensor(
            data=states.data,
            scale=states.scale.to(dtype),
            offset=states.offset.to(dtype),
            bits=bits,
            length=head_dim,
        )
    layout = RowLayout(states[:, :, :0])
    rows = layout.write(states, layout.nbytes + 8)
    assert (rows.shape, rows.dtype) == ((2, 3, 5, layout.nbytes + 8), torch.uint8)
    got = layout.read(rows.transpose(1, 2)).dequantize() if bits < 16 else layout.read(rows)
    expected = states.dequantize().transpose(1, 2) if bits < 16 else states
    assert torch.equal(got, expected)


@pytest.mark.parametrize(("head_dim", "bits"), [(128, 4.25), (64, 4.5)])
def test_a_row_is_as_long_as_what_it_holds(head_dim, bits):
    codes = torch.zeros(1, 1, 0, head_dim, dtype=torch.uint8)
    scale = torch.zeros(1, 1, 0, 1, dtype=torch.float16)
    states = PackedTensor.from_codes(codes, scale, scale, bits=4)
    assert 8 * RowLayout(states).nbytes / head_dim == bits


def test_rows_of_several_kinds_are_as_long_as_all_can_bear():
    small = RowLayout(torch.zeros(1, 9, dtype=torch.float16))
    large = RowLayout(torch.zeros(1, 2, dtype=torch.float64))
    assert common_width([small, large]) == 24


def test_what_is_read_changes_with_the_rows():
    layout = RowLayout(torch.zeros(1, 4))
    rows = layout.write(torch.ones(1, 4), layout.nbytes)
    view = layout.read(rows)
    rows.zero_()
    assert torch.equal(view, torch.zeros(1, 4))
