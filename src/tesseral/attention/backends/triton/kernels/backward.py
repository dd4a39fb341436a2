"""Gradients by tiles: weights are computed again from the lse, for keys and then for queries."""

import triton
import triton.language as tl

from tesseral.attention.backends.triton.kernels.forward import read_tile
from tesseral.attention.backends.triton.kernels.places import at_head, at_rows
from tesseral.attention.backends.triton.kernels.scores import (
    LOG2E,
    end_key,
    first_key,
    sees,
    tanh,
)


@triton.jit
def row_sums_kernel(
    output,
    grad_output,
    grad_lse,
    delta,
    output_steps,
    grad_steps,
    lse_steps,
    heads,
    q_len,
    GRAD_LSE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DV_PAD: tl.constexpr,
):
    """Write ``delta = <grad_output, output> - grad_lse`` of some rows of one head, contiguous."""
    tiles = tl.cdiv(q_len, BLOCK_M)
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % heads
    batch = tl.program_id(0) // tiles // heads
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, DV_PAD)
    inside = (rows < q_len)[:, None] & (columns < VALUE_DIM)[None, :]
    at = at_rows(at_head(output, batch, head, output_steps), rows, output_steps[2], columns)
    values = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    at = at_rows(at_head(grad_output, batch, head, grad_steps), rows, grad_steps[2], columns)
    sums = tl.sum(values * tl.load(at, mask=inside, other=0.0).to(tl.float32), 1)
    if GRAD_LSE:
        at = at_head(grad_lse, batch, head, lse_steps) + rows.to(tl.int64) * lse_steps[2]
        sums = sums - tl.load(at, mask=rows < q_len, other=0.0)
    entry = (batch.to(tl.int64) * heads + head) * q_len + rows
    tl.store(delta + entry, sums, mask=rows < q_len)


@triton.jit
def _weights_and_slope(
    products,
    lse,
    places,
    keys,
    mask,
    mask_steps,
    rows,
    q_len,
    kv_len,
    left,
    right,
    scale,
    softcap,
    slope,
    MASK: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
):
    """Return softmax weights (keys, queries), and the derivative of scores by products."""
    ahead = keys[:, None] - places[None, :]
    scores = products * scale
    derivative = scale
    if SOFTCAP:
        bounded = tanh(scores / softcap)
        scores = softcap * bounded
        derivative = scale * (1 - bounded * bounded)
    if ALIBI:
        scores = scores - slope * tl.abs(ahead).to(tl.float32)
    seen = sees(ahead, left, right, LEFT, RIGHT)
    inside = (keys < kv_len)[:, None] & (rows < q_len)[None, :]
    seen = seen & inside
    if MASK != "none":
        part = tl.load(mask + keys.to(tl.int64)[:, None] * mask_steps[3], mask=inside, other=0)
        if MASK == "additive":
            scores = scores + part.to(tl.float32)
        else:
            seen = seen & (part != 0)
    weights = tl.math.exp2((scores - lse[None, :]) * LOG2E)
    return tl.where(seen, weights, 0.0), derivative


@triton.jit
def attention_keys_backward_kernel(
    query,
    key,
    value,
    grad_output,
    lse,
    delta,
    mask,
    slopes,
    grad_key,
    grad_value,
    query_steps,
    key_steps,
    value_steps,
    grad_steps,
    grad_key_steps,
    grad_value_steps,
    mask_steps,
    slope_batch,
    q_heads,
    kv_heads,
    q_len,
    kv_len,
    left,
    right,
    scale,
    softcap,
    MASK: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
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
    """Write the gradients of one tile of keys and values, over all queries that see some of it.

    ``lse`` and ``delta`` are contiguous, (batch, q_heads, q_len), in float32. Products are
    summed in float32; weights and gradients of scores are rounded to the type of the inputs.
    """
    k_tiles = tl.cdiv(kv_len, BLOCK_N)
    tile = tl.program_id(0) % k_tiles
    kv_head = tl.program_id(0) // k_tiles % kv_heads
    batch = tl.program_id(0) // k_tiles // kv_heads
    group = q_heads // kv_heads
    offset = kv_len - q_len
    none = batch * 0
    start = tile * BLOCK_N
    keys = start + tl.arange(0, BLOCK_N)
    if not DESCRIBED:
        key = at_head(key, batch, kv_head, key_steps)
        value = at_head(value, batch, kv_head, value_steps)
    k = read_tile(
        key, batch, kv_head, none, start, kv_len, key_steps[2], True, DESCRIBED, BLOCK_N, HEAD_DIM,
        D_PAD,
    )  # fmt: skip
    v = read_tile(
        value, batch, kv_head, none, start, kv_len, value_steps[2], True, DESCRIBED, BLOCK_N,
        VALUE_DIM, DV_PAD,
    )  # fmt: skip
    key_sums = tl.zeros([BLOCK_N, D_PAD], tl.float32)
    value_sums = tl.zeros([BLOCK_N, DV_PAD], tl.float32)
    # query i stands at place i + offset and sees keys from left before to right after it
    first_row = tl.maximum(0, start - right - offset) if RIGHT else none
    end_row = q_len
    if LEFT:
        end_row = tl.maximum(0, tl.minimum(q_len, start + BLOCK_N + left - offset))
    first_row = first_row // BLOCK_M * BLOCK_M
    for member in range(group):
        head = kv_head * group + member
        queries = query
        grads = grad_output
        if not DESCRIBED:
            queries = at_head(query, batch, head, query_steps)
            grads = at_head(grad_output, batch, head, grad_steps)
        row_base = (batch.to(tl.int64) * q_heads + head) * q_len
        slope = 0.0
        if ALIBI:
            slope = tl.load(slopes + batch * slope_batch + head).to(tl.float32)
        mask_base = mask
        if MASK != "none":
            mask_base = at_head(mask, batch, head, mask_steps)
        for first in tl.range(first_row, end_row, BLOCK_M, num_stages=STAGES):
            rows = first + tl.arange(0, BLOCK_M)
            q = read_tile(
                queries, batch, head, none, first, q_len, query_steps[2], True, DESCRIBED, BLOCK_M,
                HEAD_DIM, D_PAD,
            )  # fmt: skip
            do = read_tile(
                grads, batch, head, none, first, q_len, grad_steps[2], True, DESCRIBED, BLOCK_M,
                VALUE_DIM, DV_PAD,
            )  # fmt: skip
            inside = rows < q_len
            totals = tl.load(lse + row_base + rows, mask=inside, other=0.0)
            # a row that saw nothing weighs nothing
            totals = tl.where(totals == float("-inf"), float("inf"), totals)
            shifts = tl.load(delta + row_base + rows, mask=inside, other=0.0)
            mask_rows = mask_base
            if MASK != "none":
                mask_rows = mask_base + rows.to(tl.int64)[None, :] * mask_steps[2]
            products = tl.dot(k, q.T, input_precision=PRECISION)
            weights, derivative = _weights_and_slope(
                products, totals, rows + offset, keys, mask_rows, mask_steps, rows, q_len, kv_len,
                left, right, scale, softcap, slope, MASK, LEFT, RIGHT, SOFTCAP, ALIBI,
            )  # fmt: skip
            value_sums = tl.dot(weights.to(do.dtype), do, value_sums, input_precision=PRECISION)
            changes = tl.dot(v, do.T, input_precision=PRECISION)
            changes = weights * (changes - shifts[None, :]) * derivative
            key_sums = tl.dot(changes.to(q.dtype), q, key_sums, input_precision=PRECISION)
    columns = tl.arange(0, D_PAD)
    at = at_head(grad_key, batch, kv_head, grad_key_steps)
    at = at_rows(at, keys, grad_key_steps[2], columns)
    inside = (keys < kv_len)[:, None] & (columns < HEAD_DIM)[None, :]
    tl.store(at, key_sums.to(grad_key.dtype.element_ty), mask=inside)
    columns = tl.arange(0, DV_PAD)
    at = at_head(grad_value, batch, kv_head, grad_value_steps)
    at = at_rows(at, keys, grad_value_steps[2], columns)
    inside = (keys < kv_len)[:, None] & (columns < VALUE_DIM)[None, :]
    tl.store(at, value_sums.to(grad_value.dtype.element_ty), mask=inside)


@triton.jit
def attention_queries_backward_kernel(
    query,
    key,
    value,
    grad_output,
    lse,
    delta,
    mask,
    slopes,
    grad_query,
    query_steps,
    key_steps,
    value_steps,
    grad_steps,
    grad_query_steps,
    mask_steps,
    slope_batch,
    q_heads,
    kv_heads,
    q_len,
    kv_len,
    left,
    right,
    scale,
    softcap,
    MASK: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr,
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
    """Write the gradient of one tile of queries, over all keys that it sees."""
    q_tiles = tl.cdiv(q_len, BLOCK_M)
    tile = tl.program_id(0) % q_tiles
    head = tl.program_id(0) // q_tiles % q_heads
    batch = tl.program_id(0) // q_tiles // q_heads
    kv_head = head // (q_heads // kv_heads)
    offset = kv_len - q_len
    none = batch * 0
    first = tile * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    if not DESCRIBED:
        query = at_head(query, batch, head, query_steps)
        grad_output = at_head(grad_output, batch, head, grad_steps)
        key = at_head(key, batch, kv_head, key_steps)
        value = at_head(value, batch, kv_head, value_steps)
    q = read_tile(
        query, batch, head, none, first, q_len, query_steps[2], True, DESCRIBED, BLOCK_M, HEAD_DIM,
        D_PAD,
    )  # fmt: skip
    do = read_tile(
        grad_output, batch, head, none, first, q_len, grad_steps[2], True, DESCRIBED, BLOCK_M,
        VALUE_DIM, DV_PAD,
    )  # fmt: skip
    inside = rows < q_len
    row_base = (batch.to(tl.int64) * q_heads + head) * q_len
    totals = tl.load(lse + row_base + rows, mask=inside, other=0.0)
    totals = tl.where(totals == float("-inf"), float("inf"), totals)
    shifts = tl.load(delta + row_base + rows, mask=inside, other=0.0)
    slope = 0.0
    if ALIBI:
        slope = tl.load(slopes + batch * slope_batch + head).to(tl.float32)
    mask_rows = mask
    if MASK != "none":
        mask_rows = at_head(mask, batch, head, mask_steps)
        mask_rows += rows.to(tl.int64)[None, :] * mask_steps[2]
    last_place = tl.minimum(first + BLOCK_M, q_len) - 1 + offset
    start = first_key(first + offset, kv_len, left, LEFT) // BLOCK_N * BLOCK_N
    end = end_key(last_place, kv_len, right, RIGHT)
    sums = tl.zeros([BLOCK_M, D_PAD], tl.float32)
    for at in tl.range(start, end, BLOCK_N, num_stages=STAGES):
        keys = at + tl.arange(0, BLOCK_N)
        k = read_tile(
            key, batch, kv_head, none, at, kv_len, key_steps[2], True, DESCRIBED, BLOCK_N, HEAD_DIM,
            D_PAD,
        )  # fmt: skip
        v = read_tile(
            value, batch, kv_head, none, at, kv_len, value_steps[2], True, DESCRIBED, BLOCK_N,
            VALUE_DIM, DV_PAD,
        )  # fmt: skip
        products = tl.dot(k, q.T, input_precision=PRECISION)
        weights, derivative = _weights_and_slope(
            products, totals, rows + offset, keys, mask_rows, mask_steps, rows, q_len, kv_len, left,
            right, scale, softcap, slope, MASK, LEFT, RIGHT, SOFTCAP, ALIBI,
        )  # fmt: skip
        changes = tl.dot(v, do.T, input_precision=PRECISION)
        changes = weights * (changes - shifts[None, :]) * derivative
        sums = tl.dot(tl.trans(changes.to(k.dtype)), k, sums, input_precision=PRECISION)
    columns = tl.arange(0, D_PAD)
    at = at_head(grad_query, batch, head, grad_query_steps)
    at = at_rows(at, rows, grad_query_steps[2], columns)
    inside = (rows < q_len)[:, None] & (columns < HEAD_DIM)[None, :]
    tl.store(at, sums.to(grad_query.dtype.element_ty), mask=inside)
