"""Scales and codes: what is simulated is what is stored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tesseral.core.packed import PackedTensor
from tesseral.quantization.numerics import (
    asymmetric_codes,
    asymmetric_scale,
    rounded,
    row_range,
    symmetric_codes,
    symmetric_range,
    symmetric_scale,
    working_dtype,
)

WIDTHS = range(2, 9)
WHOLE = torch.ones(2)


def rows(spread=1.0, shift=0.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(7, 33, generator=generator, dtype=torch.float64)
    return (x * spread + shift).to(dtype)


SPECIAL = {
    "zeros": torch.zeros(3, 5),
    "constant": torch.full((3, 5), 1.5),
    "constant below float16": torch.full((3, 5), 1e-9),
    "beyond float16": torch.tensor([[-3e5, 2e5, 0.0, 7e4, 1.0]]),
    "constant beyond float16": torch.full((3, 5), 3e5),
    "negative constant beyond float16": torch.full((3, 5), -3e5),
    "tiny": torch.tensor([[1e-20, -2e-20, 0.0]]),
    "one": torch.tensor([[4.0]]),
}


@pytest.mark.parametrize("bits", WIDTHS)
@given(spread=st.sampled_from([1e-6, 1.0, 1e4]), shift=st.sampled_from([-3.0, 0.0, 3.0]))
def test_codes_are_whole_and_in_range(bits, spread, shift):
    x, (low, high) = rows(spread, shift), symmetric_range(bits)
    bounds = row_range(x, WHOLE)
    signed = symmetric_codes(x, symmetric_scale(*bounds, bits), bits)
    unsigned = asymmetric_codes(x, *asymmetric_scale(*bounds, bits), bits)
    for codes, least, largest in ((signed, low, high), (unsigned, 0, 2**bits - 1)):
        assert torch.equal(codes, codes.round())
        assert codes.min() >= least
        assert codes.max() <= largest


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_signed_range_is_that_of_twos_complement(bits):
    assert symmetric_range(bits) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_side_that_reaches_farther_takes_the_additional_code(bits):
    x = torch.tensor([[-4.0, 2.0], [2.0, 4.0], [-4.0, 4.0], [3.9, -4.0], [-3.9, 4.0]])
    scale = symmetric_scale(*row_range(x, WHOLE), bits)
    codes = symmetric_codes(x, scale, bits)
    below, above = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    # where both sides reach equally far, or nearly so, the other one bounds the scale
    expected = [4 / below, 4 / below, 4 / above, 3.9 / above, 3.9 / above]
    signs = torch.tensor([[1.0], [-1.0], [1.0], [1.0], [-1.0]])
    sizes = torch.tensor(expected).maximum(torch.tensor(4 / below))[:, None]
    assert torch.allclose(scale, signs * sizes)
    assert codes[0].tolist() == [-below, below // 2]
    assert codes[1].tolist() == [-(below // 2), -below]


@pytest.mark.parametrize("bits", WIDTHS)
def test_half_the_largest_magnitude_is_within_reach(bits):
    x = rows()
    value = symmetric_codes(x, scale := symmetric_scale(*row_range(x, WHOLE), bits), bits) * scale
    assert torch.allclose(value.abs().amax(-1), x.abs().amax(-1), atol=float(scale.abs().max()) / 2)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_error_is_at_most_half_a_step(bits, dtype):
    x = rows(dtype=dtype)
    scale = symmetric_scale(*row_range(x, WHOLE), bits)
    error = (symmetric_codes(x, scale, bits) * scale - x).abs()
    assert (error <= scale.abs() * 0.5001).all()
    scale, offset = asymmetric_scale(*row_range(x, WHOLE), bits)
    error = (asymmetric_codes(x, scale, offset, bits) * scale + offset - x).abs()
    # the scale is rounded to float16, which moves the far end by a part in 2^11 of the range
    assert (error <= scale * (0.5001 + 2.0 ** (bits - 10))).all()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("name", SPECIAL)
def test_special_rows_stay_finite(bits, name):
    x = SPECIAL[name]
    scale = symmetric_scale(*row_range(x, WHOLE), bits)
    value = symmetric_codes(x, scale, bits) * scale
    assert ((value - x).abs() <= scale.abs() * 0.51).all()
    scale, offset = asymmetric_scale(*row_range(x, WHOLE), bits)
    value = asymmetric_codes(x, scale, offset, bits) * scale + offset
    held = x.clamp(-65504, 65504)
    assert ((value - held).abs() <= scale * 0.51 + held.abs() * 2.0**-10).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_signed_row_keeps_its_precision_however_small_it_is(bits):
    x = rows()
    small = x * 2.0**-40
    scales = [symmetric_scale(*row_range(y, WHOLE), bits) for y in (x, small)]
    codes = [symmetric_codes(y, s, bits) for y, s in zip((x, small), scales, strict=True)]
    assert torch.equal(*codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", WIDTHS)
def test_scale_and_offset_of_unsigned_codes_are_exact_in_float16(bits, dtype):
    for x in (rows(dtype=dtype), rows(1e4, 5.0, dtype=dtype), *SPECIAL.values()):
        for part in asymmetric_scale(*row_range(x, WHOLE), bits):
            assert part.dtype == x.dtype
            assert part.isfinite().all()
            assert torch.equal(part.half().to(x.dtype), part)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e6])
def test_the_simulated_value_is_the_stored_one(bits, spread):
    x = rows(spread, shift=0.3 * spread)
    scale = symmetric_scale(*row_range(x, WHOLE), bits)
    codes = symmetric_codes(x, scale, bits)
    stored = PackedTensor.from_codes(codes.to(torch.int8), scale, bits=bits)
    assert torch.equal(stored.dequantize(), codes * scale)
    scale, offset = asymmetric_scale(*row_range(x, WHOLE), bits)
    codes = asymmetric_codes(x, scale, offset, bits)
    stored = PackedTensor.from_codes(codes.to(torch.uint8), scale.half(), offset.half(), bits=bits)
    assert torch.equal(stored.dequantize(torch.float32), codes * scale + offset)


@pytest.mark.parametrize("offset", [None, -0.7])
def test_the_rounded_value_is_that_of_the_codes(offset):
    x, scale = rows(3.0), torch.linspace(0.1, 0.7, 7)[:, None]
    if offset is None:
        expected = symmetric_codes(x, scale, 4) * scale
        assert torch.equal(rounded(x, scale, None, (-8, 7)), expected)
    else:
        offsets = torch.full_like(scale, offset)
        expected = asymmetric_codes(x, scale, offsets, 4) * scale + offsets
        assert torch.equal(rounded(x, scale, offsets, (0, 15)), expected)


@pytest.mark.parametrize("signed", [True, False])
def test_gradients_are_those_of_rounding_that_autograd_does_not_see(signed):
    """The oracle: codes plus a constant, in float64, step by step under autograd."""

    def value(x, clip, *, fast):
        bounds = row_range(x, clip)
        if signed:
            scale, offset, codes = symmetric_scale(*bounds, 4), None, (-8, 7)
        else:
            (scale, offset), codes = asymmetric_scale(*bounds, 4), (0, 15)
        if fast:
            return rounded(x, scale, offset, codes)
        steps = (x if offset is None else x - offset) / scale
        steps = (steps + (steps.round() - steps).detach()).clamp(*codes)
        return steps * scale + (0 if offset is None else offset)

    found = []
    for fast in (True, False):
        x = rows(dtype=torch.float64).requires_grad_()
        clip = torch.tensor([0.6, 0.7], dtype=torch.float64, requires_grad=True)
        weights = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).reshape(x.shape)
        (value(x, clip, fast=fast) * weights).sum().backward()
        found.append((x.grad, clip.grad))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-10, atol=1e-12)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-10)


def test_the_gradient_passes_through_inside_the_range_and_not_outside():
    x = torch.tensor([[-9.9, -8.4, -3.3, 0.0, 2.6, 6.9, 9.0]], requires_grad=True)
    scale = torch.ones(1, 1)
    rounded(x, scale, None, (-8, 7)).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 1, 1, 1, 0]]
    x.grad = None
    rounded(x, scale, torch.full((1, 1), -8.5), (0, 15)).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 1, 1, 1, 0]]


def test_a_row_of_zeros_has_finite_gradients():
    x = torch.zeros(2, 4, requires_grad=True)
    scale = symmetric_scale(*row_range(x, WHOLE), 4)
    rounded(x, scale, None, (-8, 7)).square().sum().backward()
    assert x.grad.isfinite().all()


def test_a_clip_learns_from_what_it_cuts_off():
    x, clip = rows(), torch.full((2,), 0.5, requires_grad=True)
    scale = symmetric_scale(*row_range(x, clip), 4)
    (rounded(x, scale, None, (-8, 7)) - x).square().mean().backward()
    assert (clip.grad < 0).all()  # half the range is too little: the error falls as it opens


@pytest.mark.parametrize("bits", [4, 8])
def test_a_clip_bounds_the_values(bits):
    x = rows()
    scale = symmetric_scale(*row_range(x, torch.tensor([0.5, 0.5])), bits)
    value = symmetric_codes(x, scale, bits) * scale
    largest = x.abs().amax(-1)
    # the nearer side may bound the scale, so that the other reaches a step farther
    assert (value.abs().amax(-1) <= 0.5001 * largest + scale.abs()[:, 0]).all()
    scale, offset = asymmetric_scale(*row_range(x, torch.tensor([0.25, 0.75])), bits)
    value = asymmetric_codes(x, scale, offset, bits) * scale + offset
    low, high = x.amin(-1), x.amax(-1)
    assert torch.allclose(value.amin(-1), 0.25 * low, rtol=1e-2)
    assert torch.allclose(value.amax(-1), 0.75 * high, rtol=1e-2)


def test_each_row_can_have_a_clip_of_its_own():
    x = torch.tensor([[-2.0, 4.0], [-6.0, 3.0]])
    low, high = row_range(x, torch.tensor([[0.5, 1.0], [1.0, 0.25]]))
    assert low.tolist() == [[-1.0], [-6.0]]
    assert high.tolist() == [[4.0], [0.75]]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_transforms_of_a_float64_model_are_float64(model, expected):
    assert working_dtype(model) == expected
