"""The kernels in CUDA C++ lane by lane, in NumPy, from the address maps that they include."""

import numpy as np
import pytest

from support.cuda_warp import (
    LANES,
    Memory,
    clashes,
    mma_m8n8k4,
    mma_m16n8k8,
    put_tile,
    read_layout,
    shuffle_xor,
)
from tesseral.attention.backends.cuda.chips import TURING, VOLTA
from tesseral.attention.problem import AttentionProblem

WIDTHS = [64, 128, 256]
every_width = pytest.mark.parametrize("width", WIDTHS)


def tiles_of(chip, width):
    problem = AttentionProblem(
        batch=1, q_len=512, kv_len=512, q_heads=1, kv_heads=1, head_dim=width, value_dim=width,
        dtype="float16", device="cuda:0", scale=1.0,
    )  # fmt: skip
    return chip.tiles(problem)


def operands(rows, keys, width):
    rng = np.random.default_rng(width)
    query, key, value = (
        rng.standard_normal((n, width)).astype(np.float16) for n in (rows, keys, keys)
    )
    # weights in place of a softmax: products and places are under test here
    scores = query.astype(float) @ key.astype(float).T
    weights = (scores / 64).astype(np.float16).astype(float)
    return query, key, value, scores, weights @ value.astype(float)


def halves(numbers):
    return (numbers / 64).astype(np.float16)


def fill(tiles, at, *parts):
    """Return shared memory that holds tiles one after another, and the pieces they start at."""
    memory = Memory((2 * tiles.keys + tiles.rows) * at.CHUNKS)
    starts = np.cumsum([0, *(len(part) * at.CHUNKS for part in parts)])
    for part, start in zip(parts, starts[:-1], strict=True):
        put_tile(memory, lambda r, c, s=start: s + at.PIECE(r, c), part, 32 * tiles.warps)
    return memory, starts[:-1]


def turing_warp(width, warp):
    """Return scores and sums of a warp of 16 rows by a tile of keys, and shared memory."""
    tiles, at = tiles_of(TURING, width), read_layout("turing", width // 8)
    query, key, value, *wanted = operands(tiles.rows, tiles.keys, width)
    memory, (keys, values, queries) = fill(tiles, at, key, value, query)
    queries += 16 * warp * at.CHUNKS

    scores = np.zeros((tiles.keys // 8, 32, 4))
    for step in range(at.CHUNKS // 2):
        left = memory.ldmatrix(queries + at.PIECE(at.QUERY_ROW(LANES), at.QUERY_CHUNK(LANES, step)))
        for pair in range(tiles.keys // 16):
            right = memory.ldmatrix(
                keys + at.PIECE(at.KEY_ROW(LANES, pair), at.KEY_CHUNK(LANES, step))
            )
            for n, half, register in ((0, 0, 0), (1, 0, 2), (0, 1, 1), (1, 1, 3)):
                scores[2 * pair + n] = mma_m16n8k8(
                    scores[2 * pair + n], left[:, 2 * half : 2 * half + 2], right[:, register]
                )
    sums = np.zeros((at.CHUNKS, 32, 4))
    for eight in range(tiles.keys // 8):
        left = halves(scores[eight]).reshape(32, 2, 2)
        for four in range(at.CHUNKS // 4):
            right = memory.ldmatrix(
                values + at.PIECE(at.VALUE_ROW(LANES, eight), at.VALUE_CHUNK(LANES, four)),
                transposed=True,
            )
            for n in range(4):
                sums[4 * four + n] = mma_m16n8k8(sums[4 * four + n], left, right[:, n])
    rows = slice(16 * warp, 16 * warp + 16)
    placed = [np.empty((16, tiles.keys)), np.empty((16, width))]
    for numbers, into in zip((scores, sums), placed, strict=True):
        for n in range(len(numbers)):
            for i in range(4):
                into[at.SUM_ROW(LANES, i), 8 * n + at.SUM_COLUMN(LANES, i)] = numbers[n][:, i]
    return placed, [part[rows] for part in wanted], memory


def volta_left(at, weights, half):
    """Return left operands of the second product: (eight keys, other, 32 lanes, 4 of the keys)."""
    left = np.empty((2, 2, 32, 4))
    for eight in range(2):
        four = weights[:, 4 * eight : 4 * eight + 4]
        first, second = four[:, :2], four[:, 2:]
        if not half:
            lower = (LANES & at.OTHER_ROWS != 0)[:, None]
            got = shuffle_xor(np.where(lower, first, second), at.OTHER_ROWS)
            first, second = np.where(lower, got, first), np.where(lower, second, got)
        left[eight, 0] = np.concatenate([first, second], axis=1)
        left[eight, 1] = shuffle_xor(left[eight, 0], at.OTHER_KEYS)
    return left


def volta_scores(at, memory, keys, queries, shape, half=False):
    """Return accumulators of the first product: (squares, groups of 16 keys, 32 lanes, 8)."""
    scores = np.zeros((*shape, 32, 8))
    for chunk in range(at.CHUNKS):
        left = [
            memory.load(queries + at.PIECE(16 * m + at.QUERY_ROW(LANES), chunk))
            for m in range(shape[0])
        ]
        for g in range(shape[1]):
            right = memory.load(keys + at.PIECE(16 * g + at.KEY_ROW(LANES), chunk))
            for m in range(shape[0]):
                for k in (slice(0, 4), slice(4, 8)):
                    scores[m, g] = mma_m8n8k4(scores[m, g], left[m][:, k], right[:, k], half=half)
    return scores


def volta_sums(at, memory, values, left):
    """Return accumulators of the second product: (squares, fours of chunks, 2, 32 lanes, 8)."""
    squares, groups = left.shape[:2]
    sums = np.zeros((squares, at.CHUNKS // 4, 2, 32, 8))
    for g, eight, other, j in np.ndindex(groups, 2, 2, at.CHUNKS // 4):
        row = 16 * g + at.VALUE_ROW(LANES, eight, other)
        right = memory.load(values + at.PIECE(row, at.VALUE_CHUNK(LANES, j)))
        for m in range(squares):
            for h, columns in enumerate((slice(0, 4), slice(4, 8))):
                sums[m, j, h] = mma_m8n8k4(
                    sums[m, j, h], left[m, g, eight, other], right[:, columns], by_rows=True
                )
    return sums


def volta_warp(width, warp, half):
    """Return scores and sums of a warp's squares by a tile of keys, and shared memory."""
    tiles, at = tiles_of(VOLTA, width), read_layout("volta", width // 8)
    query, key, value, *wanted = operands(tiles.rows, tiles.keys, width)
    memory, (keys, values, queries) = fill(tiles, at, key, value, query)
    groups, squares = tiles.keys // 16, tiles.squares
    queries += 16 * squares * warp * at.CHUNKS

    scores = volta_scores(at, memory, keys, queries, (squares, groups), half)
    left = np.array(
        [
            [volta_left(at, halves(scores[m, g]), half) for g in range(groups)]
            for m in range(squares)
        ]
    )
    sums = volta_sums(at, memory, values, left)
    rows = slice(16 * squares * warp, 16 * squares * (warp + 1))
    placed = [np.empty((16 * squares, tiles.keys)), np.empty((16 * squares, width))]
    for m, i, g in np.ndindex(squares, 8, groups):
        row = at.QUERY_ROW(LANES) if half else at.SUM_ROW(LANES, i)
        seen = at.HALF_SCORE_KEY(LANES, i) if half else at.SCORE_KEY(LANES, i)
        placed[0][16 * m + row, 16 * g + seen] = scores[m, g, :, i]
    for m, i, j, h in np.ndindex(squares, 8, at.CHUNKS // 4, 2):
        column = 32 * j + at.SUM_COLUMN(LANES, h, i)
        placed[1][16 * m + at.SUM_ROW(LANES, i), column] = sums[m, j, h, :, i]
    return placed, [part[rows] for part in wanted], memory


WARPS = {
    "turing": turing_warp,
    "volta": lambda width, warp: volta_warp(width, warp, False),
    "volta_half": lambda width, warp: volta_warp(width, warp, True),
}


@every_width
@pytest.mark.parametrize("warp", WARPS.values(), ids=WARPS.keys())
def test_a_warp_multiplies_what_it_reads_and_no_two_lanes_wait_for_a_bank(width, warp):
    (scores, sums), (wanted_scores, wanted_sums), memory = warp(width, 1)
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sums, wanted_sums, rtol=1e-12, atol=1e-12)
    assert memory.accesses > 50
    assert memory.clashes == 0


@pytest.mark.parametrize("chip", ["turing", "volta"])
def test_without_the_exclusive_or_lanes_would_wait(chip):
    at = read_layout(chip, 16)
    row, chunk = LANES % 8, 0
    assert clashes(at.PIECE(row, chunk)) == 0
    assert clashes(row * at.CHUNKS + chunk) == 4 * 7


@every_width
@pytest.mark.parametrize("chip", ["turing", "volta"])
def test_every_piece_of_a_tile_has_a_place_of_its_own(chip, width):
    at = read_layout(chip, width // 8)
    rows, chunks = np.mgrid[:32, : at.CHUNKS]
    assert np.unique(at.PIECE(rows, chunks)).tolist() == list(range(32 * at.CHUNKS))
