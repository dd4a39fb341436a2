"""Heads of queries, keys and values on their way to attention: rotated, transformed, encoded."""

import triton
import triton.language as tl

from tesseral.quantization.kernels.triton.kernels.elements import power_above
from tesseral.runtime.cuda.overlap import let_next_start, wait_for_previous

_ROUND = tl.constexpr(12582912.0)
_TINY = tl.constexpr(2.0**-14)
_HUGE = tl.constexpr(65504.0)


@triton.jit
def _rows_of_side(
    x,
    batch_step,
    head_step,
    token_step,
    matrix,
    unit,
    clip,
    cosine,
    sine,
    turn_batch,
    turn_token,
    data,
    data_batch,
    data_head,
    data_token,
    scale,
    offset,
    scale_batch,
    scale_head,
    scale_token,
    dense,
    dense_batch,
    dense_head,
    dense_token,
    place,
    heads,
    tokens,
    count,
    tile,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
    TRANSFORM: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    BITS: tl.constexpr,
    PLACED: tl.constexpr,
    DENSE: tl.constexpr,
):
    """Store some rows of one side, counted by batch, head and token; BITS of 0 stores numbers.

    With PLACED the first token goes to slot ``place``; with DENSE, what codes stand for goes to
    ``dense``, from slot 0 on.
    """
    rows = tile * BLOCK + tl.arange(0, BLOCK)
    there = rows < count
    token = rows % tokens
    head = rows // tokens % heads
    batch = (rows // tokens // heads).to(tl.int64)
    columns = tl.arange(0, PAD)
    inside = there[:, None] & (columns < SIZE)[None, :]
    base = x + batch * batch_step + head * head_step + token.to(tl.int64) * token_step
    values = tl.load(base[:, None] + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if TURN:
        partner = (columns + SIZE // 2) % SIZE
        other = tl.load(base[:, None] + partner[None, :], mask=inside, other=0.0).to(tl.float32)
        angle = (batch * turn_batch + token * turn_token)[:, None] + columns[None, :]
        cosines = tl.load(cosine + angle, mask=inside, other=0.0).to(tl.float32)
        sines = tl.load(sine + angle, mask=inside, other=0.0).to(tl.float32)
        other = tl.where((columns < SIZE // 2)[None, :], -other, other)
        values = values * cosines + other * sines
    if TRANSFORM:
        square = tl.arange(0, PAD)[:, None] * PAD + columns[None, :]
        factor = tl.load(matrix + square)
        if HALF:
            largest = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1)
            step, inverse = power_above(largest)
            values = tl.dot((values * inverse[:, None]).to(tl.float16), factor)
            values = values * (step * unit)[:, None]
        else:
            values = tl.dot(values, factor, input_precision=PRECISION)
    slot = token.to(tl.int64)
    if PLACED:
        slot += tl.load(place)
    target = data + batch * data_batch + head * data_head + slot * data_token
    if BITS == 0:
        numbers = values.to(data.dtype.element_ty)
        tl.store(target[:, None] + columns[None, :], numbers, mask=inside)
    else:
        low = tl.min(tl.where(inside, values, float("inf")), 1) * tl.load(clip).to(tl.float32)
        high = tl.max(tl.where(inside, values, float("-inf")), 1)
        high = high * tl.load(clip + 1).to(tl.float32)
        low = tl.minimum(tl.maximum(low, -_HUGE), _HUGE)
        high = tl.minimum(tl.maximum(high, -_HUGE), _HUGE)
        zero = low.to(tl.float16)
        TOP: tl.constexpr = 2**BITS - 1
        size = (high - zero.to(tl.float32)) / TOP
        size = tl.maximum(size, _TINY).to(tl.float16)
        steps = (values - zero.to(tl.float32)[:, None]) / size.to(tl.float32)[:, None]
        codes = (tl.minimum(tl.maximum(steps, 0.0), TOP) + _ROUND - _ROUND).to(tl.int32)
        if BITS == 4:
            first, second = tl.split(tl.reshape(codes, [BLOCK, PAD // 2, 2]))
            half = tl.arange(0, PAD // 2)
            kept = there[:, None] & (half < SIZE // 2)[None, :]
            pairs = (first | (second << 4)).to(tl.uint8)
            tl.store(target[:, None] + half[None, :], pairs, mask=kept)
        else:
            tl.store(target[:, None] + columns[None, :], codes.to(tl.uint8), mask=inside)
        if DENSE:
            numbers = codes.to(tl.float32) * size.to(tl.float32)[:, None]
            numbers += zero.to(tl.float32)[:, None]
            into = dense + batch * dense_batch + head * dense_head
            into += token.to(tl.int64) * dense_token
            numbers = numbers.to(dense.dtype.element_ty)
            tl.store(into[:, None] + columns[None, :], numbers, mask=inside)
        at = batch * scale_batch + head * scale_head + slot * scale_token
        tl.store(scale + at, size, mask=there)
        tl.store(offset + at, zero, mask=there)


@triton.jit
def encode_kernel(
    x,
    matrix,
    clip,
    data,
    scale,
    offset,
    batch_step,
    head_step,
    token_step,
    data_batch,
    data_head,
    data_token,
    scale_batch,
    scale_head,
    scale_token,
    heads,
    tokens,
    count,
    unit,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    TRANSFORM: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    BITS: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Transform rows of heads and encode them, asymmetric, with one scale and offset each."""
    if DEPENDENT:
        let_next_start()
        wait_for_previous()
    _rows_of_side(
        x, batch_step, head_step, token_step, matrix, unit, clip, x, x, 0, 0,
        data, data_batch, data_head, data_token,
        scale, offset, scale_batch, scale_head, scale_token, x, 0, 0, 0, x,
        heads, tokens, count, tl.program_id(0),
        SIZE, PAD, BLOCK, False, TRANSFORM, HALF, PRECISION, BITS, False, False,
    )  # fmt: skip


@triton.jit
def rotate_and_encode_kernel(
    query,
    key,
    value,
    cosine,
    sine,
    query_matrix,
    key_matrix,
    key_clip,
    value_clip,
    output,
    key_data,
    key_scale,
    key_offset,
    value_data,
    value_scale,
    value_offset,
    key_dense,
    value_dense,
    place,
    batch_step,
    token_step,
    turn_batch,
    turn_token,
    output_batch,
    output_head,
    output_token,
    key_batch,
    key_head,
    key_token,
    value_batch,
    value_head,
    value_token,
    scale_batch,
    scale_head,
    scale_token,
    dense_batch,
    dense_head,
    dense_token,
    q_heads,
    kv_heads,
    tokens,
    batches,
    query_unit,
    key_unit,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    TRANSFORM: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    DENSE: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    """Rotate, transform and encode the new tokens of a decoder block, into its cache.

    Heads of a token lie side by side. Queries become numbers in ``output``; keys and values go to
    slot ``place`` of the cache and on. Both caches lie alike. With DENSE, what is stored there
    also becomes numbers.
    """
    if DEPENDENT:
        let_next_start()
        wait_for_previous()
    query_rows = batches * q_heads * tokens
    rows = batches * kv_heads * tokens
    query_tiles = tl.cdiv(query_rows, BLOCK)
    tiles = tl.cdiv(rows, BLOCK)
    tile = tl.program_id(0)
    if tile < query_tiles:
        _rows_of_side(
            query, batch_step, SIZE, token_step, query_matrix, query_unit, key_clip,
            cosine, sine, turn_batch, turn_token,
            output, output_batch, output_head, output_token,
            key_scale, key_offset, 0, 0, 0, query, 0, 0, 0, place,
            q_heads, tokens, query_rows, tile,
            SIZE, PAD, BLOCK, True, TRANSFORM, HALF, PRECISION, 0, False, False,
        )  # fmt: skip
    elif tile < query_tiles + tiles:
        _rows_of_side(
            key, batch_step, SIZE, token_step, key_matrix, key_unit, key_clip,
            cosine, sine, turn_batch, turn_token,
            key_data, key_batch, key_head, key_token,
            key_scale, key_offset, scale_batch, scale_head, scale_token,
            key_dense, dense_batch, dense_head, dense_token, place,
            kv_heads, tokens, rows, tile - query_tiles,
            SIZE, PAD, BLOCK, True, TRANSFORM, HALF, PRECISION, KEY_BITS, True, DENSE,
        )  # fmt: skip
    else:
        _rows_of_side(
            value, batch_step, SIZE, token_step, key_matrix, key_unit, value_clip,
            cosine, sine, turn_batch, turn_token,
            value_data, value_batch, value_head, value_token,
            value_scale, value_offset, scale_batch, scale_head, scale_token,
            value_dense, dense_batch, dense_head, dense_token, place,
            kv_heads, tokens, rows, tile - query_tiles - tiles,
            SIZE, PAD, BLOCK, False, False, HALF, PRECISION, VALUE_BITS, True, DENSE,
        )  # fmt: skip
