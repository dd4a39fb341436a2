"""Forward by rounds: matrix and vector units take turns on numbers that stay in the L2 cache.

Each helper is the work of one kind of unit. A round multiplies a tile of queries with many keys, so
that the units wait for each other rarely; vector units take a round a few rows at a time.
"""

import triton
import triton.language as tl


@triton.jit
def score_round(
    query,
    key,
    key_row,
    scores,
    first,
    stop,
    kv_len,
    CHECKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROUND: tl.constexpr,
    BASIC: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    D_PAD: tl.constexpr,
):
    """Matrix units: write the scores (BLOCK_M, ROUND) of keys from ``first`` up to ``stop``."""
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, D_PAD)
    keys = tl.arange(0, BASIC)
    for block in range(0, tl.minimum(stop - first, ROUND), BASIC):
        at = key + (first + block).to(tl.int64) * key_row
        at = at + keys[:, None] * key_row + columns[None, :]
        if CHECKED:
            inside = (keys < kv_len - first - block)[:, None] & (columns < HEAD_DIM)[None, :]
            k = tl.load(at, mask=inside, other=0.0)
        else:
            k = tl.load(at)
        products = tl.dot(query, tl.trans(k), input_precision="ieee")
        tl.store(scores + rows[:, None] * ROUND + (block + keys)[None, :], products)


@triton.jit
def weigh_round(
    scores,
    weights,
    maximum,
    total,
    factor,
    triangle,
    shift,
    visible,
    lower,
    upper,
    scale,
    MASKED: tl.constexpr,
    LOWER: tl.constexpr,
    UPPER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROUND: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Vector units: write weights for scores, and the rows' new maxima, totals and factors.

    Query ``r`` sees key ``c`` of the round when ``lower <= c - r - shift <= upper`` and
    ``c < visible``. Both edges are windows of ``triangle`` (2 ROUND, 2 ROUND), whose entry is 1
    where the column is not after the row.
    """
    columns = tl.arange(0, ROUND)
    for start in range(0, BLOCK_M, ROWS):
        rows = start + tl.arange(0, ROWS)
        z = tl.load(scores + rows[:, None] * ROUND + columns[None, :]) * scale
        before = tl.load(maximum + rows)
        if MASKED:
            z = tl.where((columns < visible)[None, :], z, float("-inf"))
            if UPPER:
                edge = b_mask(triangle, start + shift + upper, ROUND, ROWS)
                z = tl.where(edge != 0, z, float("-inf"))
            if LOWER:
                edge = b_mask(triangle, start + shift + lower - 1, ROUND, ROWS)
                z = tl.where(edge == 0, z, float("-inf"))
        top = tl.maximum(before, tl.max(z, 1))
        unit = top
        if MASKED:
            unit = tl.where(top == float("-inf"), 0.0, top)  # inf - inf is no number
        w = tl.exp(z - unit[:, None])
        rescale = tl.exp(before - unit)
        tl.store(weights + rows[:, None] * ROUND + columns[None, :], w.to(weights.dtype.element_ty))
        tl.store(total + rows, tl.load(total + rows) * rescale + tl.sum(w, 1))
        tl.store(factor + rows, rescale)
        tl.store(maximum + rows, top)


@triton.jit
def b_mask(triangle, delta, ROUND: tl.constexpr, ROWS: tl.constexpr):
    """Return the window of the M-mask whose edge lies ``delta`` columns right of the diagonal."""
    row = tl.minimum(tl.maximum(delta, 0), ROUND)
    column = tl.minimum(tl.maximum(-delta, 0), ROUND)
    at = triangle + row * (2 * ROUND) + column
    at = at + tl.arange(0, ROWS)[:, None] * (2 * ROUND) + tl.arange(0, ROUND)[None, :]
    return tl.load(at)


@triton.jit
def value_round(
    weights,
    value,
    value_row,
    products,
    first,
    stop,
    kv_len,
    CHECKED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROUND: tl.constexpr,
    BASIC: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DV_PAD: tl.constexpr,
):
    """Matrix units: write the products (BLOCK_M, DV_PAD) of a round's weights and values."""
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, DV_PAD)
    keys = tl.arange(0, BASIC)
    found = tl.zeros([BLOCK_M, DV_PAD], tl.float32)
    for block in range(0, tl.minimum(stop - first, ROUND), BASIC):
        w = tl.load(weights + rows[:, None] * ROUND + (block + keys)[None, :])
        at = value + (first + block).to(tl.int64) * value_row
        at = at + keys[:, None] * value_row + columns[None, :]
        if CHECKED:
            inside = (keys < kv_len - first - block)[:, None] & (columns < VALUE_DIM)[None, :]
            v = tl.load(at, mask=inside, other=0.0)
        else:
            v = tl.load(at)
        found = tl.dot(w, v, found, input_precision="ieee")
    tl.store(products + rows[:, None] * DV_PAD + columns[None, :], found)


@triton.jit
def add_round(
    products,
    sums,
    factor,
    BLOCK_M: tl.constexpr,
    DV_PAD: tl.constexpr,
    SUM_ROWS: tl.constexpr,
):
    """Vector units: add a round's products to the sums (BLOCK_M, DV_PAD), after its factors."""
    columns = tl.arange(0, DV_PAD)
    for start in range(0, BLOCK_M, SUM_ROWS):
        rows = start + tl.arange(0, SUM_ROWS)
        at = rows[:, None] * DV_PAD + columns[None, :]
        rescale = tl.load(factor + rows)
        tl.store(sums + at, tl.load(sums + at) * rescale[:, None] + tl.load(products + at))


@triton.jit
def begin_tile(
    maximum, total, sums, BLOCK_M: tl.constexpr, DV_PAD: tl.constexpr, SUM_ROWS: tl.constexpr
):
    """Vector units: write the state of a tile that has met no key."""
    columns = tl.arange(0, DV_PAD)
    for start in range(0, BLOCK_M, SUM_ROWS):
        rows = start + tl.arange(0, SUM_ROWS)
        tl.store(maximum + rows, tl.full([SUM_ROWS], float("-inf"), tl.float32))
        tl.store(total + rows, tl.zeros([SUM_ROWS], tl.float32))
        at = rows[:, None] * DV_PAD + columns[None, :]
        tl.store(sums + at, tl.zeros([SUM_ROWS, DV_PAD], tl.float32))


@triton.jit
def end_tile(
    maximum,
    total,
    sums,
    output,
    output_row,
    lse,
    lse_row,
    rows_left,
    BLOCK_M: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DV_PAD: tl.constexpr,
    SUM_ROWS: tl.constexpr,
):
    """Vector units: write output and lse of a tile; zero and ``-inf`` where nothing was seen."""
    columns = tl.arange(0, DV_PAD)
    for start in range(0, BLOCK_M, SUM_ROWS):
        rows = start + tl.arange(0, SUM_ROWS)
        divisor = tl.load(total + rows)
        divisor = tl.where(divisor == 0, 1.0, divisor)  # an unseen row adds log(1) to -inf
        found = tl.load(sums + rows[:, None] * DV_PAD + columns[None, :]) / divisor[:, None]
        at = output + rows[:, None] * output_row + columns[None, :]
        inside = (rows < rows_left)[:, None] & (columns < VALUE_DIM)[None, :]
        tl.store(at, found.to(output.dtype.element_ty), mask=inside)
        logarithm = tl.load(maximum + rows) + tl.log(divisor)
        tl.store(lse + rows * lse_row, logarithm, mask=rows < rows_left)


@triton.jit
def attention_rounds_kernel(
    query,
    key,
    value,
    triangle,
    output,
    lse,
    score_space,
    weight_space,
    sum_space,
    row_space,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    value_batch,
    value_head,
    value_row,
    output_batch,
    output_head,
    output_part,
    output_row,
    lse_batch,
    lse_head,
    lse_part,
    lse_row,
    tasks,
    batches,
    heads,
    group,
    q_tiles,
    parts,
    part_keys,
    q_len,
    kv_len,
    lower,
    upper,
    scale,
    LOWER: tl.constexpr,
    UPPER: tl.constexpr,
    CHECKED: tl.constexpr,
    AHEAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROUND: tl.constexpr,
    BASIC: tl.constexpr,
    ROWS: tl.constexpr,
    SUM_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    D_PAD: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DV_PAD: tl.constexpr,
):
    """Write output and lse of the tiles that fall to a program, one after another.

    A task is a tile of queries of one head and a part of the keys. Query ``i`` sees key ``j`` when
    ``lower <= j - i <= upper``. Rounds in which all see all read no mask; blocks of ``BASIC`` keys
    that none sees are not multiplied.

    Workspaces hold, for each program: ``score_space`` (AHEAD + 1, BLOCK_M, ROUND) float32;
    ``weight_space`` (2, BLOCK_M, ROUND) of the values' type; ``sum_space`` (3, BLOCK_M, DV_PAD)
    float32, products of two rounds and the sums; ``row_space`` (4, BLOCK_M) float32: maxima, totals
    and the factors of two rounds. Two rounds' numbers lie side by side so that both kinds of unit
    can work: the scores of ``AHEAD`` rounds to come are written before a round is weighed, and a
    round's products are added after the next was weighed.
    """
    program = tl.program_id(0).to(tl.int64)
    score_space += program * ((AHEAD + 1) * BLOCK_M * ROUND)
    weight_space += program * (2 * BLOCK_M * ROUND)
    products = sum_space + program * (3 * BLOCK_M * DV_PAD)
    sums = products + 2 * BLOCK_M * DV_PAD
    maximum = row_space + program * (4 * BLOCK_M)
    total = maximum + BLOCK_M
    factor = total + BLOCK_M
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        part = task % parts
        head = task // parts % heads
        batch = task // parts // heads % batches
        tile = task // parts // heads // batches
        if UPPER:
            tile = q_tiles - 1 - tile  # late queries see more keys: they go first
        q_first = tile * BLOCK_M
        q_last = tl.minimum(q_first + BLOCK_M, q_len) - 1
        first = part * part_keys
        end = tl.minimum(first + part_keys, kv_len)
        full_first = first
        full_end = end
        if LOWER:
            first = tl.maximum(first, (q_first + lower) // BASIC * BASIC)
            full_first = tl.maximum(full_first, q_last + lower)
        if UPPER:
            end = tl.minimum(end, q_last + upper + 1)
            full_end = tl.minimum(full_end, q_first + upper + 1)
        rounds = tl.maximum(0, tl.cdiv(end - first, ROUND))

        q_rows = tl.arange(0, BLOCK_M)
        q_columns = tl.arange(0, D_PAD)
        q_at = query + batch.to(tl.int64) * query_batch + head.to(tl.int64) * query_head
        q_at += q_first.to(tl.int64) * query_row
        inside = (q_rows < q_len - q_first)[:, None] & (q_columns < HEAD_DIM)[None, :]
        q = tl.load(q_at + q_rows[:, None] * query_row + q_columns[None, :], mask=inside, other=0.0)
        kv_head = (head // group).to(tl.int64)
        keys = key + batch.to(tl.int64) * key_batch + kv_head * key_head
        values = value + batch.to(tl.int64) * value_batch + kv_head * value_head

        begin_tile(maximum, total, sums, BLOCK_M, DV_PAD, SUM_ROWS)
        for i in range(tl.minimum(rounds, AHEAD)):
            score_round(
                q, keys, key_row, score_space + i * (BLOCK_M * ROUND), first + i * ROUND, end,
                kv_len, CHECKED, BLOCK_M, ROUND, BASIC, HEAD_DIM, D_PAD,
            )  # fmt: skip
        for i in range(rounds):
            start = first + i * ROUND
            later = start + AHEAD * ROUND
            if later < end:
                score_round(
                    q, keys, key_row, score_space + (i + AHEAD) % (AHEAD + 1) * (BLOCK_M * ROUND),
                    later, end, kv_len, CHECKED, BLOCK_M, ROUND, BASIC, HEAD_DIM, D_PAD,
                )  # fmt: skip
            now = i % 2
            scores = score_space + i % (AHEAD + 1) * (BLOCK_M * ROUND)
            weights = weight_space + now * (BLOCK_M * ROUND)
            if (start >= full_first) & (start + ROUND <= full_end):
                weigh_round(
                    scores, weights, maximum, total, factor + now * BLOCK_M, triangle,
                    q_first - start, end - start, lower, upper, scale, False, LOWER, UPPER,
                    BLOCK_M, ROUND, ROWS,
                )  # fmt: skip
            else:
                weigh_round(
                    scores, weights, maximum, total, factor + now * BLOCK_M, triangle,
                    q_first - start, end - start, lower, upper, scale, True, LOWER, UPPER,
                    BLOCK_M, ROUND, ROWS,
                )  # fmt: skip
            value_round(
                weights, values, value_row, products + now * (BLOCK_M * DV_PAD), start, end, kv_len,
                CHECKED, BLOCK_M, ROUND, BASIC, VALUE_DIM, DV_PAD,
            )  # fmt: skip
            if i > 0:
                add_round(
                    products + (1 - now) * (BLOCK_M * DV_PAD), sums, factor + (1 - now) * BLOCK_M,
                    BLOCK_M, DV_PAD, SUM_ROWS,
                )  # fmt: skip
        if rounds > 0:
            last = (rounds - 1) % 2
            add_round(
                products + last * (BLOCK_M * DV_PAD), sums, factor + last * BLOCK_M, BLOCK_M,
                DV_PAD, SUM_ROWS,
            )  # fmt: skip
        out = output + batch.to(tl.int64) * output_batch + head.to(tl.int64) * output_head
        logs = lse + batch.to(tl.int64) * lse_batch + head.to(tl.int64) * lse_head
        end_tile(
            maximum, total, sums, out + part * output_part + q_first.to(tl.int64) * output_row,
            output_row, logs + part * lse_part + q_first.to(tl.int64) * lse_row, lse_row,
            q_len - q_first, BLOCK_M, VALUE_DIM, DV_PAD, SUM_ROWS,
        )  # fmt: skip


@triton.jit
def merge_parts_kernel(
    found,
    logs,
    output,
    lse,
    parts,
    VALUE_DIM: tl.constexpr,
    DV_PAD: tl.constexpr,
):
    """Write output and lse of one row from those of its parts.

    ``found`` (rows, parts, VALUE_DIM) and ``logs`` (rows, parts) are float32 and contiguous, as
    are ``output`` (rows, VALUE_DIM) and ``lse`` (rows).
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, DV_PAD)
    inside = columns < VALUE_DIM
    found += row * parts * VALUE_DIM
    logs += row * parts
    top = tl.load(logs)
    for part in range(1, parts):
        top = tl.maximum(top, tl.load(logs + part))
    unit = tl.where(top == float("-inf"), 0.0, top)  # inf - inf is no number
    total = unit * 0
    sums = tl.zeros([DV_PAD], tl.float32)
    for part in range(parts):
        weight = tl.exp(tl.load(logs + part) - unit)
        total += weight
        sums += weight * tl.load(found + part * VALUE_DIM + columns, mask=inside, other=0.0)
    total = tl.where(total == 0, 1.0, total)
    tl.store(output + row * VALUE_DIM + columns, sums / total, mask=inside)
    tl.store(lse + row, top + tl.log(total))
