"""Forward by rows: the query heads of a group share each read of their keys, codes included."""

import triton
import triton.language as tl

from tesseral.attention.backends.triton.kernels.codes import (
    SMALLEST,
    add_values,
    in_order,
    nearly_log2,
    queries_for_codes,
    read_queries,
    read_scales,
    scales_of,
    scores_of,
)
from tesseral.attention.backends.triton.kernels.places import (
    at_head,
    at_rows,
    find_keys,
    sequence,
    to_keys,
)
from tesseral.attention.backends.triton.kernels.scores import (
    LN2,
    LOG2E,
    biased,
    end_key,
    finished,
    finite,
    first_key,
    sees,
    with_sink,
)
from tesseral.runtime.cuda.overlap import let_next_start, wait_for_previous


@triton.jit
def _read_ahead(
    scale,
    offset,
    base,
    steps,
    first,
    end,
    kv_start,
    table,
    block_size,
    OFFSET: tl.constexpr,
    PAGED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Return what the codes of a tile of keys stand for, as it lies in memory."""
    lanes = tl.arange(0, BLOCK_N)
    inside = first + lanes < end
    block, slot = find_keys(first + lanes, inside, table, block_size, PAGED)
    at = base + to_keys(kv_start + first, lanes, block, slot, steps, PAGED)
    return read_scales(scale, offset, at, inside, OFFSET)


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
    query_steps,
    key_steps,
    value_steps,
    key_scale_steps,
    value_scale_steps,
    output_steps,
    lse_steps,
    mask_steps,
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
    GENERAL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    PACKED: tl.constexpr,
    PAGED: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    ASSEMBLY: tl.constexpr,
    DEPENDENT: tl.constexpr,
    EARLY: tl.constexpr,
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
    (``spans`` as of the forward kernel), else by batch. Codes come as words of 16 bits and are
    multiplied as they are: ``<q, s c + o> = s <q, c> + o sum(q)``, and alike for values, whose
    scales are part of the weights' maximum, so that weights times scales are at most one. With
    ``SPLIT``, ``sums`` (rows, splits, VALUE_DIM) and ``states`` (rows, splits, 2) receive the
    sum, the maximum and the total of each part of the keys, rows counted as (sequence, query,
    query head). Deterministic.

    With ``DEPENDENT`` a program may start before the kernel ahead of it has ended, and waits before
    it reads. It lets the next kernel start with its own start if ``EARLY``, else when it has read
    all of its keys.
    """
    if DEPENDENT and EARLY:
        let_next_start()
    if DEPENDENT:
        wait_for_previous()
    row_tile = tl.program_id(0) % row_tiles
    split = tl.program_id(0) // row_tiles % splits
    kv_head = tl.program_id(0) // row_tiles // splits % kv_heads
    batch = tl.program_id(0) // row_tiles // splits // kv_heads
    entry, q_start, q_len, kv_start, kv_len = sequence(spans, batch, batches, q_len, kv_len, PACKED)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    if row_tile * BLOCK_M >= q_len * GROUP:
        return
    queries = rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    inside_rows = queries < q_len
    places = queries + (kv_len - q_len)
    first_place = row_tile * BLOCK_M // GROUP + kv_len - q_len
    last_place = tl.minimum((row_tile * BLOCK_M + BLOCK_M - 1) // GROUP, q_len - 1) + kv_len - q_len

    KEY_PLACES: tl.constexpr = 1 if KEY_BITS == 0 else 16 // KEY_BITS
    VALUE_PLACES: tl.constexpr = 1 if VALUE_BITS == 0 else 16 // VALUE_BITS
    KEY_WORDS: tl.constexpr = D_PAD // KEY_PLACES
    VALUE_WORDS: tl.constexpr = DV_PAD // VALUE_PLACES
    KEY_WIDTH: tl.constexpr = (HEAD_DIM + KEY_PLACES - 1) // KEY_PLACES
    VALUE_WIDTH: tl.constexpr = (VALUE_DIM + VALUE_PLACES - 1) // VALUE_PLACES
    block_entry = entry * 0 if PAGED else entry
    key_base = at_head(key, block_entry, kv_head, key_steps)
    value_base = at_head(value, block_entry, kv_head, value_steps)
    start = first_key(first_place, kv_len, left, LEFT) // BLOCK_N * BLOCK_N
    end = end_key(last_place, kv_len, right, RIGHT)
    if SPLIT:
        part = tl.cdiv(tl.cdiv(tl.maximum(end - start, 0), BLOCK_N), splits) * BLOCK_N
        start = start + split * part
        end = tl.minimum(end, start + part)
    at = at_head(query, entry, heads[None, :], query_steps)
    at += (q_start + queries).to(tl.int64)[None, :] * query_steps[2]
    q = read_queries(at, inside_rows, KEY_PLACES, HEAD_DIM, KEY_WORDS)
    factor = scale
    query_sum = scale
    if KEY_BITS != 0:
        q, factor, query_sum = queries_for_codes(q, KEY_BITS)
        factor = factor * scale
        query_sum = query_sum * scale

    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + batch * slope_batch + heads).to(tl.float32)[None, :]
    mask_rows = mask
    if MASK != "none":
        mask_rows = at_head(mask, batch, heads[None, :], mask_steps)
        mask_rows += queries.to(tl.int64)[None, :] * mask_steps[2]
    key_columns = tl.arange(0, KEY_WORDS)
    value_columns = tl.arange(0, VALUE_WORDS)
    key_scale_base = at_head(0, block_entry, kv_head, key_scale_steps)
    value_scale_base = at_head(0, block_entry, kv_head, value_scale_steps)
    table = tables
    if PAGED:
        table = tables + batch.to(tl.int64) * table_row

    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    # summed over keys after the last tile: no exchange between warps in between
    totals = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    offsets = totals
    unset = tl.zeros([VALUE_WORDS, BLOCK_M], tl.float32)
    sums_of = (unset, unset, unset, unset)

    lanes = tl.arange(0, BLOCK_N)
    # what codes stand for is too narrow to be copied meanwhile: it is read a tile ahead
    ahead_of_keys = (lanes, lanes)
    ahead_of_values = ahead_of_keys
    if KEY_BITS != 0:
        ahead_of_keys = _read_ahead(
            key_scale, key_offset, key_scale_base, key_scale_steps, start, end, kv_start, table,
            block_size, KEY_OFFSET, PAGED, BLOCK_N,
        )  # fmt: skip
    if VALUE_BITS != 0:
        ahead_of_values = _read_ahead(
            value_scale, value_offset, value_scale_base, value_scale_steps, start, end, kv_start,
            table, block_size, VALUE_OFFSET, PAGED, BLOCK_N,
        )  # fmt: skip
    for first in tl.range(start, end, BLOCK_N, num_stages=STAGES):
        keys = first + lanes
        inside = keys < end
        of_keys, of_values = ahead_of_keys, ahead_of_values
        if KEY_BITS != 0:
            ahead_of_keys = _read_ahead(
                key_scale, key_offset, key_scale_base, key_scale_steps, first + BLOCK_N, end,
                kv_start, table, block_size, KEY_OFFSET, PAGED, BLOCK_N,
            )  # fmt: skip
        if VALUE_BITS != 0:
            ahead_of_values = _read_ahead(
                value_scale, value_offset, value_scale_base, value_scale_steps, first + BLOCK_N,
                end, kv_start, table, block_size, VALUE_OFFSET, PAGED, BLOCK_N,
            )  # fmt: skip
        token = kv_start + first
        block, slot = find_keys(keys, inside, table, block_size, PAGED)
        near = to_keys(token, lanes, block, slot, key_steps, PAGED)
        words = tl.load(
            key_base + near[:, None] + key_columns[None, :],
            mask=inside[:, None] & (key_columns < KEY_WIDTH)[None, :],
            other=0,
        )
        scores = scores_of(q, words, KEY_BITS, KEY_OFFSET == 0, ASSEMBLY, PRECISION)
        if KEY_BITS != 0:
            scales, shifts = scales_of(of_keys, key_scale.dtype.element_ty, KEY_BITS, KEY_OFFSET)
            scores = scores * (scales[:, None] * factor) + query_sum * shifts[:, None]
        else:
            scores = scores * factor
        ahead = keys[:, None] - places[None, :]
        scores = biased(scores, ahead, softcap, slope, SOFTCAP, ALIBI)
        seen = inside[:, None] & sees(ahead, left, right, LEFT, RIGHT)
        if MASK != "none":
            read = inside_rows[None, :] & inside[:, None]
            added = tl.load(
                mask_rows + keys.to(tl.int64)[:, None] * mask_steps[3], mask=read, other=0
            )
            if MASK == "additive":
                scores = scores + added.to(tl.float32)
            else:
                seen = seen & (added != 0)
        scores = tl.where(seen, scores, float("-inf"))
        scaled = scores
        if VALUE_BITS != 0:
            scales, shifts = scales_of(
                of_values, value_scale.dtype.element_ty, VALUE_BITS, VALUE_OFFSET
            )
            sizes = nearly_log2(tl.maximum(tl.abs(scales), SMALLEST))
            scaled = scores + (sizes * LN2 if GENERAL else sizes)[:, None]
        top = tl.maximum(maximum, tl.max(scaled, 0))
        unit = finite(top)
        if GENERAL:
            weights = tl.math.exp2((scores - unit[None, :]) * LOG2E)
            decay = tl.math.exp2((maximum - unit) * LOG2E)[None, :]
        else:
            weights = tl.math.exp2(scores - unit[None, :])
            decay = tl.math.exp2(maximum - unit)[None, :]
        totals = totals * decay + weights
        near = to_keys(token, lanes, block, slot, value_steps, PAGED)
        words = tl.load(
            value_base + near[None, :] + value_columns[:, None],
            mask=inside[None, :] & (value_columns < VALUE_WIDTH)[:, None],
            other=0,
        )
        if VALUE_BITS != 0:
            if VALUE_OFFSET:
                offsets = offsets * decay + weights * shifts[:, None]
            weights = weights * scales[:, None]
            if query.dtype.element_ty != tl.float32:
                weights = weights.to(tl.float16)
            if not VALUE_OFFSET:
                # weights as they are multiplied, so that both parts are rounded alike
                half: tl.constexpr = -8.0 if VALUE_BITS == 4 else -128.0
                offsets = offsets * decay + weights.to(tl.float32) * half
        else:
            weights = weights.to(words.dtype)
        sums_of = add_values(
            sums_of, weights, words, decay, VALUE_BITS, VALUE_OFFSET == 0, ASSEMBLY, PRECISION
        )
        maximum = top

    if DEPENDENT and not EARLY:
        let_next_start()
    total = tl.sum(totals, 0)
    accumulator = in_order(sums_of, VALUE_BITS, BLOCK_M, DV_PAD)
    if VALUE_BITS != 0:
        accumulator += tl.sum(offsets, 0)[:, None]
    if not GENERAL:
        maximum = maximum * LN2
    columns = tl.arange(0, DV_PAD)
    inside = inside_rows[:, None] & (columns < VALUE_DIM)[None, :]
    if SPLIT:
        kept = (q_start + entry * q_len + queries) * (kv_heads * GROUP) + heads
        kept = kept.to(tl.int64) * splits + split
        tl.store(at_rows(sums, kept, VALUE_DIM, columns), accumulator, mask=inside)
        tl.store(states + 2 * kept, maximum, mask=inside_rows)
        tl.store(states + 2 * kept + 1, total, mask=inside_rows)
    else:
        if SINKS:
            sink = tl.load(sinks + heads).to(tl.float32)
            maximum, total, decay = with_sink(maximum, total, sink)
            accumulator = accumulator * decay[:, None]
        divisor, log_total = finished(maximum, total)
        accumulator = accumulator * divisor[:, None]
        at = at_head(output, entry, heads[:, None], output_steps)
        at += (q_start + queries).to(tl.int64)[:, None] * output_steps[2] + columns[None, :]
        tl.store(at, accumulator.to(output.dtype.element_ty), mask=inside)
        at = at_head(lse, entry, heads, lse_steps)
        at += (q_start + queries).to(tl.int64) * lse_steps[2]
        tl.store(at, log_total, mask=inside_rows)
