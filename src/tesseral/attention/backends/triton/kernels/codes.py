"""Codes of 4 and 8 bits as float16: subnormal numbers, which take no conversion.

The bits of a code ``c`` below 1024, read as float16, are the number ``c / 2^24``; those of a code
four places up are ``c / 2^20``. Tensor cores multiply them exactly, so that masking a word of codes
is all that is done to it; the powers of two go into scales.
"""

import triton
import triton.language as tl

UNIT = tl.constexpr(2.0**24)
"""What a product with such numbers is short by."""

SMALLEST = tl.constexpr(2.0**-100)
"""Scales of values below it count as it where weights are compared; a smaller one may be zero."""


@triton.jit
def widen(words, BITS: tl.constexpr, SIGNED: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return the codes in words of 16 bits, least significant first, each in units of 2^-24.

    Of 4 bits, the second and the fourth are 16 times as large; of 8 bits there are two, given
    twice. ``SIGNED`` codes come out larger by half their range. ``ASSEMBLY`` takes two words at
    once.
    """
    SHIFT: tl.constexpr = (0x88 if BITS == 4 else 0x80) * 0x0101 - 2**16
    if SIGNED:
        words = words ^ SHIFT
    if ASSEMBLY:
        if BITS == 4:
            first, second, third, fourth = tl.inline_asm_elementwise(
                """{
                .reg .b32 upper;
                shr.b32 upper, $4, 8;
                and.b32 $0, $4, 0x000f000f;
                and.b32 $1, $4, 0x00f000f0;
                and.b32 $2, upper, 0x000f000f;
                and.b32 $3, upper, 0x00f000f0;
                }""",
                "=r,=r,=r,=r,r", [words], dtype=(tl.float16,) * 4, is_pure=True, pack=2,
            )  # fmt: skip
        else:
            first, second = tl.inline_asm_elementwise(
                """{
                and.b32 $0, $2, 0x00ff00ff;
                prmt.b32 $1, $2, 0, 0x4341;
                }""",
                "=r,=r,r", [words], dtype=(tl.float16,) * 2, is_pure=True, pack=2,
            )  # fmt: skip
            third, fourth = first, second
    else:
        first = _place(words, 0, 0xF if BITS == 4 else 0xFF)
        second = _place(words, 0, 0xF0) if BITS == 4 else _place(words, 8, 0xFF)
        third = _place(words, 8, 0xF)
        fourth = _place(words, 8, 0xF0)
    return first, second, third, fourth


@triton.jit
def _place(words, PLACES: tl.constexpr, MASK: tl.constexpr):
    return ((words >> PLACES) & MASK).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def read_queries(at, inside_rows, PLACES: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr):
    """Return the columns of queries that meet each of the ``PLACES`` codes of a word.

    Each is (words, rows); ``at`` is a line of where the rows start.
    """
    columns = PLACES * tl.arange(0, WORDS)
    rows = inside_rows[None, :]
    first = tl.load(at + columns[:, None], mask=rows & (columns < WIDTH)[:, None], other=0.0)
    second, third, fourth = first, first, first
    if PLACES > 1:
        columns += 1
        second = tl.load(at + columns[:, None], mask=rows & (columns < WIDTH)[:, None], other=0.0)
    if PLACES > 2:
        columns += 1
        third = tl.load(at + columns[:, None], mask=rows & (columns < WIDTH)[:, None], other=0.0)
        columns += 1
        fourth = tl.load(at + columns[:, None], mask=rows & (columns < WIDTH)[:, None], other=0.0)
    return first, second, third, fourth


@triton.jit
def queries_for_codes(q, BITS: tl.constexpr):
    """Return queries that meet codes as they are, the factor of their products, and their sums.

    Factor and sums are lines, (1, rows).

    A power of two brings any row of a 16-bit type into the range of float16.
    """
    first, second = q[0].to(tl.float32), q[1].to(tl.float32)
    third, fourth = q[2].to(tl.float32), q[3].to(tl.float32)
    total = tl.sum(first, 0) + tl.sum(second, 0)
    largest = tl.maximum(tl.max(tl.abs(first), 0), tl.max(tl.abs(second), 0))
    if BITS == 4:
        total += tl.sum(third, 0) + tl.sum(fourth, 0)
        largest = tl.maximum(largest, tl.max(tl.abs(third), 0))
        largest = tl.maximum(largest, tl.max(tl.abs(fourth), 0))
        second = second / 16
        fourth = fourth / 16
    step = tl.math.exp2(tl.ceil(tl.math.log2(tl.maximum(largest, 1e-30))))[None, :]
    dtype: tl.constexpr = tl.float32 if q[0].dtype == tl.float32 else tl.float16
    scaled = (
        (first / step).to(dtype),
        (second / step).to(dtype),
        (third / step).to(dtype),
        (fourth / step).to(dtype),
    )
    return scaled, step * UNIT, total[None, :]


@triton.jit
def scores_of(q, words, BITS: tl.constexpr, SIGNED: tl.constexpr, ASSEMBLY: tl.constexpr,
            PRECISION: tl.constexpr):  # fmt: skip
    """Return products of keys, whose words are (keys, words), and queries, as (keys, rows)."""
    if BITS == 0:
        scores = tl.dot(words, q[0], input_precision=PRECISION)
    else:
        codes = widen(words, BITS, SIGNED, ASSEMBLY)
        scores = tl.dot(codes[0].to(q[0].dtype), q[0], input_precision=PRECISION)
        scores = tl.dot(codes[1].to(q[0].dtype), q[1], scores, input_precision=PRECISION)
        if BITS == 4:
            scores = tl.dot(codes[2].to(q[0].dtype), q[2], scores, input_precision=PRECISION)
            scores = tl.dot(codes[3].to(q[0].dtype), q[3], scores, input_precision=PRECISION)
    return scores


@triton.jit
def read_scales(scale, offset, at, inside, OFFSET: tl.constexpr):
    """Return scales and offsets of codes as they lie; 16-bit ones side by side in one word."""
    scales = tl.load(scale + at, mask=inside, other=0.0)
    PAIRED: tl.constexpr = OFFSET and scale.dtype.element_ty.primitive_bitwidth == 16
    if PAIRED:
        shifts = tl.load(offset + at, mask=inside, other=0.0)
        low = scales.to(tl.uint16, bitcast=True).to(tl.uint32)
        words = low | (shifts.to(tl.uint16, bitcast=True).to(tl.uint32) << 16)
        shifts = words
        scales = words
    elif OFFSET:
        shifts = tl.load(offset + at, mask=inside, other=0.0)
    else:
        shifts = scales
    return scales, shifts


@triton.jit
def scales_of(read, DTYPE: tl.constexpr, BITS: tl.constexpr, OFFSET: tl.constexpr):
    """Return scales, and the values that codes of zero bits stand for, in float32."""
    scales, shifts = read
    PAIRED: tl.constexpr = OFFSET and DTYPE.primitive_bitwidth == 16
    if PAIRED:
        shifts = (scales >> 16).to(tl.uint16).to(DTYPE, bitcast=True).to(tl.float32)
        scales = scales.to(tl.uint16).to(DTYPE, bitcast=True).to(tl.float32)
    elif OFFSET:
        scales = scales.to(tl.float32)
        shifts = shifts.to(tl.float32)
    else:
        scales = scales.to(tl.float32)
        shifts = scales * (-8.0 if BITS == 4 else -128.0)
    return scales, shifts


@triton.jit
def nearly_log2(x):
    """Return the binary logarithm of positive normal numbers, or up to 0.09 less."""
    return x.to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-23 - 127.0


@triton.jit
def add_values(sums, weights, words, decay, BITS: tl.constexpr, SIGNED: tl.constexpr,
                ASSEMBLY: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Return sums after some more values, whose words are (words, keys).

    Sums are (words, rows), weights (keys, rows), and ``decay`` is a line of the rows.
    """
    first, second, third, fourth = sums
    if BITS == 0:
        first = tl.dot(words, weights, first * decay, input_precision=PRECISION)
    else:
        codes = widen(words, BITS, SIGNED, ASSEMBLY)
        dtype: tl.constexpr = weights.dtype
        first = tl.dot(codes[0].to(dtype), weights, first * decay, input_precision=PRECISION)
        second = tl.dot(codes[1].to(dtype), weights, second * decay, input_precision=PRECISION)
        if BITS == 4:
            third = tl.dot(codes[2].to(dtype), weights, third * decay, input_precision=PRECISION)
            fourth = tl.dot(codes[3].to(dtype), weights, fourth * decay, input_precision=PRECISION)
    return first, second, third, fourth


@triton.jit
def in_order(sums, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return sums as (rows, columns), columns as they follow one another, in full size."""
    first, second, third, fourth = sums
    first, second, third, fourth = first.T, second.T, third.T, fourth.T
    if BITS == 4:
        even = tl.join(first, third)
        odd = tl.join(second, fourth) / 16
        ordered = tl.reshape(tl.join(even, odd), (ROWS, COLUMNS)) * UNIT
    elif BITS == 8:
        ordered = tl.reshape(tl.join(first, second), (ROWS, COLUMNS)) * UNIT
    else:
        ordered = first
    return ordered
