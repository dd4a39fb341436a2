"""Products of many rows: weights widened once to bytes, then multiplied tile by tile."""

import triton
import triton.language as tl


@triton.jit
def widen_kernel(packed, wide, count, FLOATS: tl.constexpr, BLOCK: tl.constexpr):
    """Write four codes of 16 bits each as the bytes of a word.

    Signed bytes of the codes; with FLOATS, float8 (e4m3) of ``codes / 512``, whose bits are sign
    and magnitude of the code.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    codes = tl.load(packed + at, mask=at < count, other=0).to(tl.uint16, bitcast=True)
    word = codes.to(tl.uint32)
    word = (word | (word << 8)) & 0x00FF00FF
    word = (word | (word << 4)) & 0x0F0F0F0F
    negative = (word >> 3) & 0x01010101
    if FLOATS:
        word = ((word ^ (negative * 15)) + negative) | (negative << 7)
    else:
        word = word | (negative * 0xF0)
    tl.store(wide + at, word.to(tl.int32, bitcast=True), mask=at < count)


@triton.jit
def many_rows_kernel(
    x,
    weight,
    x_scale,
    scale,
    bias,
    residual,
    output,
    n_rows,
    n_columns,
    length,
    output_step,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write ``(sums * x_scale) * scale + bias``; programs take tile after tile.

    ``x`` (rows, length) and ``weight`` (columns, length) are descriptors of bytes; ``residual``, of
    the shape of the output, is added.
    """
    tiles_m = tl.cdiv(n_rows, BLOCK_M)
    tiles_n = tl.cdiv(n_columns, BLOCK_N)
    steps = tl.cdiv(length, BLOCK_K)
    per_group = GROUP * tiles_n
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        first_m = tile // per_group * GROUP
        height = tl.minimum(tiles_m - first_m, GROUP)
        row = (first_m + tile % per_group % height) * BLOCK_M
        column = tile % per_group // height * BLOCK_N
        sums = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        for step in tl.range(steps, num_stages=STAGES):
            a = x.load([row, step * BLOCK_K])
            b = weight.load([column, step * BLOCK_K])
            sums = tl.dot(a, b.T, sums, out_dtype=tl.int32)
        rows = row + tl.arange(0, BLOCK_M)
        columns = column + tl.arange(0, BLOCK_N)
        result = sums
        if output.dtype.element_ty != tl.int32:
            result = result.to(tl.float32)
            result *= tl.load(x_scale + rows, mask=rows < n_rows, other=0.0)[:, None]
            result *= tl.load(scale + columns, mask=columns < n_columns, other=0.0)[None, :]
            if BIAS:
                result += tl.load(bias + columns, mask=columns < n_columns, other=0.0)[None, :]
        at = rows.to(tl.int64)[:, None] * output_step + columns[None, :]
        keep = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
        if RESIDUAL:
            result += tl.load(residual + at, mask=keep, other=0.0).to(tl.float32)
        tl.store(output + at, result.to(output.dtype.element_ty), mask=keep)
