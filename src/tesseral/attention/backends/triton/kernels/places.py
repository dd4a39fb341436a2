"""Where things lie: sequences in a batch, heads, keys in pools."""

import triton
import triton.language as tl


@triton.jit
def sequence(spans, number, sequences, q_len, kv_len, PACKED: tl.constexpr):
    """Return the batch entry of a sequence, and where its queries and keys start, with lengths.

    Sequences are batch entries of equal lengths, or ``PACKED`` into one: ``spans``
    (4, sequences) then holds start and length of each one's queries, and of its keys.
    """
    entry = number
    q_start = number * 0
    kv_start = number * 0
    if PACKED:
        entry = number * 0
        q_start = tl.load(spans + number)
        q_len = tl.load(spans + sequences + number)
        kv_start = tl.load(spans + 2 * sequences + number)
        kv_len = tl.load(spans + 3 * sequences + number)
    return entry, q_start, q_len, kv_start, kv_len


@triton.jit
def at_head(array, batch, head, batch_step, head_step):
    """Return where a head of a batch entry starts; ``head`` may be a column of heads."""
    return array + batch.to(tl.int64) * batch_step + head.to(tl.int64) * head_step


@triton.jit
def at_rows(array, rows, row_step, columns):
    """Return where entries of a tile lie, given where row 0 starts."""
    return array + rows.to(tl.int64)[:, None] * row_step + columns[None, :]


@triton.jit
def key_steps(token, lanes, block, slot, block_step, row_step, PAGED: tl.constexpr):
    """Return the steps from row 0 of a head to some keys.

    With ``PAGED`` each is in a block and a slot of its own; else they follow ``token``, and
    what ``lanes`` adds does not change from tile to tile.
    """
    if PAGED:
        steps = block * block_step + slot * row_step
    else:
        steps = token.to(tl.int64) * row_step + lanes.to(tl.int64) * row_step
    return steps
