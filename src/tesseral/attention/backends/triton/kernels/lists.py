"""Which tiles of a dense mask are empty, partial and full: found once, read by every head."""

import triton
import triton.language as tl

from tesseral.attention.backends.triton.kernels.places import at_head
from tesseral.attention.backends.triton.kernels.scores import key_tiles, sees


@triton.jit
def mask_lists_kernel(
    mask,
    partial_tiles,
    full_tiles,
    tile_counts,
    mask_steps,
    heads,
    q_len,
    kv_len,
    left,
    right,
    ADDITIVE: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write which tiles of keys one tile of queries sees some of, and which all of.

    A tile is empty, and listed nowhere, where band and mask together hide all of it; it is
    full where they hide nothing and the mask adds nothing. One program a tile of queries;
    the mask is read once.
    """
    q_tiles = tl.cdiv(q_len, BLOCK_M)
    k_tiles = tl.cdiv(kv_len, BLOCK_N)
    entry = tl.program_id(0)
    tile = entry % q_tiles
    head = entry // q_tiles % heads
    batch = entry // q_tiles // heads
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_rows = (rows < q_len)[:, None]
    places = rows + (kv_len - q_len)
    first_place = tile * BLOCK_M + kv_len - q_len
    last_place = tl.minimum(tile * BLOCK_M + BLOCK_M, q_len) - 1 + kv_len - q_len
    start, _, _, end = key_tiles(first_place, last_place, kv_len, left, right, LEFT, RIGHT, BLOCK_N)
    row = at_head(mask, batch, head, mask_steps) + rows.to(tl.int64)[:, None] * mask_steps[2]
    partial = partial_tiles + entry.to(tl.int64) * k_tiles
    full = full_tiles + entry.to(tl.int64) * k_tiles
    n_partial = 0
    n_full = 0
    for at in tl.range(start, end, BLOCK_N):
        keys = at + tl.arange(0, BLOCK_N)
        inside = inside_rows & (keys < kv_len)[None, :]
        part = tl.load(row + keys.to(tl.int64)[None, :] * mask_steps[3], mask=inside, other=0)
        seen = inside & sees(keys[None, :] - places[:, None], left, right, LEFT, RIGHT)
        if ADDITIVE:
            seen = seen & (part != float("-inf"))
            plain = seen & (part == 0)
        else:
            seen = seen & (part != 0)
            plain = seen
        some = tl.sum(tl.sum(seen.to(tl.int32), 1), 0) > 0
        # queries past the last one ask for nothing; keys past the last one must be hidden
        whole = inside_rows & (keys < at + BLOCK_N)[None, :]
        wanted = tl.sum(tl.sum(whole.to(tl.int32), 1), 0)
        every = tl.sum(tl.sum(plain.to(tl.int32), 1), 0) == wanted
        tl.store(full + n_full, at // BLOCK_N, mask=every)
        tl.store(partial + n_partial, at // BLOCK_N, mask=some & (every == 0))
        n_full += every.to(tl.int32)
        n_partial += (some & (every == 0)).to(tl.int32)
    tl.store(tile_counts + 2 * entry, n_partial)
    tl.store(tile_counts + 2 * entry + 1, n_full)
