"""Rows of 16-bit numbers times packed weights, whose codes are multiplied as they are.

A code plus 8, ``c`` from 0 to 15, has the bits of the float16 number ``c / 2^24``, and of
``c / 2^20`` four places up: tensor cores multiply these subnormal numbers exactly, so widening is
masking. Rows make up for it: each is divided by a power of two above its largest number, and
``sum((c - 8) x)`` is ``sum(c x) - 8 sum(x)``.
"""

import triton
import triton.language as tl

from tesseral.quantization.kernels.triton.kernels.elements import power_above
from tesseral.quantization.kernels.triton.kernels.rows import _product
from tesseral.runtime.cuda.overlap import let_next_start, wait_for_previous

_UNIT = tl.constexpr(2.0**24)
_MIDDLE = tl.constexpr(-30584)  # the bits 0x8888


@triton.jit
def spread_rows_kernel(
    x,
    planes,
    factors,
    totals,
    row_step,
    WORDS: tl.constexpr,
    PAD: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Write rows ``x`` (m, 4 WORDS) as float16 planes (m, 4, WORDS), one for each code of a word.

    Numbers are divided by a power of two, those of the second and fourth plane by 16 more;
    ``factors`` gets the power of two, ``totals`` 8 times the sum of a row after it was divided.
    """
    if DEPENDENT:
        let_next_start()
        wait_for_previous()
    row = tl.program_id(0)
    words = tl.arange(0, PAD)
    places = tl.arange(0, 4)
    at = row.to(tl.int64) * row_step + 4 * words[:, None] + places[None, :]
    inside = (words < WORDS)[:, None] & (places < 4)[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    step, inverse = power_above(largest)
    # what is not finite stays so, and so does everything that it is added to
    numbers = (values * inverse).to(tl.float16)
    total = tl.sum(numbers.to(tl.float32))
    odd = (places % 2 == 1)[None, :]
    numbers = tl.where(odd, numbers.to(tl.float32) / 16, numbers.to(tl.float32)).to(tl.float16)
    into = row.to(tl.int64) * (4 * WORDS) + places[None, :] * WORDS + words[:, None]
    tl.store(planes + into, numbers, mask=inside)
    tl.store(factors + row, step)
    tl.store(totals + row, 8 * total)


@triton.jit
def transform_rows_kernel(
    x,
    left,
    right,
    output,
    factors,
    totals,
    n_rows,
    row_step,
    unit,
    SIZE_1: tl.constexpr,
    SIZE_2: tl.constexpr,
    PAD_1: tl.constexpr,
    PAD_2: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    PLANES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Write rows ``x (P1 (x) P2)``: as planes, factors and totals with PLANES, else as numbers.

    ``left``, ``right`` and ``unit`` are as for the kernel that turns rows into codes. With PLANES
    SIZE_2 is a multiple of 4.
    """
    if DEPENDENT:
        let_next_start()
    rows = tl.arange(0, PAD_1)
    columns = tl.arange(0, PAD_2)
    at = rows[:, None] * SIZE_2 + columns[None, :]
    inside = (rows < SIZE_1)[:, None] & (columns < SIZE_2)[None, :]
    WIDTH: tl.constexpr = SIZE_1 * SIZE_2
    if LEFT:
        p1 = tl.load(left + rows[:, None] * PAD_1 + rows[None, :])
    if RIGHT:
        p2 = tl.load(right + columns[:, None] * PAD_2 + columns[None, :])
    if DEPENDENT:
        wait_for_previous()
    for row in tl.range(tl.program_id(0), n_rows, tl.num_programs(0)):
        base = tl.cast(row, tl.int64)
        values = tl.load(x + base * row_step + at, mask=inside, other=0.0).to(tl.float32)
        step, inverse = power_above(tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF))
        factor = unit * step
        values = (values * inverse).to(tl.float16)
        if RIGHT:
            values = _product(values, p2, None)
            if LEFT:
                values = values.to(tl.float16)
        if LEFT:
            values = _product(p1, values, None)
        values = values.to(tl.float32)
        if PLANES:
            step, inverse = power_above(tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF))
            numbers = (values * inverse).to(tl.float16).to(tl.float32)
            tl.store(factors + row, factor * step)
            tl.store(totals + row, 8 * tl.sum(numbers))
            numbers = tl.where((columns % 2 == 1)[None, :], numbers / 16, numbers).to(tl.float16)
            words = rows[:, None] * (SIZE_2 // 4) + (columns // 4)[None, :]
            into = base * WIDTH + (columns % 4)[None, :] * (WIDTH // 4) + words
            tl.store(output + into, numbers, mask=inside)
        else:
            numbers = (values * factor).to(output.dtype.element_ty)
            tl.store(output + base * WIDTH + at, numbers, mask=inside)


@triton.jit
def _numbers(words, ASSEMBLY: tl.constexpr):
    """Return the four codes of words of 16 bits, plus 8, as subnormal float16."""
    words = words ^ _MIDDLE
    if ASSEMBLY:
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
        first = (words & 0xF).to(tl.int16).to(tl.float16, bitcast=True)
        second = (words & 0xF0).to(tl.int16).to(tl.float16, bitcast=True)
        third = ((words >> 8) & 0xF).to(tl.int16).to(tl.float16, bitcast=True)
        fourth = ((words >> 8) & 0xF0).to(tl.int16).to(tl.float16, bitcast=True)
    return first, second, third, fourth


@triton.jit
def weight_only_kernel(
    planes,
    factors,
    totals,
    weight,
    scales,
    biases,
    output,
    partial,
    counters,
    n_rows,
    n_outputs,
    WORDS: tl.constexpr,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write ``x @ weight.T * scale + bias`` of some rows, given as the kernel above leaves them.

    ``weight`` (n_outputs, WORDS) holds four codes in a word. With SPLITS above 1, programs share
    the columns of a tile: each leaves its sums in ``partial``, and the last of them to come, as
    ``counters`` tell it, adds all up in their order; it leaves the counter at zero.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    outputs = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    base = weight + tl.minimum(outputs, n_outputs - 1).to(tl.int64)[:, None] * WORDS
    x = planes + tl.minimum(tokens, n_rows - 1).to(tl.int64)[None, :] * (4 * WORDS)
    PART: tl.constexpr = (WORDS + SPLITS * BLOCK_W - 1) // (SPLITS * BLOCK_W) * BLOCK_W
    if DEPENDENT:
        let_next_start()
        wait_for_previous()
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(0, PART, BLOCK_W, num_stages=STAGES):
        at = split * PART + start + tl.arange(0, BLOCK_W)
        if WORDS % (SPLITS * BLOCK_W) == 0:
            words = tl.load(base + at[None, :])
            a = tl.load(x + at[:, None])
            b = tl.load(x + WORDS + at[:, None])
            c = tl.load(x + 2 * WORDS + at[:, None])
            d = tl.load(x + 3 * WORDS + at[:, None])
        else:
            kept = at < WORDS
            words = tl.load(base + at[None, :], mask=kept[None, :], other=0)
            a = tl.load(x + at[:, None], mask=kept[:, None], other=0.0)
            b = tl.load(x + WORDS + at[:, None], mask=kept[:, None], other=0.0)
            c = tl.load(x + 2 * WORDS + at[:, None], mask=kept[:, None], other=0.0)
            d = tl.load(x + 3 * WORDS + at[:, None], mask=kept[:, None], other=0.0)
        codes = _numbers(words, ASSEMBLY)
        sums = tl.dot(codes[0], a, sums)
        sums = tl.dot(codes[1], b, sums)
        sums = tl.dot(codes[2], c, sums)
        sums = tl.dot(codes[3], d, sums)
    if SPLITS > 1:
        cells = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        place = tl.program_id(2) * tl.num_programs(0) + tile
        step = tl.num_programs(0) * tl.num_programs(2) * BLOCK_N * BLOCK_M
        mine = partial + place * (BLOCK_N * BLOCK_M) + cells
        tl.store(mine + split * step, sums)
        tl.debug_barrier()
        arrived = tl.atomic_add(counters + place, 1, sem="acq_rel")
        if arrived < SPLITS - 1:
            return
        sums = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for other in tl.static_range(SPLITS):
            sums += tl.load(mine + other * step, cache_modifier=".cg")
        tl.store(counters + place, 0)
    there = tokens < n_rows
    inside = outputs < n_outputs
    result = sums * _UNIT - tl.load(totals + tokens, mask=there, other=0.0)[None, :]
    result *= tl.load(factors + tokens, mask=there, other=0.0)[None, :]
    result *= tl.load(scales + outputs, mask=inside, other=0.0).to(tl.float32)[:, None]
    if BIAS:
        result += tl.load(biases + outputs, mask=inside, other=0.0).to(tl.float32)[:, None]
    at = tokens.to(tl.int64)[None, :] * n_outputs + outputs[:, None]
    keep = there[None, :] & inside[:, None]
    tl.store(output + at, result.to(output.dtype.element_ty), mask=keep)


@triton.jit
def to_values_kernel(packed, scales, values, count, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """Write the values that ``count`` bytes of two codes stand for; rows have BYTES bytes."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    codes = tl.load(packed + at, mask=inside, other=0).to(tl.int8, bitcast=True)
    scale = tl.load(scales + at // BYTES, mask=inside, other=0.0).to(tl.float32)
    low = ((codes << 4) >> 4).to(tl.float32) * scale
    high = (codes >> 4).to(tl.float32) * scale
    pairs = tl.join(low, high).to(values.dtype.element_ty)
    into = 2 * at[:, None] + tl.arange(0, 2)[None, :]
    tl.store(values + into, pairs, mask=inside[:, None] & (into >= 0))
