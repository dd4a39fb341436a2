"""What all kernels share: which keys a tile of queries sees, and what is added to scores."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def first_key(first_place, kv_len, left, LEFT: tl.constexpr):
    """Return the first key that a tile of queries sees; ``first_place`` is its first place."""
    return tl.minimum(tl.maximum(first_place - left, 0), kv_len) if LEFT else 0


@triton.jit
def end_key(last_place, kv_len, right, RIGHT: tl.constexpr):
    """Return where the keys that a tile sees end; ``last_place`` is its last place."""
    return tl.maximum(0, tl.minimum(kv_len, last_place + right + 1)) if RIGHT else kv_len


@triton.jit
def key_tiles(
    first_place,
    last_place,
    kv_len,
    left,
    right,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Return where the tiles of keys start, where they are full from and up to, and end.

    Queries at places ``first_place`` to ``last_place`` among the keys see some of the keys
    between start and end, which are multiples of the tile but for the end, and all of those
    between the two in the middle.
    """
    start = first_key(first_place, kv_len, left, LEFT) // BLOCK_N * BLOCK_N
    end = end_key(last_place, kv_len, right, RIGHT)
    full_start = start
    if LEFT:
        full_start = tl.maximum(start, tl.cdiv(last_place - left, BLOCK_N) * BLOCK_N)
    full_end = kv_len
    if RIGHT:
        full_end = tl.maximum(0, tl.minimum(kv_len, first_place + right + 1))
    full_end = full_end // BLOCK_N * BLOCK_N
    if full_start >= full_end:
        full_start = start
        full_end = start
    return start, full_start, full_end, end


@triton.jit
def sees(ahead, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr):
    """Return whether a query sees a key by the band, given how far the key is ahead of it."""
    seen = ahead * 0 == 0
    if LEFT:
        seen = seen & (ahead >= -left)
    if RIGHT:
        seen = seen & (ahead <= right)
    return seen


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent, within a few units of float32's precision."""
    return 1 - 2 / (1 + tl.math.exp2(x * (2 * LOG2E)))


@triton.jit
def biased(scores, ahead, softcap, slope, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr):
    """Return scores after cap and linear bias, given how far each key is ahead of its query."""
    if SOFTCAP:
        scores = softcap * tanh(scores / softcap)
    if ALIBI:
        scores = scores - slope * tl.abs(ahead).to(tl.float32)
    return scores


@triton.jit
def finite(maximum):
    """Return a unit to subtract: zero in place of ``-inf``, since inf - inf is no number."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def with_sink(maximum, total, sink):
    """Return maximum, total and the factor of the sums after a sink, in natural units."""
    top = tl.maximum(maximum, sink)
    unit = finite(top)
    factor = tl.math.exp2((maximum - unit) * LOG2E)
    return top, total * factor + tl.math.exp2((sink - unit) * LOG2E), factor


@triton.jit
def finished(maximum, total):
    """Return what sums are multiplied by, and the lse; zero and ``-inf`` where nothing was seen."""
    unseen = total == 0
    safe = tl.where(unseen, 1.0, total)
    lse = tl.where(unseen, float("-inf"), maximum + tl.math.log2(safe) * LN2)
    return tl.where(unseen, 0.0, 1.0 / safe), lse
