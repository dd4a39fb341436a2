"""Forward by tiles of one head; keys come through tensor descriptors where there are any."""

import triton
import triton.language as tl

from tesseral.attention.backends.triton.kernels.places import at_head, at_rows, sequence
from tesseral.attention.backends.triton.kernels.scores import (
    LN2,
    LOG2E,
    biased,
    finished,
    finite,
    key_tiles,
    sees,
    with_sink,
)


@triton.jit
def read_tile(
    source,
    batch,
    head,
    first,
    start,
    length,
    row_step,
    CHECKED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return rows from ``start`` on of a sequence whose row 0 is row ``first`` of the source.

    The source is a descriptor over (batch, heads, length, width), which reads zeros past its
    ends; or else a pointer to row 0 itself, read with zeros past ``length`` if ``CHECKED``.
    """
    if DESCRIBED:
        tile = source.load([batch, head, first + start, 0]).reshape(ROWS, COLUMNS)
    else:
        rows = start + tl.arange(0, ROWS)
        columns = tl.arange(0, COLUMNS)
        at = at_rows(source, rows, row_step, columns)
        if CHECKED:
            inside = (rows < length)[:, None] & (columns < WIDTH)[None, :]
            tile = tl.load(at, mask=inside, other=0.0)
        elif WIDTH < COLUMNS:
            tile = tl.load(at, mask=(columns < WIDTH)[None, :], other=0.0)
        else:
            tile = tl.load(at)
    return tile


@triton.jit
def _visit_tiles(
    first,
    end,
    numbers,
    accumulator,
    total,
    maximum,
    query,
    key,
    value,
    mask,
    call,
    MASKED: tl.constexpr,
    LISTED: tl.constexpr,
    MASK: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    GENERAL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    PACKED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    D_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DV_PAD: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Return the state of a tile of queries after some more tiles of keys.

    They are those that start at ``first`` up to ``end``; or, ``LISTED``, those whose numbers
    stand there. In general the maximum is one of scores; with nothing added to scores it is
    one of scores times log2(e), so that one multiply-add prepares a weight.
    """
    rows, places, batch, kv_head, kv_start, q_len, kv_len, steps, band, scale, softcap, slope = call
    left, right = band
    key_row, value_row, mask_key = steps
    for i in tl.range(first, end, 1 if LISTED else BLOCK_N, num_stages=STAGES):
        start = tl.load(numbers + i) * BLOCK_N if LISTED else i
        keys = start + tl.arange(0, BLOCK_N)
        k = read_tile(
            key, batch, kv_head, kv_start, start, kv_len, key_row, MASKED, DESCRIBED, BLOCK_N,
            HEAD_DIM, D_PAD,
        )  # fmt: skip
        scores = tl.dot(query, k.T, input_precision=PRECISION)
        ahead = keys[None, :] - places[:, None]
        if GENERAL:
            scores = biased(scores * scale, ahead, softcap, slope, SOFTCAP, ALIBI)
        if MASKED:
            seen = (keys < kv_len)[None, :] & sees(ahead, left, right, LEFT, RIGHT)
            if MASK != "none":
                inside = (rows < q_len)[:, None] & (keys < kv_len)[None, :]
                part = tl.load(mask + keys.to(tl.int64)[None, :] * mask_key, mask=inside, other=0)
                if MASK == "additive":
                    scores = scores + part.to(tl.float32)
                else:
                    seen = seen & (part != 0)
            scores = tl.where(seen, scores, float("-inf"))
        if GENERAL:
            top = tl.maximum(maximum, tl.max(scores, 1))
            unit = finite(top)
            weights = tl.math.exp2((scores - unit[:, None]) * LOG2E)
            factor = tl.math.exp2((maximum - unit) * LOG2E)
        else:
            top = tl.maximum(maximum, tl.max(scores, 1) * scale)
            unit = finite(top) if MASKED else top
            weights = tl.math.exp2(scores * scale - unit[:, None])
            factor = tl.math.exp2(maximum - unit)
        total = total * factor + tl.sum(weights, 1)
        accumulator = accumulator * factor[:, None]
        v = read_tile(
            value, batch, kv_head, kv_start, start, kv_len, value_row, MASKED, DESCRIBED, BLOCK_N,
            VALUE_DIM, DV_PAD,
        )  # fmt: skip
        if MASKED and PACKED and DESCRIBED:
            v = tl.where((keys < kv_len)[:, None], v, 0.0)  # the next sequence may hold NaN
        accumulator = tl.dot(weights.to(v.dtype), v, accumulator, input_precision=PRECISION)
        maximum = top
    return accumulator, total, maximum


@triton.jit
def attention_forward_kernel(
    query,
    key,
    value,
    output,
    lse,
    mask,
    partial_tiles,
    full_tiles,
    tile_counts,
    sinks,
    slopes,
    spans,
    query_steps,
    key_steps,
    value_steps,
    output_steps,
    lse_steps,
    mask_steps,
    list_batch,
    list_head,
    slope_batch,
    batches,
    q_heads,
    group,
    q_len,
    kv_len,
    left,
    right,
    scale,
    softcap,
    MASK: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    TAIL: tl.constexpr,
    GENERAL: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
    PACKED: tl.constexpr,
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    D_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DV_PAD: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write output and lse of one tile of queries of one head.

    ``query``, ``key`` and ``value`` are descriptors over (batch, heads, length, width) if
    ``DESCRIBED``, else pointers. With ``PACKED`` there is one batch, and ``spans``
    (4, batches) holds start and length of each sequence's queries, and of its keys. With a mask,
    ``tile_counts`` (lists, q_tiles, 2) says how many tiles of keys read it and how many are
    full; they are numbered in ``partial_tiles`` and ``full_tiles`` (lists, q_tiles, k_tiles).

    Scores, weights and sums are float32; weights are rounded to the type of the values for
    their product. Deterministic.
    """
    q_tiles = tl.cdiv(q_len, BLOCK_M)
    tile = tl.program_id(0) % q_tiles
    head = tl.program_id(0) // q_tiles % q_heads
    batch = tl.program_id(0) // q_tiles // q_heads
    if RIGHT:
        tile = q_tiles - 1 - tile  # late queries see more keys: they go first
    source, q_start, q_len, kv_start, kv_len = sequence(
        spans, batch, batches, q_len, kv_len, PACKED
    )
    if PACKED:  # noqa: SIM102, a flag of the compiler's
        if tile * BLOCK_M >= q_len:
            return
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    first_place = tile * BLOCK_M + kv_len - q_len
    last_place = tl.minimum(tile * BLOCK_M + BLOCK_M, q_len) - 1 + kv_len - q_len
    places = rows + (kv_len - q_len)
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + batch * slope_batch + head).to(tl.float32)
    kv_head = head // group
    mask_rows = mask
    if MASK != "none":
        mask_rows = at_head(mask, batch, head, mask_steps)
        mask_rows += rows.to(tl.int64)[:, None] * mask_steps[2]
    if not DESCRIBED:
        query = at_head(query, source, head, query_steps)
        query += q_start.to(tl.int64) * query_steps[2]
        key = at_head(key, source, kv_head, key_steps) + kv_start.to(tl.int64) * key_steps[2]
        value = at_head(value, source, kv_head, value_steps)
        value += kv_start.to(tl.int64) * value_steps[2]
    q = read_tile(
        query, source, head, q_start, tile * BLOCK_M, q_len, query_steps[2], True, DESCRIBED,
        BLOCK_M, HEAD_DIM, D_PAD,
    )  # fmt: skip
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, DV_PAD], tl.float32)

    LISTED: tl.constexpr = MASK != "none"
    BANDED: tl.constexpr = LEFT or RIGHT or TAIL
    steps = (key_steps[2], value_steps[2], mask_steps[3] if LISTED else 0)
    call = (
        rows, places, source, kv_head, kv_start, q_len, kv_len, steps, (left, right), scale,
        softcap, slope,
    )  # fmt: skip
    if LISTED:
        k_tiles = tl.cdiv(kv_len, BLOCK_N)
        entry = (batch * list_batch + head * list_head) * q_tiles + tile
        partial_tiles += entry.to(tl.int64) * k_tiles
        full_tiles += entry.to(tl.int64) * k_tiles
        full_start = entry * 0
        n_partial = tl.load(tile_counts + 2 * entry)
        full_end = tl.load(tile_counts + 2 * entry + 1)
        accumulator, total, maximum = _visit_tiles(
            0, n_partial, partial_tiles, accumulator, total, maximum, q, key, value,
            mask_rows, call, True, True, MASK, LEFT, RIGHT, GENERAL, SOFTCAP, ALIBI, PACKED,
            DESCRIBED, PRECISION, BLOCK_N, HEAD_DIM, D_PAD, VALUE_DIM, DV_PAD, STAGES,
        )  # fmt: skip
    else:
        start, full_start, full_end, end = key_tiles(
            first_place, last_place, kv_len, left, right, LEFT, RIGHT, BLOCK_N
        )
        if LEFT:
            accumulator, total, maximum = _visit_tiles(
                start, full_start, None, accumulator, total, maximum, q, key, value,
                mask_rows, call, True, False, MASK, LEFT, RIGHT, GENERAL, SOFTCAP, ALIBI, PACKED,
                DESCRIBED, PRECISION, BLOCK_N, HEAD_DIM, D_PAD, VALUE_DIM, DV_PAD, STAGES,
            )  # fmt: skip
    accumulator, total, maximum = _visit_tiles(
        full_start, full_end, full_tiles, accumulator, total, maximum, q, key, value,
        mask_rows, call, False, LISTED, MASK, LEFT, RIGHT, GENERAL, SOFTCAP, ALIBI, PACKED,
        DESCRIBED, PRECISION, BLOCK_N, HEAD_DIM, D_PAD, VALUE_DIM, DV_PAD, STAGES,
    )  # fmt: skip
    if BANDED and not LISTED:
        accumulator, total, maximum = _visit_tiles(
            full_end, end, None, accumulator, total, maximum, q, key, value,
            mask_rows, call, True, False, MASK, LEFT, RIGHT, GENERAL, SOFTCAP, ALIBI, PACKED,
            DESCRIBED, PRECISION, BLOCK_N, HEAD_DIM, D_PAD, VALUE_DIM, DV_PAD, STAGES,
        )  # fmt: skip

    if not GENERAL:
        maximum = maximum * LN2
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        maximum, total, factor = with_sink(maximum, total, sink)
        accumulator = accumulator * factor[:, None]
    divisor, log_total = finished(maximum, total)
    accumulator = accumulator * divisor[:, None]
    columns = tl.arange(0, DV_PAD)
    at = at_head(output, source, head, output_steps)
    at = at_rows(at, q_start + rows, output_steps[2], columns)
    inside = (rows < q_len)[:, None] & (columns < VALUE_DIM)[None, :]
    tl.store(at, accumulator.to(output.dtype.element_ty), mask=inside)
    at = at_head(lse, source, head, lse_steps) + (q_start + rows).to(tl.int64) * lse_steps[2]
    tl.store(at, log_total, mask=rows < q_len)
