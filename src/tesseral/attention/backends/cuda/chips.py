"""The chips that have a kernel of their own, and how a call is cut into tiles on each."""

from dataclasses import dataclass

from tesseral.attention.problem import AttentionProblem

MAX_DIM = 256
"""Largest head dimension."""

LEAST_SPLIT = 256
"""Keys of a part, at least, when there are too few rows to fill the device."""

WIDTHS = (64, 128, 256)
"""Columns that a row may have in shared memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How a call is cut on a chip.

    Attributes
    ----------
    width : int
        Columns that a row has in shared memory: 64, 128 or 256.
    warps, keys : int
        Warps of a block of threads, and keys of a tile.
    rows : int
        Rows of a block, query heads of a group counted.
    blocks : int
        Blocks that share a multiprocessor, by their registers and their shared memory.
    shared_bytes : int
        Shared memory of a block.
    squares : int
        Volta: squares of 16 rows that a warp has.
    buffers : int
        Turing: tiles of keys, and of values, in shared memory at once.
    """

    width: int
    warps: int
    keys: int
    rows: int
    blocks: int
    shared_bytes: int
    squares: int = 1
    buffers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A chip that kernels are written for.

    Attributes
    ----------
    name : str
        Of the folder with its kernel.
    architecture : int
        Its compute capability, ten times.
    half_scores : bool
        Whether scores are summed in float16 (Volta).
    """

    name: str
    architecture: int
    half_scores: bool = False

    def tiles(self, problem: AttentionProblem) -> Tiles:
        """Return the tiles of a call."""
        width = next(w for w in WIDTHS if max(problem.head_dim, problem.value_dim) <= w)
        return (_TURING if self.name == "turing" else _VOLTA)[width]


def _turing(width: int, *, keys: int, warps: int, buffers: int) -> Tiles:
    rows = 16 * warps
    kept = rows if width == 256 else 0  # queries of 256 numbers do not fit into registers
    return Tiles(
        width=width, warps=warps, keys=keys, rows=rows, blocks=1, buffers=buffers,
        shared_bytes=2 * width * max(2 * buffers * keys + kept, rows),
    )  # fmt: skip


def _volta(width: int, *, keys: int, warps: int, squares: int, blocks: int) -> Tiles:
    rows = 16 * squares * warps
    return Tiles(
        width=width, warps=warps, keys=keys, rows=rows, blocks=blocks, squares=squares,
        shared_bytes=2 * width * (2 * keys + rows),
    )  # fmt: skip


# A multiprocessor of Turing has 64 KiB of shared memory, and registers for 8 warps at 255 each or
# for 12 at 168; at width 128 the latter was 1.05 to 1.12 times as fast on an H200.
_TURING = {
    64: _turing(64, keys=64, warps=8, buffers=2),
    128: _turing(128, keys=48, warps=12, buffers=2),
    256: _turing(256, keys=32, warps=4, buffers=1),
}

# Volta has 96 KiB: two blocks share them, but that at width 256 queries of 8 warps take 64.
_VOLTA = {
    64: _volta(64, keys=64, warps=4, squares=2, blocks=2),
    128: _volta(128, keys=32, warps=4, squares=2, blocks=2),
    256: _volta(256, keys=32, warps=8, squares=1, blocks=1),
}

TURING = Chip(name="turing", architecture=75)
VOLTA = Chip(name="volta", architecture=70)
VOLTA_HALF = Chip(name="volta", architecture=70, half_scores=True)


def count_splits(problem: AttentionProblem, tiles: Tiles, multiprocessors: int) -> int:
    """Return among how many blocks the keys of each tile of rows are shared."""
    row_tiles = -(-problem.group * max(1, problem.q_len) // tiles.rows)
    filled = row_tiles * problem.kv_heads * max(1, problem.batch)
    wanted = tiles.blocks * multiprocessors // filled
    return max(1, min(wanted, problem.kv_len // LEAST_SPLIT))
