"""How a call is cut into tiles that fit a memory budget."""

from collections.abc import Iterator
from dataclasses import dataclass

from tesseral.attention.problem import AttentionProblem
from tesseral.attention.tiling import KeyRange

ROWS = 256
"""Query rows of a tile, query heads of a group counted as rows: enough for a matrix product."""

KEYS = 1024
"""Keys of a tile, unless there are so few rows that more fit."""

MASKED_KEYS = 256
"""Keys of a tile that reads a mask; shorter ones waste less beyond the edge."""

BUDGET_CPU = 2**21
"""Numbers alive in a tile: 8 MiB in float32, near the caches of a core or two."""

BUDGET_ACCELERATOR = 2**26
"""The same where a launch costs more than memory does: 256 MiB in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePlan:
    """Sides of a tile along each axis, and the bytes it needs beside inputs and output.

    ``head_tile`` counts key heads, ``q_tile`` positions: a tile has as many rows as
    positions times query heads in a group.
    """

    batch_tile: int
    head_tile: int
    q_tile: int
    k_tile: int
    workspace_bytes: int


def plan_tiles(problem: AttentionProblem) -> TilePlan:
    """Return tiles large enough for matrix products to dominate and small enough to stay near.

    Keys and values that are no plain float32 or float64 are converted tile by tile, so they
    count towards the budget.
    """
    budget = BUDGET_CPU if problem.device == "cpu" else BUDGET_ACCELERATOR
    q_tile = max(1, min(problem.q_len, ROWS // problem.group))
    per_key = problem.group * q_tile + _converted(problem)
    k_tile = max(1, min(problem.kv_len, KEYS))
    pairs = max(1, budget // (per_key * k_tile))
    head_tile = min(problem.kv_heads, pairs)
    batch_tile = max(1, min(problem.batch, pairs // head_tile))
    pairs = head_tile * batch_tile
    # with few rows, as in decoding, whole tiles are left over: spend them on keys
    k_tile = max(k_tile, min(problem.kv_len, budget // (per_key * pairs) // KEYS * KEYS))
    itemsize = 8 if problem.dtype == "float64" else 4
    return TilePlan(
        batch_tile=batch_tile,
        head_tile=head_tile,
        q_tile=q_tile,
        k_tile=k_tile,
        workspace_bytes=pairs * per_key * k_tile * itemsize,
    )


def key_tiles(seen: KeyRange, plan: TilePlan) -> Iterator[tuple[slice, bool]]:
    """Yield the key tiles that a tile of queries visits, and whether each reads a mask.

    Keys that no query sees are not visited. The edges of the part that all queries see are
    moved inwards to a whole number of masked tiles, so that no sliver makes a tile.
    """
    step = min(MASKED_KEYS, plan.k_tile)
    full_start = seen.start + -(-(seen.full_start - seen.start) // step) * step
    full_stop = seen.stop - -(-(seen.stop - seen.full_stop) // step) * step
    if full_start >= full_stop:
        full_start = full_stop = seen.stop
    yield from _cut(seen.start, full_start, step, masked=True)
    yield from _cut(full_start, full_stop, plan.k_tile, masked=False)
    yield from _cut(full_stop, seen.stop, step, masked=True)


def spans(length: int, tile: int) -> list[slice]:
    """Return the spans of ``tile`` that cover ``length``; an empty length has one, empty."""
    return [slice(start, min(start + tile, length)) for start in range(0, max(length, 1), tile)]


def _cut(start: int, stop: int, tile: int, *, masked: bool) -> Iterator[tuple[slice, bool]]:
    for tile_start in range(start, stop, tile):
        yield slice(tile_start, min(tile_start + tile, stop)), masked


def _converted(problem: AttentionProblem) -> int:
    """Return how many numbers of a key and its value are converted before use."""
    half = problem.dtype in ("float16", "bfloat16")
    key = problem.head_dim if half or problem.key_format != "dense" else 0
    value = problem.value_dim if half or problem.value_format != "dense" else 0
    return key + value
