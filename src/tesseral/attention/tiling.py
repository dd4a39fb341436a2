"""Integer arithmetic of tiles: which keys a tile of queries sees, which blocks are full."""

from dataclasses import dataclass
from enum import Enum

from tesseral.attention.mask import Band


class Coverage(Enum):
    """How much of a block of scores the mask leaves visible."""

    EMPTY = "empty"
    PARTIAL = "partial"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys that matter to a tile of queries.

    Every key in ``[start, stop)`` is seen by some query of the tile and no other key is;
    those in ``[full_start, full_stop)``, which lies inside, are seen by all of them. Either
    may be empty.
    """

    start: int
    full_start: int
    full_stop: int
    stop: int


@dataclass(frozen=True, slots=True)
class Block:
    """Queries ``[q_start, q_stop)`` against keys ``[k_start, k_stop)``."""

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class BlockCount:
    """How many blocks of a grid are of each kind."""

    full: int
    partial: int
    empty: int


def key_range(band: Band, q_start: int, q_stop: int, kv_len: int) -> KeyRange:
    """Return the keys that queries ``[q_start, q_stop)`` see under ``band``.

    The band moves by one key from a query to the next, so the keys seen by some query and
    the keys seen by all are both intervals.
    """
    if q_start == q_stop:
        return KeyRange(0, 0, 0, 0)
    lower, upper = band.lower, band.upper
    start = 0 if lower is None else min(max(0, q_start + lower), kv_len)
    stop = kv_len if upper is None else max(start, min(kv_len, q_stop + upper))
    full_start = start if lower is None else max(start, q_stop - 1 + lower)
    full_stop = stop if upper is None else min(stop, q_start + upper + 1)
    if full_start >= full_stop:
        full_start = full_stop = start
    return KeyRange(start, full_start, full_stop, stop)


def coverage(seen: KeyRange, k_start: int, k_stop: int) -> Coverage:
    """Return how much of keys ``[k_start, k_stop)`` a tile of queries sees.

    A block without entries is empty.
    """
    if max(k_start, seen.start) >= min(k_stop, seen.stop):
        return Coverage.EMPTY
    inside = seen.full_start <= k_start and k_stop <= seen.full_stop
    return Coverage.FULL if inside else Coverage.PARTIAL


def count_row(seen: KeyRange, k_tile: int, kv_len: int) -> tuple[int, int]:
    """Return how many key tiles of a grid are full and how many are not empty."""
    if seen.start >= seen.stop:
        return 0, 0
    visible = -(-seen.stop // k_tile) - seen.start // k_tile
    if seen.full_start >= seen.full_stop:
        return 0, visible
    # the last tile ends with the keys, which may be before its own end
    ends = seen.full_stop == kv_len
    stop = -(-seen.full_stop // k_tile) if ends else seen.full_stop // k_tile
    return max(0, stop - -(-seen.full_start // k_tile)), visible
