"""Merging what several programs found for one row."""

import triton
import triton.language as tl

from tesseral.attention.backends.triton.kernels.places import at_head
from tesseral.attention.backends.triton.kernels.scores import LOG2E, finished, finite, with_sink
from tesseral.runtime.cuda.overlap import let_next_start, wait_for_previous


@triton.jit
def merge_splits_kernel(
    sums,
    states,
    output,
    lse,
    sinks,
    output_steps,
    lse_steps,
    q_heads,
    q_len,
    splits,
    SINKS: tl.constexpr,
    DEPENDENT: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    VALUE_DIM: tl.constexpr,
):
    """Merge the states of all parts of the keys of one row, and its sink, into output and lse.

    Rows are (batch, query, query head); a packed call has one batch of all its queries. Each
    program reads all states, which are few, and writes ``BLOCK_D`` columns. With ``DEPENDENT`` it
    may start before the kernel that leaves them has ended, and waits for it.
    """
    if DEPENDENT:
        let_next_start()
        wait_for_previous()
    chunk = tl.program_id(0) % tl.cdiv(VALUE_DIM, BLOCK_D)
    entry = tl.program_id(0) // tl.cdiv(VALUE_DIM, BLOCK_D)
    head = entry % q_heads
    row = entry // q_heads % q_len
    batch = entry // q_heads // q_len
    columns = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    parts = tl.arange(0, BLOCK_S)
    kept = entry.to(tl.int64) * splits + parts
    inside = parts < splits
    tops = tl.load(states + 2 * kept, mask=inside, other=float("-inf"))
    totals = tl.load(states + 2 * kept + 1, mask=inside, other=0.0)
    at = sums + kept[:, None] * VALUE_DIM + columns[None, :]
    part = tl.load(at, mask=inside[:, None] & (columns < VALUE_DIM)[None, :], other=0.0)
    maximum = tl.max(tops, 0)
    factors = tl.math.exp2((tops - finite(maximum)) * LOG2E)
    total = tl.sum(totals * factors, 0)
    accumulator = tl.sum(part * factors[:, None], 0)
    if SINKS:
        maximum, total, decay = with_sink(maximum, total, tl.load(sinks + head).to(tl.float32))
        accumulator = accumulator * decay
    divisor, log_total = finished(maximum, total)
    at = at_head(output, batch, head, output_steps) + row.to(tl.int64) * output_steps[2] + columns
    tl.store(at, (accumulator * divisor).to(output.dtype.element_ty), mask=columns < VALUE_DIM)
    at = at_head(lse, batch, head, lse_steps) + row.to(tl.int64) * lse_steps[2]
    tl.store(at, log_total, mask=chunk == 0)
