"""Tiles of a mask that kernels in CUDA C++ visit, against every element of the mask."""

import dataclasses

import numpy as np
import pytest
import torch

from tesseral.attention.backends.cuda.seen import seen_tiles
from tesseral.attention.problem import AttentionProblem

PROBLEM = AttentionProblem(
    batch=2, q_len=37, kv_len=50, q_heads=6, kv_heads=2, head_dim=64, value_dim=64,
    dtype="float16", device="cpu", scale=1.0,
)  # fmt: skip


def brute(problem, mask, rows, keys):
    """Ask every element: row r is query r // group of head r % group of its key head."""
    shape = (problem.batch, problem.q_heads, problem.q_len, problem.kv_len)
    visible = np.broadcast_to(mask != (0 if mask.dtype == np.uint8 else -np.inf), shape)
    total = problem.q_len * problem.group
    found = np.zeros((problem.batch, problem.kv_heads, -(-total // rows), -(-shape[3] // keys)))
    for batch, head, row in np.ndindex(problem.batch, problem.kv_heads, total):
        group = problem.group
        line = visible[batch, head * group + row % group, row // group]
        for tile in range(found.shape[3]):
            found[batch, head, row // rows, tile] += line[tile * keys : (tile + 1) * keys].any()
    return found > 0


@pytest.mark.parametrize(("rows", "keys"), [(16, 16), (32, 50), (64, 25), (128, 64)], ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 6, 37, 50), (1, 6, 37, 50), (2, 1, 37, 50), (2, 1, 1, 50), (1, 1, 37, 1)], ids=str
)
@pytest.mark.parametrize("additive", [False, True], ids=["boolean", "additive"])
def test_a_tile_is_visited_if_one_of_its_rows_sees_one_of_its_keys(shape, rows, keys, additive):
    rng = np.random.default_rng([rows, *shape])
    mask = (rng.random(shape) < 0.02).astype(np.uint8)
    if additive:
        mask = np.where(mask, rng.random(shape), -np.inf).astype(np.float16)
    found = seen_tiles(PROBLEM, torch.from_numpy(mask), rows, keys)
    assert found.stride(-1) == 1
    expected = brute(PROBLEM, mask, rows, keys)
    # queries whose rows lie in two tiles are asked for both
    assert (found.numpy() >= expected).all()
    if PROBLEM.group * PROBLEM.q_len % rows == 0 or shape[1] == 1:
        assert (found.numpy() == expected).all()


def test_a_number_that_is_none_is_something_to_see():
    mask = torch.full((1, 1, 37, 50), -torch.inf)
    mask[..., 20, 30] = torch.nan
    assert seen_tiles(PROBLEM, mask, 16, 16).sum() == 2 * 2


def test_no_keys_have_no_tiles():
    problem = dataclasses.replace(PROBLEM, kv_len=0)
    assert seen_tiles(problem, torch.ones(1, 1, 37, 0), 16, 16).shape == (2, 2, 7, 0)
