"""Rows transformed and turned into codes by one program each, while they lie in registers."""

import triton
import triton.language as tl

from tesseral.quantization.kernels.triton.kernels.elements import (
    code_bits,
    ends,
    float_bits,
    limited,
    power_above,
    silu,
    size_bits,
    square_sum_and_size,
)
from tesseral.runtime.cuda.overlap import let_next_start, wait_for_previous

_SMALLEST = tl.constexpr(2.0**-60)


@triton.jit
def _product(a, b, PRECISION: tl.constexpr):
    if PRECISION is None:
        product = tl.dot(a, b)
    else:
        product = tl.dot(a, b, input_precision=PRECISION)
    return product


@triton.jit
def quantize_rows_kernel(
    x,
    gate,
    norm,
    left,
    right,
    clip,
    codes,
    scale,
    n_rows,
    row_step,
    gate_step,
    epsilon,
    unit,
    SIZE_1: tl.constexpr,
    SIZE_2: tl.constexpr,
    PAD_1: tl.constexpr,
    PAD_2: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    BITS: tl.constexpr,
    FORM: tl.constexpr,
    STAGES: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Write codes and scales of rows ``x (P1 (x) P2)``.

    A row is laid out as a matrix X of (SIZE_1, SIZE_2), padded with zeros; ``left`` is P1
    transposed and ``right`` P2, padded alike, both divided by powers of two whose product is
    ``unit``. With HALF, products are of float16: a row is divided by a power of two before,
    which fits any row of finite numbers into that type. Sums are float32.

    ``norm`` makes it RMSNorm with these weights before the transform, ``gate`` the product
    ``silu(gate) x``. FORM says how codes are stored: ``"bytes"``, ``"pairs"`` of 4 bits in a
    byte, or ``"floats"``: float8 (e4m3) of ``codes / 512``, whose scale is 512 times as large.
    """
    if DEPENDENT:
        let_next_start()
    rows = tl.arange(0, PAD_1)
    columns = tl.arange(0, PAD_2)
    at = rows[:, None] * SIZE_2 + columns[None, :]
    WHOLE: tl.constexpr = SIZE_1 == PAD_1 and SIZE_2 == PAD_2
    WIDTH: tl.constexpr = SIZE_1 * SIZE_2
    TRANSFORM: tl.constexpr = LEFT or RIGHT
    inside = (rows < SIZE_1)[:, None] & (columns < SIZE_2)[None, :]
    least = tl.load(clip).to(tl.float32)
    largest_kept = tl.load(clip + 1).to(tl.float32)
    if LEFT:
        square = rows[:, None] * PAD_1 + rows[None, :]
        p1 = tl.load(left + square)
    if RIGHT:
        square = columns[:, None] * PAD_2 + columns[None, :]
        p2 = tl.load(right + square)
    if NORM:
        weights = tl.load(norm + at, mask=inside, other=0.0).to(tl.float32)
    if DEPENDENT:
        wait_for_previous()
    for row in tl.range(tl.program_id(0), n_rows, tl.num_programs(0), num_stages=STAGES):
        base = tl.cast(row, tl.int64)
        if WHOLE:
            loaded = tl.load(x + base * row_step + at)
        else:
            loaded = tl.load(x + base * row_step + at, mask=inside, other=0.0)
        values = loaded.to(tl.float32)
        if GATED:
            if WHOLE:
                gates = tl.load(gate + base * gate_step + at).to(tl.float32)
            else:
                gates = tl.load(gate + base * gate_step + at, mask=inside, other=0.0)
                gates = gates.to(tl.float32)
            values = values * silu(gates, ASSEMBLY)
        factor = unit
        if NORM:
            before = values
            values = values * weights
            total, largest = square_sum_and_size(before, values, ASSEMBLY)
            factor = factor * tl.rsqrt(total / WIDTH + epsilon)
        else:
            largest = size_bits(values, ASSEMBLY)
        finite = largest < 0x7F800000
        if TRANSFORM:
            if HALF:
                step, inverse = power_above(largest)
                factor = factor * step
                values = (values * inverse).to(tl.float16)
            if RIGHT:
                values = _product(values, p2, PRECISION)
                if LEFT and HALF:
                    values = values.to(tl.float16)
            if LEFT:
                values = _product(p1, values, PRECISION)
        low, high = ends(values, ASSEMBLY)  # with padding, that is with zero: the scale is the same
        low = low * least
        high = high * largest_kept
        far = tl.maximum(-low, high)
        near = tl.minimum(-low, high)
        TOP: tl.constexpr = 2 ** (BITS - 1)
        size = tl.maximum(tl.maximum(far / TOP, near / (TOP - 1)) * factor, _SMALLEST)
        size = tl.where(high > -low, -size, size)
        EXACT: tl.constexpr = not (TRANSFORM or NORM)
        per_step = factor / size
        if EXACT:
            values = tl.math.div_rn(values, values * 0.0 + size)
            per_step = 1.0
        values = limited(values, per_step, TOP, EXACT)
        size = tl.where(finite, size, float("nan"))
        if FORM == "pairs":
            whole = tl.reshape(code_bits(values, TOP, EXACT) & 15, [PAD_1, PAD_2 // 2, 2])
            first, second = tl.split(whole)
            half = tl.arange(0, PAD_2 // 2)
            into = rows[:, None] * (SIZE_2 // 2) + half[None, :]
            stored = (first | (second << 4)).to(tl.uint8)
            target = codes + base * (WIDTH // 2) + into
            if WHOLE:
                tl.store(target, stored)
            else:
                keep = (rows < SIZE_1)[:, None] & (half < SIZE_2 // 2)[None, :]
                tl.store(target, stored, mask=keep)
        else:
            if FORM == "floats":
                stored = float_bits(values, TOP, EXACT, ASSEMBLY)
                size = size * 512.0
            else:
                stored = code_bits(values, TOP, EXACT).to(tl.int8)
            target = codes + base * WIDTH + at
            if WHOLE:
                tl.store(target, stored)
            else:
                tl.store(target, stored, mask=inside)
        tl.store(scale + row, size)
