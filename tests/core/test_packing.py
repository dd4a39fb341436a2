import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core.packed import PackedTensor
from tesseral.core.packing import pack, packed_length, storage_bits, unpack

torch = pytest.importorskip("torch")


@st.composite
def codes_of_some_width(draw):
    bits, signed = draw(st.sampled_from((2, 4, 8))), draw(st.booleans())
    low = -(2 ** (bits - 1)) if signed else 0
    shape = draw(st.tuples(st.integers(0, 4), st.integers(0, 19)))
    codes = draw(arrays(np.int16, shape, elements=st.integers(low, low + 2**bits - 1)))
    return codes, bits, signed


@given(codes_of_some_width())
def test_unpack_undoes_pack_for_every_width_sign_and_length(case):
    codes, bits, signed = case
    packed = pack(codes, bits)
    assert packed.shape[-1] == packed_length(codes.shape[-1], bits)
    assert np.array_equal(unpack(packed, bits, codes.shape[-1], signed=signed), codes)


@given(codes_of_some_width())
def test_numpy_and_torch_pack_to_the_same_bytes(case):
    codes, bits, signed = case
    packed = pack(torch.tensor(codes), bits)
    assert np.array_equal(packed.numpy(), pack(codes, bits))
    again = unpack(packed, bits, codes.shape[-1], signed=signed)
    assert np.array_equal(again.numpy(), codes)


def test_the_first_code_sits_in_the_lowest_bits():
    assert pack(np.array([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack(np.array([1, 2, 3, 0, 1]), 2).tolist() == [0b00111001, 0b01]
    assert pack(np.array([-8, -1]), 4).tolist() == [0xF8]


@pytest.mark.parametrize(("bits", "stored"), [(2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_odd_widths_are_stored_in_the_next_of_two_four_and_eight(bits, stored):
    assert storage_bits(bits) == stored


def test_packing_refuses_what_does_not_fit():
    with pytest.raises(ParameterError, match="bits=9 cannot be packed"):
        storage_bits(9)
    with pytest.raises(ParameterError, match="width of 3 bits"):
        pack(np.zeros(4, np.int8), 3)
    with pytest.raises(DtypeError, match="must be integers, got float64"):
        pack(np.zeros(4), 4)
    with pytest.raises(ShapeError, match="got a scalar"):
        pack(np.array(3), 4)
    with pytest.raises(DtypeError, match="are uint8, got int8"):
        unpack(np.zeros(2, np.int8), 4, 4, signed=True)
    with pytest.raises(ShapeError, match="5 codes of 4 bits fill 3 bytes"):
        unpack(np.zeros(2, np.uint8), 4, 5, signed=True)


def make_packed(groups, *, asymmetric):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (2, 3, 8)) - (0 if asymmetric else 8)
    scale = rng.random((2, 3, groups)).astype(np.float32)
    offset = rng.random((2, 3, groups)).astype(np.float32) if asymmetric else None
    return codes, PackedTensor.from_codes(codes, scale, offset, bits=4)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_dequantize_is_scale_times_code_plus_offset(groups, asymmetric):
    codes, packed = make_packed(groups, asymmetric=asymmetric)
    expected = codes * np.repeat(packed.scale, 8 // groups, axis=-1)
    if asymmetric:
        expected = expected + np.repeat(packed.offset, 8 // groups, axis=-1)
    np.testing.assert_allclose(packed.dequantize(), expected, rtol=1e-6)
    assert packed.dequantize(np.float64).dtype == np.float64
    assert packed.shape == (2, 3, 8)
    assert packed.nbytes == 2 * 3 * (4 + 4 * groups * (2 if asymmetric else 1))


def test_indexing_leading_axes_indexes_the_values():
    _, packed = make_packed(2, asymmetric=True)
    values = packed.dequantize()
    assert np.array_equal(packed[1].dequantize(), values[1])
    assert np.array_equal(packed[:, 1:].dequantize(), values[:, 1:])
    with pytest.raises(ShapeError, match="leave the last axis"):
        packed[:, :, 0]
    with pytest.raises(ShapeError, match="leave the last axis"):
        packed[..., 0]


def test_a_packed_tensor_refuses_parts_that_do_not_belong_together():
    data, scale = np.zeros((3, 4), np.uint8), np.ones((3, 1), np.float32)
    fields = {"data": data, "scale": scale, "bits": 4, "length": 8}
    for change, message in (
        ({"length": 9}, "does not hold 9 codes"),
        ({"scale": np.ones((2, 1))}, r"scale of shape \(2, 1\)"),
        ({"scale": np.ones((3, 3))}, r"scale of shape \(3, 3\)"),
        ({"offset": np.ones((3, 2))}, r"offset of shape \(3, 2\)"),
    ):
        with pytest.raises(ShapeError, match=message):
            PackedTensor(**(fields | change))
    with pytest.raises(DtypeError, match="must be uint8"):
        PackedTensor(**(fields | {"data": data.astype(np.int8)}))
