"""Sums over ranks by tiles: the result of one device, whatever the tiles and the ranks."""

import numpy as np
import pytest
import torch

from support.budget import assert_within_budget
from support.ranks import run_ranks
from tesseral._errors import ParameterError, ShapeError
from tesseral.attention import attention
from tesseral.attention.distributed import attention_all_reduce, linear_all_reduce

HEADS, DIM, HIDDEN, QUERIES = 8, 8, 20, 37
CASES = {
    "plain": ({"is_causal": True}, 37, None),
    "causal": ({"is_causal": True}, 37, (5, 16, 16)),
    "cache": ({"is_causal": True, "window": (9, 0)}, 60, (1, 20, 16)),
    "short": ({"is_causal": True}, 11, (13, 12, 12)),
    "full": ({"softcap": 5.0}, 23, (30, 7)),
}
INPUTS = f"""
def inputs(kv_len):
    torch.manual_seed(7)
    query = torch.randn(2, {HEADS}, {QUERIES}, {DIM})
    key, value = torch.randn(2, 2, {HEADS}, kv_len, {DIM})
    return query, key, value, torch.randn({HIDDEN}, {HEADS * DIM})
"""
exec(INPUTS)  # the ranks make the same

PROGRAM = f"""
import numpy as np
from tesseral.attention.distributed import (
    attention_all_reduce, linear_all_reduce, measure_costs,
)
{INPUTS}
found = {{}}
for name, (rules, kv_len, tiles) in {CASES!r}.items():
    query, key, value, weight = inputs(kv_len)
    mine = slice(rank * {HEADS} // size, (rank + 1) * {HEADS} // size)
    columns = slice(mine.start * {DIM}, mine.stop * {DIM})
    arguments = query[:, mine], key[:, mine], value[:, mine], weight[:, columns]
    for turn in range(2):
        found[f"{{name}}-{{turn}}"] = attention_all_reduce(*arguments, **rules, tiles=tiles).numpy()
query, _, _, weight = inputs(1)
x = query.permute(0, 2, 1, 3).flatten(2)
found["linear"] = linear_all_reduce(x[..., columns], weight[:, columns], tiles=(30, 7)).numpy()
np.savez(f"{{folder}}/{{rank}}.npz", **found)

costs = measure_costs(query, query, query, weight)
assert costs.rows(64) > 0 and costs.scores(64) > 0 and costs.link(64) > 0
all_of_them = [None] * size
dist.all_gather_object(all_of_them, costs)
assert all_of_them == [costs] * size
"""


def on_one_device(name, dtype):
    rules, kv_len, _ = CASES[name]
    query, key, value, weight = (part.to(dtype) for part in inputs(kv_len))  # noqa: F821
    rows = attention(query, key, value, **rules).permute(0, 2, 1, 3).flatten(2)
    return (rows @ weight.mT).numpy()


@pytest.fixture(scope="module", params=[2, 3, 4, pytest.param(8, marks=pytest.mark.slow)])
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    codes, errors = run_ranks(PROGRAM, request.param, folder)
    assert codes == [0] * request.param, "\n".join(errors)
    return [np.load(folder / f"{rank}.npz") for rank in range(request.param)]


@pytest.mark.parametrize("name", CASES)
def test_the_sum_over_ranks_is_the_result_of_one_device(results, name):
    oracle = on_one_device(name, torch.float64)
    peer = on_one_device(name, torch.float32)
    for rank in results:
        assert_within_budget(rank[f"{name}-0"], oracle, peer, floor=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_every_rank_and_every_turn_gives_the_same_bits(results, name):
    first = results[0][f"{name}-0"]
    for rank in results:
        for turn in range(2):
            np.testing.assert_array_equal(rank[f"{name}-{turn}"], first)


def test_a_linear_layer_sums_its_shards(results):
    query, _, _, weight = (part.double() for part in inputs(1))  # noqa: F821
    oracle = (query.permute(0, 2, 1, 3).flatten(2) @ weight.mT).numpy()
    for rank in results:
        np.testing.assert_allclose(rank["linear"], oracle, rtol=2e-5, atol=2e-5)


def test_other_shapes_are_found_before_anything_is_measured_and_a_rank_that_ends_is_named(tmp_path):
    program = """
import os
from tesseral.attention.distributed import linear_all_reduce, measure_costs
query = torch.randn(1, 2, 16 + rank, 8)
try:
    measure_costs(query, query, query, torch.randn(8, 16))
except RuntimeError as error:
    print(error, file=sys.stderr, flush=True)
if rank == 1:
    os._exit(3)
linear_all_reduce(torch.ones(1, 8, 4), torch.ones(6, 4), tiles=(4, 4))
"""
    codes, errors = run_ranks(program, 2, tmp_path, tail="")
    assert codes[0] not in {0, 3}
    assert codes[1] == 3
    assert all("rank 1 has [(" in error for error in errors)
    assert "DistributedError" in errors[0]
    assert "rank 0 of 2 could not sum tile" in errors[0]
    assert "no word from rank 1" in errors[0]


def test_a_rank_that_hangs_ends_the_others_within_the_time_limit_and_is_named(tmp_path):
    program = """
import os, signal, time
from tesseral.attention.distributed import linear_all_reduce
x, weight = torch.ones(1, 8, 4), torch.ones(6, 4)
linear_all_reduce(x, weight, tiles=(4, 4))
if rank == 1:
    time.sleep(20)
    os._exit(3)
started = time.monotonic()
try:
    linear_all_reduce(x, weight, tiles=(2, 6))
except RuntimeError as error:
    print(error, file=sys.stderr)
    print(f"ended after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    os._exit(4)
"""
    codes, errors = run_ranks(program, 3, tmp_path, tail="", limit_s=5)
    assert codes == [4, 3, 4]
    for rank in (0, 2):
        assert f"rank {rank} of 3 could not sum tile" in errors[rank]
        assert "no word from rank 1;" in errors[rank]
        assert float(errors[rank].rpartition("ended after")[2].split()[0]) < 15


def test_arguments_that_do_not_fit_are_refused_before_anything_is_sent():
    query = torch.zeros(1, 2, 4, 8)
    weight = torch.zeros(10, 16)
    with pytest.raises(ShapeError, match=r"weight must have shape \(hidden, 16\).*got \(10, 15\)"):
        attention_all_reduce(query, query, query, weight[:, 1:])
    with pytest.raises(ParameterError, match="needs is_causal=True"):
        attention_all_reduce(query, query, query, weight, window=(2, 0))
    with pytest.raises(ParameterError, match=r"tiles of \(3, 2\) rows do not make up 4"):
        attention_all_reduce(query, query, query, weight, tiles=(3, 2))
    with pytest.raises(ParameterError, match=r"use torch\.no_grad"):
        attention_all_reduce(query, query, query, weight.requires_grad_())
    with pytest.raises(ShapeError, match=r"x must be \(batch, length, features\)"):
        linear_all_reduce(query, weight)
