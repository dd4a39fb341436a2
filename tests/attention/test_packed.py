"""Quantised keys and values: attention over them is attention over what they stand for."""

import numpy as np
import pytest
import torch

from attention.cases import SMALL_TILES, blockwise, make_inputs, oracle, plain, run, to_float64
from support.budget import assert_within_budget
from tesseral.attention import attention
from tesseral.attention.backends.reference import ReferenceBackend
from tesseral.core import PackedTensor


def quantize(array, bits, *, groups=2, symmetric=False):
    """Round a NumPy array to a PackedTensor with ``groups`` scales a row."""
    rows = array.reshape(*array.shape[:-1], groups, -1)
    if symmetric:
        scale = np.abs(rows).max(-1) / (2 ** (bits - 1) - 1)
        codes, offset = np.rint(rows / scale[..., None]).astype(np.int8), None
    else:
        offset = rows.min(-1)
        scale = (rows.max(-1) - offset) / (2**bits - 1)
        codes = np.rint((rows - offset[..., None]) / scale[..., None]).astype(np.uint8)
    return PackedTensor.from_codes(codes.reshape(array.shape), scale, offset, bits=bits)


def to_torch(packed):
    offset = None if packed.offset is None else torch.asarray(packed.offset)
    return PackedTensor(
        data=torch.asarray(packed.data),
        scale=torch.asarray(packed.scale),
        offset=offset,
        bits=packed.bits,
        length=packed.length,
    )


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["offset", "symmetric"])
@pytest.mark.parametrize("bits", [(4, 4), (8, 2), (2, None), (None, 4)], ids=str)
def test_packed_keys_and_values_are_what_they_dequantise_to(framework, symmetric, bits):
    query, key, value = make_inputs(20, 50, head_dim=12)
    packed = [
        array if b is None else quantize(array, b, symmetric=symmetric)
        for array, b in zip((key, value), bits, strict=True)
    ]
    plain = [p.dequantize() if isinstance(p, PackedTensor) else p for p in packed]
    if framework == "torch":
        query = torch.asarray(query)
        packed = [to_torch(p) if isinstance(p, PackedTensor) else torch.asarray(p) for p in packed]
    rules = {"is_causal": True, "window": (30, -1), "sinks": None}
    expected, expected_lse = oracle(np.asarray(query), *plain, **rules)
    for forward in (blockwise, lambda *a, **o: run(ReferenceBackend(), *a, **o)):
        output, lse = forward(query, *packed, **rules)
        np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(lse, expected_lse, rtol=1e-12)


@pytest.mark.parametrize("groups", [(1, 2), (2, 1)], ids=str)
def test_what_is_known_of_one_number_of_scales_is_not_taken_for_another(groups):
    query, key, value = make_inputs(3, 40)
    for count in groups:
        packed = [quantize(side, 8, groups=count) for side in (key, value)]
        expected, _ = oracle(query, *(side.dequantize() for side in packed))
        found = attention(query.astype(np.float32), *packed)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_query_gives_the_type_of_the_output(dtype):
    query, key, value = make_inputs(3, 40)
    packed = [to_torch(quantize(array, 4)) for array in (key, value)]
    output, lse = blockwise(torch.asarray(query).to(dtype), *packed)
    assert output.dtype == dtype
    assert lse.dtype == torch.float32
    query, *dense = (torch.asarray(query).to(dtype), *(p.dequantize() for p in packed))
    expected, _ = oracle(query, *dense)
    peer = plain(query, *(array.to(dtype) for array in dense))
    floor = 2 * torch.finfo(dtype).eps
    assert_within_budget(to_float64(output), expected, to_float64(peer), floor=floor)


def test_no_more_than_a_tile_is_dequantised_at_a_time(monkeypatch):
    lengths = []
    original = PackedTensor.dequantize

    def watched(self, dtype=None):
        lengths.append(self.shape)
        return original(self, dtype)

    monkeypatch.setattr(PackedTensor, "dequantize", watched)
    query, key, value = make_inputs(1, 100)
    blockwise(query, quantize(key, 4), quantize(value, 4))
    tile = (SMALL_TILES.batch_tile, SMALL_TILES.head_tile, SMALL_TILES.k_tile, 16)
    assert len(lengths) == 2 * 2 * 2 * 7
    assert all(np.less_equal(shape, tile).all() for shape in lengths)
