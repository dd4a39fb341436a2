"""What is done to each number of a row in registers, in as few instructions as there are.

With ASSEMBLY some of it is instructions that Triton has no words for, or a sum of several
answers at once; without, for the interpreter, the same in Triton's own words.
"""

import triton
import triton.language as tl

_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to the nearest whole number


@triton.jit
def silu(x, ASSEMBLY: tl.constexpr):
    """Return ``x / (1 + exp(-x))``, within two units in the last place of float32 or so."""
    if ASSEMBLY:
        result = tl.inline_asm_elementwise(
            """{
            .reg .f32 t;
            mul.f32 t, $1, 0fBFB8AA3B; // -1 / log 2
            ex2.approx.ftz.f32 t, t;
            add.f32 t, t, 0f3F800000;
            rcp.approx.ftz.f32 t, t;
            mul.f32 $0, $1, t;
            }""",
            "=f,f",
            [x],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )
    else:
        result = x / (1.0 + tl.exp(-x))
    return result


@triton.jit
def _sum_and_larger(sum_1, size_1, sum_2, size_2):
    return sum_1 + sum_2, tl.maximum(size_1, size_2, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _lower_and_higher(low_1, high_1, low_2, high_2):
    return tl.minimum(low_1, low_2), tl.maximum(high_1, high_2)


@triton.jit
def square_sum_and_size(squared, values, ASSEMBLY: tl.constexpr):
    """Return the sum of squares of some numbers, and the bits of the largest size of others.

    If that is not finite, its bits are those of infinity or more.
    """
    if ASSEMBLY:
        total, size = tl.reduce((squared * squared, tl.abs(values)), None, _sum_and_larger)
        bits = size.to(tl.int32, bitcast=True)
    else:
        total = tl.sum(squared * squared)
        bits = size_bits(values, ASSEMBLY)
    return total, bits


@triton.jit
def size_bits(values, ASSEMBLY: tl.constexpr):
    """Return the bits of the largest size of numbers; those of infinity or more if not finite."""
    if ASSEMBLY:
        bits = tl.reduce(tl.abs(values), None, _larger).to(tl.int32, bitcast=True)
    else:
        # as whole numbers, the bits of a NaN are larger than those of infinity
        bits = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    return bits


@triton.jit
def ends(values, ASSEMBLY: tl.constexpr):
    """Return the lowest and the highest of numbers and, perhaps, of zero."""
    if ASSEMBLY:
        low, high = tl.reduce((values, values), None, _lower_and_higher)
    else:  # the interpreter complains of numbers that are all NaN
        low = tl.min(tl.where(values < 0, values, 0.0))
        high = tl.max(tl.where(values > 0, values, 0.0))
    return low, high


@triton.jit
def power_above(largest):
    """Return a power of two above a number whose bits are given, and its inverse."""
    exponent = tl.minimum(largest >> 23, 252)
    step = ((exponent + 1) << 23).to(tl.float32, bitcast=True)
    inverse = ((253 - exponent) << 23).to(tl.float32, bitcast=True)
    return step, inverse


@triton.jit
def limited(values, per_step, TOP: tl.constexpr, EXACT: tl.constexpr):
    """Return numbers in steps, moved into the range of codes.

    EXACT, that is from ``-TOP`` to ``TOP - 1``; else the range is from 0 to 1, for which there
    is an instruction, and what halves a step may lie 1e-6 of it beside.
    """
    SPAN: tl.constexpr = 2 * TOP - 1
    if EXACT:
        found = tl.minimum(tl.maximum(values * per_step, -TOP), TOP - 1)
    else:
        found = tl.minimum(tl.maximum(values * (per_step / SPAN) + TOP / SPAN, 0.0), 1.0)
    return found


@triton.jit
def code_bits(numbers, TOP: tl.constexpr, EXACT: tl.constexpr):
    """Return numbers of 32 bits, the lowest of which are the code nearest to limited numbers."""
    if EXACT:
        rounded = numbers + _ROUND
    else:
        rounded = numbers * (2 * TOP - 1) + (_ROUND - TOP)
    return rounded.to(tl.int32, bitcast=True)


@triton.jit
def float_bits(numbers, TOP: tl.constexpr, EXACT: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return the bits of float8 (e4m3) of the code nearest to limited numbers, over 512.

    Between -16 / 512 and 16 / 512 that type has one number every 1 / 512, so rounding to it is
    rounding to a code. Its bits are the code's sign and size.
    """
    if not ASSEMBLY:
        code = (code_bits(numbers, TOP, EXACT) << 24) >> 24
        bits = (tl.abs(code) | tl.where(code < 0, 128, 0)).to(tl.uint8)
    else:
        if EXACT:
            part = numbers / 512
        else:
            part = numbers * ((2 * TOP - 1) / 512) - TOP / 512
        bits = part.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    return bits
