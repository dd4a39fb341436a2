"""Merging what several programs found for one row."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from tesseral.attention.backends.triton.kernels.places import at_head
from tesseral.attention.backends.triton.kernels.scores import LOG2E, finished, finite, with_sink


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
    EARLY: tl.constexpr,
    BLOCK_S: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    DV_PAD: tl.constexpr,
):
    """Merge the states of all parts of the keys of one row, and its sink, into output and lse.

    Rows are (batch, query, query head); a packed call has one batch of all its queries. With
    ``EARLY`` it starts before the states are written, and waits.
    """
    entry = tl.program_id(0)
    head = entry % q_heads
    row = entry // q_heads % q_len
    batch = entry // q_heads // q_len
    columns = tl.arange(0, DV_PAD)
    maximum = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    accumulator = tl.zeros([DV_PAD], tl.float32)
    if EARLY:
        gdc_wait()
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
    at = at_head(output, batch, head, output_steps) + row.to(tl.int64) * output_steps[2] + columns
    tl.store(at, (accumulator * divisor).to(output.dtype.element_ty), mask=columns < VALUE_DIM)
    at = at_head(lse, batch, head, lse_steps) + row.to(tl.int64) * lse_steps[2]
    tl.store(at + tl.zeros([1], tl.int32), log_total)
