"""Which tiles the kernels take: measured ones from data files, careful ones elsewhere."""

import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from typing import Literal, TypeAlias

from tesseral.attention.problem import AttentionProblem
from tesseral.runtime.cuda import device as cuda
from tesseral.runtime.triton import least_columns

Kernel: TypeAlias = Literal["tiles", "rows", "gradients"]
"""Tiles of one head, rows of a group, or the backward pass."""


LEAST_SPLIT = 256
"""Keys of a part, at least, when few rows share their keys among several programs."""

MOST_SPLITS = 128
"""Parts of the keys, at most: merging them costs too."""


SHORT = 2048
"""Keys up to which tiles of one head are measured apart: larger ones start less often."""

_SHORT = " short"


@dataclass(frozen=True, slots=True, kw_only=True)
class TileConfig:
    """How a kernel is cut and compiled.

    Attributes
    ----------
    q_tile, k_tile : int
        Rows and keys of a tile; powers of two.
    warps, stages : int
        Warps of a program, and tiles of keys on their way at once.
    describe : bool
        Whether tiles are read by the copy engine, through descriptors (9.0 and later).
    waves : int
        Programs for each multiprocessor that the keys of few rows are shared among.
    """

    q_tile: int
    k_tile: int
    warps: int
    stages: int
    describe: bool = False
    waves: int = 2


def padded(width: int) -> int:
    """Return the columns that a tile has for a head dimension: a power of two from 32 up."""
    return max(32, 1 << (width - 1).bit_length())


def case_of(problem: AttentionProblem, kernel: Kernel) -> str:
    """Return the name of the case that tiles are measured for.

    Examples
    --------
    >>> problem = AttentionProblem(
    ...     batch=1, q_len=9, kv_len=9, q_heads=1, kv_heads=1, head_dim=80, value_dim=80,
    ...     dtype="bfloat16", device="cuda:0", causal=True, scale=1.0,
    ... )
    >>> case_of(problem, "tiles")
    'tiles half 128 banded short'
    """
    size = "float32" if problem.dtype == "float32" else "half"
    width = max(padded(problem.head_dim), padded(problem.value_dim))
    if kernel == "rows":
        return f"rows {size} {width} {_bits(problem.key_format)}"
    if kernel == "gradients":
        return f"gradients {size} {width}"
    if is_general(problem):
        rule = "general"
    else:
        rule = "banded" if problem.causal or problem.window else "full"
    return f"tiles {size} {width} {rule}{_SHORT if problem.kv_len <= SHORT else ''}"


def choose_tiles(
    problem: AttentionProblem, kernel: Kernel, capability: tuple[int, int]
) -> TileConfig:
    """Return the tiles measured for a case on this kind of device, or careful ones."""
    known, case = measured_tiles(capability), case_of(problem, kernel)
    found = known.get(case) or known.get(case.removesuffix(_SHORT)) or _careful(problem, kernel)
    return fitted(problem, kernel, found)


def fitted(problem: AttentionProblem, kernel: Kernel, config: TileConfig) -> TileConfig:
    """Return tiles without the rows that a call of few rows would leave empty."""
    least = least_columns()  # rows are columns of the products
    if kernel == "rows" and 0 < problem.q_len * problem.group <= least:
        return replace(config, q_tile=least)
    return config


def write_measured(found: dict[str, TileConfig], machine: str, date: str) -> str:
    """Return the text of a data file."""
    cases = {case: asdict(config) for case, config in sorted(found.items())}
    return json.dumps({"machine": machine, "date": date, "cases": cases}, indent=1) + "\n"


def count_splits(problem: AttentionProblem, config: TileConfig) -> int:
    """Return among how many programs the keys of each tile of rows are shared."""
    row_tiles = -(-problem.group * max(1, problem.q_len) // config.q_tile)
    programs = row_tiles * problem.kv_heads * max(1, problem.batch)
    wanted = config.waves * cuda.multiprocessors(problem.device) // programs
    wanted = max(1, min(wanted, MOST_SPLITS, problem.kv_len // LEAST_SPLIT))
    k_tiles = -(-problem.kv_len // config.k_tile)
    part = -(-k_tiles // wanted)
    return max(1, -(-k_tiles // part)) if k_tiles else 1  # none of which is empty


@cache
def measured_tiles(capability: tuple[int, int]) -> dict[str, TileConfig]:
    """Return the tiles in the data file of an architecture, by case; none without a file."""
    file = resources.files(__package__) / "tuned" / f"sm{capability[0]}{capability[1]}.json"
    if not file.is_file():
        return {}
    cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
    return {case: TileConfig(**config) for case, config in cases.items()}


def _careful(problem: AttentionProblem, kernel: Kernel) -> TileConfig:
    """Return tiles that fit the shared memory of every supported device, 99 KiB at least."""
    width = max(padded(problem.head_dim), padded(problem.value_dim))
    wide = width * (4 if problem.dtype == "float32" else 2)  # bytes of a row
    if kernel == "rows":
        return TileConfig(
            q_tile=16, k_tile=max(16, min(64, 2**14 // wide)), warps=4, stages=2, waves=4
        )
    if kernel == "gradients":
        side = max(16, min(64, 2**13 // wide))
        return TileConfig(q_tile=side, k_tile=side, warps=4, stages=1)
    return TileConfig(
        q_tile=max(32, min(128, 2**15 // wide)),
        k_tile=max(16, min(64, 2**14 // wide)),
        warps=8 if wide == 256 else 4,
        stages=2,
    )


def is_general(problem: AttentionProblem) -> bool:
    """Return whether scores take more than a positive factor."""
    return bool(
        problem.softcap or problem.alibi or problem.mask == "additive" or problem.scale <= 0
    )


def _bits(kind: str) -> int:
    """Return the width of codes, 16 for plain numbers."""
    return 16 if kind == "dense" else int(kind.removeprefix("packed"))
