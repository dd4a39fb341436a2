"""Forward by rows: the query heads of a group share each read of their keys, codes included."""

import triton
import triton.language as tl

from tesseral.attention.backends.triton.kernels.codes import widen_bytes, widen_nibbles
from tesseral.attention.backends.triton.kernels.scores import (
    LOG2E,
    biased,
    end_key,
    finished,
    finite,
    first_key,
    sees,
    with_sink,
)


@triton.jit
def _scores(
    low,
    high,
    codes,
    BITS: tl.constexpr,
    SIGNED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return products of queries and keys; at 4 bits ``low`` has even columns, ``high`` odd."""
    if BITS == 4:
        even, odd = widen_nibbles(codes, SIGNED, ASSEMBLY)
        scores = tl.dot(low, even.to(low.dtype).T, input_precision=PRECISION)
        scores = tl.dot(high, odd.to(low.dtype).T, scores, input_precision=PRECISION)
    elif BITS == 8:
        numbers = widen_bytes(codes, SIGNED, ASSEMBLY).to(low.dtype)
        scores = tl.dot(low, numbers.T, input_precision=PRECISION)
    else:
        scores = tl.dot(low, codes.T, input_precision=PRECISION)
    return scores


@triton.jit
def _sums(
    weights,
    codes,
    odd_columns,
    BITS: tl.constexpr,
    SIGNED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return products of weights and values; at 4 bits of even columns, and of odd ones."""
    if BITS == 4:
        even, odd = widen_nibbles(codes, SIGNED, ASSEMBLY)
        sums = tl.dot(weights, even.to(weights.dtype), input_precision=PRECISION)
        odd_columns = tl.dot(weights, odd.to(weights.dtype), input_precision=PRECISION)
    elif BITS == 8:
        numbers = widen_bytes(codes, SIGNED, ASSEMBLY).to(weights.dtype)
        sums = tl.dot(weights, numbers, input_precision=PRECISION)
    else:
        sums = tl.dot(weights, codes, input_precision=PRECISION)
    return sums, odd_columns


@triton.jit
def attention_rows_kernel(
    query,
    key,
    value,
    key_scale,
    key_offset,
    value_scale,
    value_offset,
    output,
    lse,
    sums,
    states,
    mask,
    sinks,
    slopes,
    spans,
    tables,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    value_batch,
    value_head,
    value_row,
    key_scale_batch,
    key_scale_head,
    key_scale_row,
    value_scale_batch,
    value_scale_head,
    value_scale_row,
    output_batch,
    output_head,
    output_row,
    lse_batch,
    lse_head,
    lse_row,
    mask_batch,
    mask_head,
    mask_row,
    mask_key,
    slope_batch,
    table_row,
    block_size,
    batches,
    kv_heads,
    row_tiles,
    splits,
    q_len,
    kv_len,
    left,
    right,
    scale,
    softcap,
    GROUP: tl.constexpr,
    KEY_BITS: tl.constexpr,
    KEY_OFFSET: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    VALUE_OFFSET: tl.constexpr,
    MASK: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    PACKED: tl.constexpr,
    PAGED: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    D_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DV_PAD: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write output and lse of some rows of one key head, or the softmax state of a part of it.

    Rows are queries by query heads of the group. A row of keys or values is found by
    ``tables`` (batches, blocks) with ``PAGED``, by where its sequence starts with ``PACKED``
    (``spans`` as of the forward kernel), else by batch. Codes are multiplied as they are:
    ``<q, s c + o> = s <q, c> + o sum(q)``, and alike for values, whose scales are divided by
    the largest of a tile before they meet the weights. With ``SPLIT``, ``sums`` (rows, splits,
    VALUE_DIM) and ``states`` (rows, splits, 2) receive the sum, the maximum and the total of
    each part of the keys, rows counted as (sequence, query, query head). Deterministic.
    """
    row_tile = tl.program_id(0) % row_tiles
    split = tl.program_id(0) // row_tiles % splits
    kv_head = tl.program_id(0) // row_tiles // splits % kv_heads
    batch = tl.program_id(0) // row_tiles // splits // kv_heads
    q_start = batch * 0
    kv_start = batch * 0
    query_source = batch
    kv_source = batch
    if PACKED:
        q_start = tl.load(spans + batch)
        q_len = tl.load(spans + batches + batch)
        kv_start = tl.load(spans + 2 * batches + batch)
        kv_len = tl.load(spans + 3 * batches + batch)
        query_source = batch * 0
        kv_source = batch * 0
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    if row_tile * BLOCK_M >= q_len * GROUP:
        return
    queries = rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    inside_rows = queries < q_len
    places = queries + (kv_len - q_len)
    first_place = row_tile * BLOCK_M // GROUP + kv_len - q_len
    last_place = tl.minimum((row_tile * BLOCK_M + BLOCK_M - 1) // GROUP, q_len - 1) + kv_len - q_len

    columns = tl.arange(0, D_PAD)
    if KEY_BITS == 4:
        columns = 2 * tl.arange(0, D_PAD // 2)
    at = (
        query
        + query_source.to(tl.int64) * query_batch
        + (q_start + queries).to(tl.int64)[:, None] * query_row
        + heads.to(tl.int64)[:, None] * query_head
        + columns[None, :]
    )
    low = tl.load(at, mask=inside_rows[:, None] & (columns < HEAD_DIM)[None, :], other=0.0)
    high = low
    if KEY_BITS == 4:
        high = tl.load(
            at + 1, mask=inside_rows[:, None] & (columns + 1 < HEAD_DIM)[None, :], other=0.0
        )
    factor = tl.full([BLOCK_M], 1.0, tl.float32) * scale
    query_sum = factor
    if KEY_BITS != 0:
        query_sum = tl.sum(low.to(tl.float32), 1)
        if KEY_BITS == 4:
            query_sum += tl.sum(high.to(tl.float32), 1)
        if low.dtype == tl.bfloat16:
            # a power of two brings any row into the range of float16
            largest = tl.maximum(tl.max(tl.abs(low.to(tl.float32)), 1), 1e-30)
            if KEY_BITS == 4:
                largest = tl.maximum(largest, tl.max(tl.abs(high.to(tl.float32)), 1))
            step = tl.math.exp2(tl.ceil(tl.math.log2(largest)))
            low = (low.to(tl.float32) / step[:, None]).to(tl.float16)
            high = (high.to(tl.float32) / step[:, None]).to(tl.float16)
            factor = factor * step
            query_sum = query_sum / step

    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + batch * slope_batch + heads).to(tl.float32)[:, None]
    mask_rows = mask
    if MASK != "none":
        mask_rows = (
            mask
            + batch.to(tl.int64) * mask_batch
            + heads.to(tl.int64)[:, None] * mask_head
            + queries.to(tl.int64)[:, None] * mask_row
        )
    KEY_STORED: tl.constexpr = D_PAD // 2 if KEY_BITS == 4 else D_PAD
    VALUE_STORED: tl.constexpr = DV_PAD // 2 if VALUE_BITS == 4 else DV_PAD
    KEY_WIDTH: tl.constexpr = (HEAD_DIM + 1) // 2 if KEY_BITS == 4 else HEAD_DIM
    VALUE_WIDTH: tl.constexpr = (VALUE_DIM + 1) // 2 if VALUE_BITS == 4 else VALUE_DIM
    key_columns = tl.arange(0, KEY_STORED)
    value_columns = tl.arange(0, VALUE_STORED)
    key_base = key + kv_source.to(tl.int64) * key_batch + kv_head.to(tl.int64) * key_head
    value_base = value + kv_source.to(tl.int64) * value_batch + kv_head.to(tl.int64) * value_head
    # scales and offsets lie alike; where there are none, these are never read
    key_scale_step = kv_source.to(tl.int64) * key_scale_batch + kv_head * key_scale_head
    value_scale_step = kv_source.to(tl.int64) * value_scale_batch + kv_head * value_scale_head

    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    offsets = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, VALUE_STORED], tl.float32)
    odd_columns = tl.zeros([BLOCK_M, VALUE_STORED], tl.float32)

    start = first_key(first_place, kv_len, left, LEFT) // BLOCK_N * BLOCK_N
    end = end_key(last_place, kv_len, right, RIGHT)
    if SPLIT:
        part = tl.cdiv(tl.cdiv(tl.maximum(end - start, 0), BLOCK_N), splits) * BLOCK_N
        start = start + split * part
        end = tl.minimum(end, start + part)
    for first in tl.range(start, end, BLOCK_N, num_stages=STAGES):
        keys = first + tl.arange(0, BLOCK_N)
        inside = keys < end
        if PAGED:
            entries = tables + batch.to(tl.int64) * table_row + keys // block_size
            block = tl.load(entries, mask=inside, other=0).to(tl.int64)
            slot = (keys % block_size).to(tl.int64)
            key_at = block * key_batch + slot * key_row
            value_at = block * value_batch + slot * value_row
            key_scale_at = key_scale_step + block * key_scale_batch + slot * key_scale_row
            value_scale_at = value_scale_step + block * value_scale_batch + slot * value_scale_row
        else:
            token = (kv_start + keys).to(tl.int64)
            key_at = token * key_row
            value_at = token * value_row
            key_scale_at = key_scale_step + token * key_scale_row
            value_scale_at = value_scale_step + token * value_scale_row
        stored = tl.load(
            key_base + key_at[:, None] + key_columns[None, :],
            mask=inside[:, None] & (key_columns < KEY_WIDTH)[None, :],
            other=0,
        )
        scores = _scores(low, high, stored, KEY_BITS, KEY_OFFSET == 0, ASSEMBLY, PRECISION)
        if KEY_BITS != 0:
            scales = tl.load(key_scale + key_scale_at, mask=inside, other=0.0)
            scores = scores * scales.to(tl.float32)[None, :]
            if KEY_OFFSET:
                shifts = tl.load(key_offset + key_scale_at, mask=inside, other=0.0)
                scores = scores + query_sum[:, None] * shifts.to(tl.float32)[None, :]
        scores = biased(scores, places, keys, factor[:, None], softcap, slope, SOFTCAP, ALIBI)
        seen = inside[None, :] & sees(places, keys, left, right, LEFT, RIGHT)
        if MASK != "none":
            read = inside_rows[:, None] & inside[None, :]
            entry = tl.load(mask_rows + keys.to(tl.int64)[None, :] * mask_key, mask=read, other=0)
            if MASK == "additive":
                scores = scores + entry.to(tl.float32)
            else:
                seen = seen & (entry != 0)
        scores = tl.where(seen, scores, float("-inf"))
        top = tl.maximum(maximum, tl.max(scores, 1))
        unit = finite(top)
        weights = tl.math.exp2((scores - unit[:, None]) * LOG2E)
        decay = tl.math.exp2((maximum - unit) * LOG2E)
        total = total * decay + tl.sum(weights, 1)
        stored = tl.load(
            value_base + value_at[:, None] + value_columns[None, :],
            mask=inside[:, None] & (value_columns < VALUE_WIDTH)[None, :],
            other=0,
        )
        top_scale = 1.0
        if VALUE_BITS != 0:
            scales = tl.load(value_scale + value_scale_at, mask=inside, other=0.0)
            scales = scales.to(tl.float32)
            if VALUE_OFFSET:
                shifts = tl.load(value_offset + value_scale_at, mask=inside, other=0.0)
                shifted = tl.sum(weights * shifts.to(tl.float32)[None, :], 1)
                offsets = offsets * decay + shifted
            top_scale = tl.maximum(tl.max(tl.abs(scales), 0), 1e-30)
            weights = weights * (scales / top_scale)[None, :]
            if query.dtype.element_ty != tl.float32:
                weights = weights.to(tl.float16)
        else:
            weights = weights.to(stored.dtype)
        even, odd = _sums(
            weights, stored, odd_columns, VALUE_BITS, VALUE_OFFSET == 0, ASSEMBLY, PRECISION
        )
        accumulator = accumulator * decay[:, None] + even * top_scale
        if VALUE_BITS == 4:
            odd_columns = odd_columns * decay[:, None] + odd * top_scale
        maximum = top

    value_columns = value_columns * (2 if VALUE_BITS == 4 else 1)
    accumulator = accumulator + offsets[:, None]
    odd_columns = odd_columns + offsets[:, None]
    inside = inside_rows[:, None] & (value_columns < VALUE_DIM)[None, :]
    odd_inside = inside_rows[:, None] & (value_columns + 1 < VALUE_DIM)[None, :]
    if SPLIT:
        kept = (q_start + query_source * q_len + queries) * (kv_heads * GROUP) + heads
        kept = kept.to(tl.int64) * splits + split
        at = sums + kept[:, None] * VALUE_DIM + value_columns[None, :]
        tl.store(at, accumulator, mask=inside)
        if VALUE_BITS == 4:
            tl.store(at + 1, odd_columns, mask=odd_inside)
        tl.store(states + 2 * kept, maximum, mask=inside_rows)
        tl.store(states + 2 * kept + 1, total, mask=inside_rows)
    else:
        if SINKS:
            sink = tl.load(sinks + heads).to(tl.float32)
            maximum, total, decay = with_sink(maximum, total, sink)
            accumulator = accumulator * decay[:, None]
            odd_columns = odd_columns * decay[:, None]
        divisor, log_total = finished(maximum, total)
        at = (
            output
            + query_source.to(tl.int64) * output_batch
            + heads.to(tl.int64)[:, None] * output_head
            + (q_start + queries).to(tl.int64)[:, None] * output_row
            + value_columns[None, :]
        )
        accumulator = accumulator * divisor[:, None]
        tl.store(at, accumulator.to(output.dtype.element_ty), mask=inside)
        if VALUE_BITS == 4:
            odd_columns = odd_columns * divisor[:, None]
            tl.store(at + 1, odd_columns.to(output.dtype.element_ty), mask=odd_inside)
        at = (
            lse
            + query_source.to(tl.int64) * lse_batch
            + heads.to(tl.int64) * lse_head
            + (q_start + queries).to(tl.int64) * lse_row
        )
        tl.store(at, log_total, mask=inside_rows)


@triton.jit
def merge_splits_kernel(
    sums,
    states,
    output,
    lse,
    sinks,
    output_batch,
    output_head,
    output_row,
    lse_batch,
    lse_head,
    lse_row,
    q_heads,
    q_len,
    splits,
    SINKS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DV_PAD: tl.constexpr,
):
    """Merge the states of all parts of the keys of one row, and its sink, into output and lse.

    Rows are (batch, query, query head); a packed call has one batch of all its queries.
    """
    entry = tl.program_id(0)
    head = entry % q_heads
    row = entry // q_heads % q_len
    batch = entry // q_heads // q_len
    columns = tl.arange(0, DV_PAD)
    maximum = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    accumulator = tl.zeros([DV_PAD], tl.float32)
    for first in range(0, splits, BLOCK_S):
        parts = first + tl.arange(0, BLOCK_S)
        kept = entry.to(tl.int64) * splits + parts
        inside = parts < splits
        tops = tl.load(states + 2 * kept, mask=inside, other=float("-inf"))
        totals = tl.load(states + 2 * kept + 1, mask=inside, other=0.0)
        at = sums + kept[:, None] * VALUE_DIM + columns[None, :]
        part = tl.load(at, mask=inside[:, None] & (columns < VALUE_DIM)[None, :], other=0.0)
        top = tl.maximum(maximum, tl.max(tops, 0))
        unit = finite(top)
        factors = tl.math.exp2((tops - unit) * LOG2E)
        decay = tl.math.exp2((maximum - unit) * LOG2E)
        total = total * decay + tl.sum(totals * factors, 0)
        accumulator = accumulator * decay + tl.sum(part * factors[:, None], 0)
        maximum = top
    if SINKS:
        sink = tl.load(sinks + head + tl.zeros([1], tl.int32)).to(tl.float32)
        maximum, total, decay = with_sink(maximum, total, sink)
        accumulator = accumulator * decay
    divisor, log_total = finished(maximum, total)
    at = (
        output
        + batch.to(tl.int64) * output_batch
        + head.to(tl.int64) * output_head
        + row.to(tl.int64) * output_row
        + columns
    )
    tl.store(at, (accumulator * divisor).to(output.dtype.element_ty), mask=columns < VALUE_DIM)
    at = lse + batch.to(tl.int64) * lse_batch + head.to(tl.int64) * lse_head
    tl.store(at + row.to(tl.int64) * lse_row + tl.zeros([1], tl.int32), log_total)
