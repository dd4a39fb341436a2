"""Products of few rows with packed weights, which are read once and widened in registers.

A byte holds two neighbouring codes. As signed bytes, ``byte << 4`` is 16 times the first and
``byte & 0xF0`` 16 times the second: the exact sums are 16 times too large and shifted back.
"""

import triton
import triton.language as tl

from tesseral.runtime.cuda.overlap import let_next_start, wait_for_previous


@triton.jit
def _choose(tile, a, b, c, tiles_a, tiles_b):
    """Return which of three pointers a tile of rows belongs to."""
    chosen = a
    if tile >= tiles_a + tiles_b:
        chosen = c
    elif tile >= tiles_a:
        chosen = b
    return chosen


@triton.jit
def _place(tile, rows_a, rows_b, rows_c, BLOCK: tl.constexpr):
    """Return tiles of the first two weights, and of this tile: its number, rows, columns before."""
    tiles_a = tl.cdiv(rows_a, BLOCK)
    tiles_b = tl.cdiv(rows_b, BLOCK)
    count = rows_a
    own = tile
    before = tile * 0
    if tile >= tiles_a + tiles_b:
        count = rows_c
        own = tile - tiles_a - tiles_b
        before = rows_a + rows_b
    elif tile >= tiles_a:
        count = rows_b
        own = tile - tiles_a
        before = rows_a
    return tiles_a, tiles_b, own, count, before


@triton.jit
def _dot4(a, b, sums, ASSEMBLY: tl.constexpr):
    """Add to ``sums`` the products of the four signed bytes of two words."""
    if ASSEMBLY:
        sums = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, sums],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        for shift in tl.static_range(0, 32, 8):
            sums += ((a << (24 - shift)) >> 24) * ((b << (24 - shift)) >> 24)
    return sums


@triton.jit
def _every_second(a, b, SECOND: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return the even or the odd ones of eight bytes in two words, as a word."""
    if ASSEMBLY:
        if SECOND:
            word = tl.inline_asm_elementwise(
                "prmt.b32 $0, $1, $2, 0x7531;", "=r,r,r", [a, b],
                dtype=tl.int32, is_pure=True, pack=1,
            )  # fmt: skip
        else:
            word = tl.inline_asm_elementwise(
                "prmt.b32 $0, $1, $2, 0x6420;", "=r,r,r", [a, b],
                dtype=tl.int32, is_pure=True, pack=1,
            )  # fmt: skip
    else:
        shift: tl.constexpr = 8 if SECOND else 0
        low = ((a >> shift) & 255) | (((a >> (shift + 16)) & 255) << 8)
        high = ((b >> shift) & 255) | (((b >> (shift + 16)) & 255) << 8)
        word = low | (high << 16)
    return word


@triton.jit
def _nibbles(packed, HIGH: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return 16 times the low or the high codes of bytes."""
    if ASSEMBLY:
        if HIGH:
            codes = tl.inline_asm_elementwise(
                "and.b32 $0, $1, 0xf0f0f0f0;", "=r,r", [packed],
                dtype=tl.int8, is_pure=True, pack=4,
            )  # fmt: skip
        else:
            codes = tl.inline_asm_elementwise(
                "{ .reg .b32 up; shl.b32 up, $1, 4; and.b32 $0, up, 0xf0f0f0f0; }", "=r,r",
                [packed], dtype=tl.int8, is_pure=True, pack=4,
            )  # fmt: skip
    elif HIGH:
        codes = (packed & 0xF0).to(tl.int8, bitcast=True)
    else:
        codes = (packed << 4).to(tl.int8, bitcast=True)
    return codes


@triton.jit
def _halves(pairs, SECOND: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return the first or the second of two bytes in words of 16 bits."""
    if ASSEMBLY:
        if SECOND:
            codes = tl.inline_asm_elementwise(
                "prmt.b32 $0, $1, $2, 0x7531;", "=r,r,r", [pairs],
                dtype=tl.int8, is_pure=True, pack=4,
            )  # fmt: skip
        else:
            codes = tl.inline_asm_elementwise(
                "prmt.b32 $0, $1, $2, 0x6420;", "=r,r,r", [pairs],
                dtype=tl.int8, is_pure=True, pack=4,
            )  # fmt: skip
    elif SECOND:
        codes = (pairs >> 8).to(tl.int8)
    else:
        codes = pairs.to(tl.int8)
    return codes


@triton.jit
def one_row_kernel(
    x,
    x_scale,
    weight_a,
    weight_b,
    weight_c,
    scales,
    biases,
    residual,
    output,
    rows_a,
    rows_b,
    rows_c,
    WORDS: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write ``(sums * x_scale) * scale + bias`` of one row with up to three weights.

    ``x`` holds four codes in a word, weights eight, WORDS in a row; scales, biases and outputs
    of all weights lie one after the other. ``residual``, of the shape of the output, is added.
    """
    tile = tl.program_id(0)
    tiles_a, tiles_b, own, count, before = _place(tile, rows_a, rows_b, rows_c, BLOCK_N)
    weight = _choose(tile, weight_a, weight_b, weight_c, tiles_a, tiles_b)
    rows = own * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < count
    # rows past the last read it again
    base = weight + tl.minimum(rows, count - 1).to(tl.int64)[:, None] * WORDS
    sums = tl.zeros([BLOCK_N, BLOCK_K], tl.int32)
    for start in tl.static_range(0, WORDS, BLOCK_K):
        words = start + tl.arange(0, BLOCK_K)
        if start + BLOCK_K <= WORDS:
            packed = tl.load(base + words[None, :])
        else:
            packed = tl.load(base + words[None, :], mask=(words < WORDS)[None, :], other=0)
        if DEPENDENT and start == 0:
            # the first weights come while the row is still being made
            let_next_start()
            wait_for_previous()
        first = tl.load(x + 2 * words, mask=words < WORDS, other=0)
        second = tl.load(x + 2 * words + 1, mask=words < WORDS, other=0)
        even = _every_second(first, second, False, ASSEMBLY)
        odd = _every_second(first, second, True, ASSEMBLY)
        low = (packed << 4) & -252645136  # 0xF0F0F0F0
        high = packed & -252645136
        even, low = tl.broadcast(even[None, :], low)
        odd, high = tl.broadcast(odd[None, :], high)
        sums = _dot4(low, even, sums, ASSEMBLY)
        sums = _dot4(high, odd, sums, ASSEMBLY)
    result = tl.sum(sums, 1) >> 4
    columns = before + rows
    if output.dtype.element_ty != tl.int32:
        result = result.to(tl.float32) * tl.load(x_scale)
        result = result * tl.load(scales + columns, mask=inside, other=0.0)
        if BIAS:
            result += tl.load(biases + columns, mask=inside, other=0.0)
    if RESIDUAL:
        result += tl.load(residual + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + columns, result.to(output.dtype.element_ty), mask=inside)


@triton.jit
def few_rows_kernel(
    x,
    x_scale,
    weight_a,
    weight_b,
    weight_c,
    scales,
    biases,
    residual,
    output,
    partial,
    counters,
    rows_a,
    rows_b,
    rows_c,
    n_rows,
    width,
    BYTES: tl.constexpr,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write ``(sums * x_scale) * scale + bias`` of some rows with up to three weights.

    ``x`` holds two codes in a word of 16 bits, weights BYTES in a row; ``width`` is the number of
    outputs of all weights. ``residual``, of the shape of the output, is added. With SPLITS above
    1, programs share the columns of a tile: each leaves its sums in ``partial`` (SPLITS, tiles of
    rows, tiles, BLOCK_N, BLOCK_M), and the last of them to come adds all up, as ``counters`` tell
    it; it leaves them at zero.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    tiles_a, tiles_b, own, count, before = _place(tile, rows_a, rows_b, rows_c, BLOCK_N)
    weight = _choose(tile, weight_a, weight_b, weight_c, tiles_a, tiles_b)
    rows = own * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    base = weight + tl.minimum(rows, count - 1).to(tl.int64)[:, None] * BYTES
    codes = x + tl.minimum(tokens, n_rows - 1)[:, None] * BYTES
    PART: tl.constexpr = (BYTES + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    if DEPENDENT:
        let_next_start()
        wait_for_previous()
    sums = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
    for start in tl.range(0, PART, BLOCK_K, num_stages=STAGES):
        at = split * PART + start + tl.arange(0, BLOCK_K)
        if BYTES % (SPLITS * BLOCK_K) == 0:
            packed = tl.load(base + at[None, :])
            pairs = tl.load(codes + at[None, :])
        else:
            packed = tl.load(base + at[None, :], mask=(at < BYTES)[None, :], other=0)
            pairs = tl.load(codes + at[None, :], mask=(at < BYTES)[None, :], other=0)
        even = _halves(pairs, False, ASSEMBLY)
        odd = _halves(pairs, True, ASSEMBLY)
        sums = tl.dot(_nibbles(packed, False, ASSEMBLY), even.T, sums, out_dtype=tl.int32)
        sums = tl.dot(_nibbles(packed, True, ASSEMBLY), odd.T, sums, out_dtype=tl.int32)
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
        sums = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
        for other in tl.static_range(SPLITS):
            sums += tl.load(mine + other * step, cache_modifier=".cg")
        tl.store(counters + place, 0)
    inside = rows < count
    columns = before + rows
    result = sums >> 4
    if output.dtype.element_ty != tl.int32:
        result = result.to(tl.float32)
        result *= tl.load(x_scale + tokens, mask=tokens < n_rows, other=0.0)[None, :]
        result *= tl.load(scales + columns, mask=inside, other=0.0)[:, None]
        if BIAS:
            result += tl.load(biases + columns, mask=inside, other=0.0)[:, None]
    at = tokens.to(tl.int64)[None, :] * width + columns[:, None]
    keep = (tokens < n_rows)[None, :] & inside[:, None]
    if RESIDUAL:
        result += tl.load(residual + at, mask=keep, other=0.0).to(tl.float32)
    tl.store(output + at, result.to(output.dtype.element_ty), mask=keep)
