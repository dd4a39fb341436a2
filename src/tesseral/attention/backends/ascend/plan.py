"""How a call is cut on an Ascend chip: sizes from the limits of its memories."""

from dataclasses import dataclass
from typing import Any

from tesseral.attention.backends.ascend.chip import Chip
from tesseral.attention.mask import Band
from tesseral.attention.plan import TilePlan
from tesseral.attention.problem import AttentionProblem

AHEAD = 2
"""Rounds whose scores matrix units write before a round is weighed."""

LEAST_ROWS = 16
"""Side of the smallest product of a cube core; fewer queries are padded."""

VECTOR_ROWS = 8
"""Rows of a vector tile, at least: their maxima fill the 32 bytes that a copy moves at once."""

LEAST_PART = 1024
"""Keys of a part, at least, when few queries share their keys among several cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AscendPlan(TilePlan):
    """Two levels of tiles: rounds between matrix and vector units, and what fits each of them.

    ``q_tile`` queries meet ``k_tile`` keys in a round.

    Attributes
    ----------
    basic : int
        Keys of a basic block, the product that fits the memories of a cube core.
    vector_rows, sum_rows : int
        Rows of scores, and of sums, that a vector core takes at a time.
    ahead : int
        Rounds whose scores are written before a round is weighed.
    programs : int
        Cores that take tasks.
    parts : int
        Tasks among which the keys of a tile are shared.
    folded : bool
        Whether the rows of a tile are the query heads of a group, for one query each.
    """

    basic: int
    vector_rows: int
    sum_rows: int
    ahead: int
    programs: int
    parts: int
    folded: bool


def plan_rounds(problem: AttentionProblem, chip: Chip, cores: int) -> AscendPlan:
    """Return tiles that fill the memories of a chip, each with room for the next one's arrival.

    Left and right operand and product of a basic block are there twice (L0A, L0B, L0C). A
    round's weights take half of L1; the queries and, twice, a block of keys or values take the
    other. A vector tile with its weights and mask is there twice (UB).

    Parameters
    ----------
    problem : AttentionProblem
        The call.
    chip : Chip
        The limits.
    cores : int
        Cube cores to share tasks among.
    """
    size = 4 if problem.dtype == "float32" else 2
    width = max(padded(problem.head_dim), padded(problem.value_dim))
    side = _power_below(int((chip.l0c // (2 * 4)) ** 0.5))
    depth = min(width, _power_below(chip.l0a // (2 * side * size)))
    folded = problem.q_len == 1
    rows = problem.group if folded else problem.q_len
    q_tile = min(side, max(LEAST_ROWS, _power_above(rows)))
    row = width * size
    basic = min(
        side,
        _power_below(chip.l0b // (2 * depth * size)),
        _power_below((chip.l1 // 2 - q_tile * row) // (2 * row)),
    )
    score_bytes = 2 * (4 + size + 1)  # a score, its weight and its mask, there twice
    k_tile = min(
        _power_below(chip.l1 // 2 // (side * size)),
        _power_below(chip.ub // (VECTOR_ROWS * score_bytes)),
        max(basic, _power_above(problem.kv_len)),
    )
    vector_rows = min(q_tile, _power_below(chip.ub // (k_tile * score_bytes)))
    sum_rows = min(q_tile, _power_below(chip.ub // (2 * 2 * 4 * padded(problem.value_dim))))
    heads = problem.kv_heads if folded else problem.q_heads
    tiles = -(-max(1, rows) // q_tile) * heads * max(1, problem.batch)
    parts = max(1, min(cores // tiles, problem.kv_len // LEAST_PART)) if folded else 1
    programs = max(1, min(cores, tiles * parts))
    numbers = q_tile * (4 * (AHEAD + 1) * k_tile + 2 * size * k_tile)
    numbers += q_tile * (3 * 4 * padded(problem.value_dim) + 4 * 4)
    found = 4 * problem.batch * problem.q_heads * (problem.value_dim + 1)
    return AscendPlan(
        batch_tile=1,
        head_tile=1,
        q_tile=q_tile,
        k_tile=k_tile,
        workspace_bytes=programs * numbers + (parts * found if parts > 1 else 0),
        basic=basic,
        vector_rows=vector_rows,
        sum_rows=sum_rows,
        ahead=AHEAD,
        programs=programs,
        parts=parts,
        folded=folded,
    )


def constants(
    problem: AttentionProblem, plan: AscendPlan, band: Band, kv_len: int
) -> dict[str, Any]:
    """Return what the kernel of rounds is compiled for, where ``kv_len`` keys are read."""
    d_pad, dv_pad = padded(problem.head_dim), padded(problem.value_dim)
    return {
        "LOWER": not plan.folded and band.lower is not None,
        "UPPER": not plan.folded and band.upper is not None,
        "CHECKED": bool(kv_len % plan.basic)
        or (d_pad, dv_pad) != (problem.head_dim, problem.value_dim),
        "AHEAD": plan.ahead,
        "BLOCK_M": plan.q_tile,
        "ROUND": plan.k_tile,
        "BASIC": plan.basic,
        "ROWS": plan.vector_rows,
        "SUM_ROWS": plan.sum_rows,
        "HEAD_DIM": problem.head_dim,
        "D_PAD": d_pad,
        "VALUE_DIM": problem.value_dim,
        "DV_PAD": dv_pad,
    }


def padded(width: int) -> int:
    """Return the columns that a tile has for a head dimension: a power of two from 16 up."""
    return max(16, _power_above(width))


def _power_above(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _power_below(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)
