"""The tiling mask: a small triangle that stands for the mask of any length."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from tesseral._errors import ParameterError, ShapeError
from tesseral.attention import tiling
from tesseral.attention.mask import Align, Band, Window, make_band
from tesseral.attention.tiling import Block, BlockCount, Coverage, KeyRange

BooleanMatrix: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class TilingMask:
    """The mask of a causal or windowed attention, never built as a whole.

    Whether a block of the (q_len, kv_len) mask is full, partial or empty is integer
    arithmetic on its corners. The mask of a partial block, its B-mask, is a window of one
    triangle of size (2 block, 2 block), the M-mask, found by a shift; a band with two edges
    takes a second window, of the triangle transposed.

    Parameters
    ----------
    q_len, kv_len : int
        Number of queries and of keys.
    is_causal : bool
        Hide the keys after the diagonal.
    window : (int, int), optional
        Hide keys further than ``left`` before and ``right`` after the diagonal;
        -1 = unbounded. With ``is_causal`` both hold.
    align : {"bottom-right", "top-left"} or int
        Where the diagonal runs: through the last query and key, through the first, or
        through query 0 and the key of that number.
    block : int
        Longest side of a block whose mask can be asked for.

    Attributes
    ----------
    band : Band
        The rule that all of these amount to.

    Raises
    ------
    ParameterError
        If a length, ``window``, ``align`` or ``block`` is not as described here.

    References
    ----------
    FastAttention (arXiv 2410.16663), the tiling-mask strategy.

    Examples
    --------
    >>> mask = TilingMask(1_048_576, 1_048_576, is_causal=True)
    >>> mask.nbytes
    4194304
    >>> mask.key_range(512, 1024)
    KeyRange(start=0, full_start=0, full_stop=513, stop=1024)
    >>> mask.count(1024, 1024)
    BlockCount(full=523776, partial=1024, empty=523776)
    >>> TilingMask(3, 4, is_causal=True).block_mask(0, 3, 1, 4).astype(int)
    array([[1, 0, 0],
           [1, 1, 0],
           [1, 1, 1]])
    """

    q_len: int
    kv_len: int
    is_causal: bool = False
    window: Window | None = None
    align: Align = "bottom-right"
    block: int = 1024
    band: Band = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.q_len < 0 or self.kv_len < 0:
            raise ParameterError(
                f"TilingMask: a length is at least 0, got q_len={self.q_len}, kv_len={self.kv_len}."
            )
        if self.block < 1:
            raise ParameterError(f"TilingMask: block={self.block} must be at least 1.")
        band = make_band(
            self.q_len,
            self.kv_len,
            is_causal=self.is_causal,
            window=self.window,
            align=self.align,
        )
        object.__setattr__(self, "band", band)

    @property
    def nbytes(self) -> int:
        """Bytes of the M-mask, whatever the lengths."""
        return (2 * self.block) ** 2

    def key_range(self, q_start: int, q_stop: int) -> KeyRange:
        """Return the keys that queries ``[q_start, q_stop)`` see, and those all of them see.

        Raises
        ------
        ShapeError
            If the queries do not lie within ``[0, q_len)``.
        """
        _check_span("queries", q_start, q_stop, self.q_len)
        return tiling.key_range(self.band, q_start, q_stop, self.kv_len)

    def classify(self, q_start: int, q_stop: int, k_start: int, k_stop: int) -> Coverage:
        """Return how much of queries ``[q_start, q_stop)`` by keys ``[k_start, k_stop)`` is seen.

        A block without entries is empty.

        Raises
        ------
        ShapeError
            If the block does not lie within the mask.
        """
        _check_span("keys", k_start, k_stop, self.kv_len)
        return tiling.coverage(self.key_range(q_start, q_stop), k_start, k_stop)

    def blocks(self, q_tile: int, k_tile: int) -> Iterator[Block]:
        """Yield the blocks of a grid that are not empty, row by row.

        Parameters
        ----------
        q_tile, k_tile : int
            Sides of a block; the last of a row or column may be smaller.

        Raises
        ------
        ParameterError
            If a side is less than 1.
        """
        _check_tiles(q_tile, k_tile)
        for q_start in range(0, self.q_len, q_tile):
            q_stop = min(q_start + q_tile, self.q_len)
            seen = self.key_range(q_start, q_stop)
            for k_start in range(seen.start - seen.start % k_tile, seen.stop, k_tile):
                k_stop = min(k_start + k_tile, self.kv_len)
                coverage = tiling.coverage(seen, k_start, k_stop)
                if coverage is not Coverage.EMPTY:
                    yield Block(q_start, q_stop, k_start, k_stop, coverage)

    def count(self, q_tile: int, k_tile: int) -> BlockCount:
        """Return how many blocks of a grid are full, partial and empty.

        The cost is one step for each row of blocks, not for each block.

        Raises
        ------
        ParameterError
            If a side is less than 1.
        """
        _check_tiles(q_tile, k_tile)
        full = visible = 0
        for q_start in range(0, self.q_len, q_tile):
            seen = self.key_range(q_start, min(q_start + q_tile, self.q_len))
            row_full, row_visible = tiling.count_row(seen, k_tile, self.kv_len)
            full += row_full
            visible += row_visible
        total = -(-self.q_len // q_tile) * -(-self.kv_len // k_tile)
        return BlockCount(full=full, partial=visible - full, empty=total - visible)

    def block_mask(self, q_start: int, q_stop: int, k_start: int, k_stop: int) -> BooleanMatrix:
        """Return the B-mask of one block: True where the query sees the key.

        Returns
        -------
        boolean array of shape (q_stop - q_start, k_stop - k_start)
            Read-only, and no copy: a window of the M-mask. Only a band with two edges makes
            a new array, where two windows meet.

        Raises
        ------
        ShapeError
            If the block does not lie within the mask or has a side longer than ``block``.
        """
        _check_span("queries", q_start, q_stop, self.q_len)
        _check_span("keys", k_start, k_stop, self.kv_len)
        shape = (q_stop - q_start, k_stop - k_start)
        if max(shape) > self.block:
            raise ShapeError(
                f"TilingMask: a block of shape {shape} has a side longer than block={self.block}."
            )
        triangle, shift = _m_mask(self.block), q_start - k_start
        windows = []
        if self.band.upper is not None:
            windows.append(_window(triangle, shift + self.band.upper, shape))
        if self.band.lower is not None:
            windows.append(_window(triangle.T, shift + self.band.lower, shape))
        if not windows:
            return np.broadcast_to(np.True_, shape)
        return windows[0] if len(windows) == 1 else _meet(*windows)


@lru_cache(maxsize=4)
def _m_mask(block: int) -> BooleanMatrix:
    """Return the M-mask, shared by all that ask: entry (r, c) is visible when ``c <= r``."""
    triangle = np.tri(2 * block, dtype=np.bool_)
    triangle.flags.writeable = False
    return triangle


def _window(triangle: BooleanMatrix, delta: int, shape: tuple[int, int]) -> BooleanMatrix:
    """Return the window of a triangle whose edge lies ``delta`` columns right of the diagonal.

    A shift by more than half the triangle moves the edge out of any block, so it is cut there.
    """
    half = triangle.shape[0] // 2
    row, column = min(max(delta, 0), half), min(max(-delta, 0), half)
    return triangle[row : row + shape[0], column : column + shape[1]]


def _meet(one: BooleanMatrix, other: BooleanMatrix) -> BooleanMatrix:
    both: BooleanMatrix = one & other
    both.flags.writeable = False
    return both


def _check_span(what: str, start: int, stop: int, length: int) -> None:
    if not 0 <= start <= stop <= length:
        raise ShapeError(f"TilingMask: {what} [{start}, {stop}) do not lie within [0, {length}).")


def _check_tiles(q_tile: int, k_tile: int) -> None:
    if min(q_tile, k_tile) < 1:
        raise ParameterError(
            f"TilingMask: the side of a tile is at least 1, got q_tile={q_tile}, k_tile={k_tile}."
        )
