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
def at_head(array, batch, head, steps):
    """Return where a head of a batch entry starts; ``head`` may be a column of heads."""
    return array + batch.to(tl.int64) * steps[0] + head.to(tl.int64) * steps[1]


@triton.jit
def at_rows(array, rows, row_step, columns):
    """Return where entries of a tile lie, given where row 0 starts."""
    return array + rows.to(tl.int64)[:, None] * row_step + columns[None, :]


@triton.jit
def find_keys(keys, inside, table, block_size, PAGED: tl.constexpr):
    """Return block and slot of keys in pools; of others, numbers that nobody reads."""
    block, slot = keys, keys
    if PAGED:
        block = tl.load(table + keys // block_size, mask=inside, other=0).to(tl.int64)
        slot = (keys % block_size).to(tl.int64)
    return block, slot


@triton.jit
def to_keys(token, lanes, block, slot, steps, PAGED: tl.constexpr):
    """Return how far some keys are from row 0 of their head.

    With ``PAGED`` each is in a block and a slot of its own; else they follow ``token``, and
    what ``lanes`` adds does not change from tile to tile.
    """
    if PAGED:
        distance = block * steps[0] + slot * steps[2]
    else:
        distance = token.to(tl.int64) * steps[2] + lanes.to(tl.int64) * steps[2]
    return distance
