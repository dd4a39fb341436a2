"""The tiles of a GPU kernel as the model takes them, found from the plans of backends."""

from dataclasses import dataclass

from tesseral.attention.backends.cuda.backend import CudaPlan
from tesseral.attention.backends.triton.backend import TritonPlan
from tesseral.attention.problem import AttentionProblem

HALF = 2
"""Bytes of a number of 16 bits, the only ones that are modelled."""

REGISTERS = 65536
"""Registers of a multiprocessor."""

HOPPER_SHARED = 227 * 1024
"""Shared memory of a multiprocessor of an H100 or H200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTiles:
    """How a GPU kernel cuts a call.

    Attributes
    ----------
    rows, keys : int
        Sides of a tile of scores.
    warps : int
        Warps of a program.
    strip : int
        Rows whose products are one instruction's, or one warp's: their keys are read for them.
    columns : int
        Warps that share a strip, each with a part of the columns, and so read its rows anew.
    resident : int
        Programs that share a multiprocessor.
    stages : int
        Tiles of keys on their way at once; 1 = read before they are multiplied.
    through_registers : bool
        Whether operands are read into registers before they are multiplied (``mma``), or are
        multiplied where they lie in shared memory (``wgmma``).
    weights_near : bool
        Whether weights go through shared memory to be multiplied, or stay in registers.
    reread : bool
        Whether the queries are read again with every tile of keys.
    parts : int
        Programs that share the keys of a tile of rows.
    folded : bool
        Whether the query heads of a group are rows of one tile.
    """

    rows: int
    keys: int
    warps: int
    strip: int
    columns: int = 1
    resident: int = 1
    stages: int = 1
    through_registers: bool = False
    weights_near: bool = False
    reread: bool = False
    parts: int = 1
    folded: bool = False


def gpu_tiles(plan: TritonPlan | CudaPlan, problem: AttentionProblem) -> GpuTiles:
    """Return the tiles of a plan of the ``triton`` backend, for Hopper, or of one in CUDA C++."""
    if isinstance(plan, CudaPlan):
        return _cuda_tiles(plan)
    return _triton_tiles(plan, problem)


def _cuda_tiles(plan: CudaPlan) -> GpuTiles:
    tiles = plan.tiles
    return GpuTiles(
        rows=tiles.rows,
        keys=tiles.keys,
        warps=tiles.warps,
        strip=tiles.rows // tiles.warps,
        resident=tiles.blocks,
        stages=tiles.buffers,
        through_registers=True,
        parts=plan.splits,
    )


def _triton_tiles(plan: TritonPlan, problem: AttentionProblem) -> GpuTiles:
    """Return its tiles; how many programs share a multiprocessor follows from what they need.

    That is shared memory for queries and ``stages`` tiles of keys and values, and registers for
    scores, weights and sums, and 64 a thread.
    """
    config = plan.config
    shared = HALF * config.q_tile * problem.head_dim
    shared += HALF * config.stages * config.k_tile * (problem.head_dim + problem.value_dim)
    threads = 32 * config.warps
    numbers = config.q_tile * (1.5 * config.k_tile + problem.value_dim)
    registers = threads * min(255, 64 + numbers / threads)
    resident = max(1, min(HOPPER_SHARED // shared, int(REGISTERS // registers)))
    folded = plan.kernel == "rows"
    return GpuTiles(
        rows=config.q_tile,
        keys=config.k_tile,
        warps=config.warps,
        strip=16 if folded else 64,
        resident=resident,
        stages=config.stages,
        through_registers=folded,  # wgmma takes 64 rows
        parts=plan.splits,
        folded=folded,
    )
