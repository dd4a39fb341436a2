"""Sums over two CUDA devices, by NCCL and through peers' memory; a rank that ends is told."""

import numpy as np
import pytest
import torch

from support.budget import assert_within_budget
from support.ranks import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
SHAPE = """
HEADS, DIM, HIDDEN, QUERIES = 8, 128, 1024, 1500
def inputs():
    torch.manual_seed(7)
    query = torch.randn(1, HEADS, QUERIES, DIM)
    key, value = torch.randn(2, 1, HEADS, QUERIES, DIM)
    return query, key, value, torch.randn(HIDDEN, HEADS * DIM) / (HEADS * DIM) ** 0.5
def share(rank, size):
    query, key, value, weight = inputs()
    mine = slice(rank * HEADS // size, (rank + 1) * HEADS // size)
    columns = slice(mine.start * DIM, mine.stop * DIM)
    return query[:, mine], key[:, mine], value[:, mine], weight[:, columns]
"""
PROGRAM = f"""
import numpy as np
from tesseral.attention import attention
from tesseral.attention.distributed import (
    PeerMemory, attention_all_reduce, choose_plan, linear_all_reduce, measure_costs, overlap_group,
    peers_refused,
)
from tesseral.attention.distributed.measure import replayed
{SHAPE}
found = {{}}
arguments = [part.to(device, torch.bfloat16) for part in share(rank, size)]
rows = attention(*arguments[:3], is_causal=True).permute(0, 2, 1, 3).flatten(2)
out = rows @ arguments[3].mT
dist.all_reduce(out)
found["peer"] = out.float().cpu().numpy()
assert peers_refused(device) is None, peers_refused(device)
peers = PeerMemory(QUERIES, HIDDEN, dtype=torch.bfloat16, device=device, timeout_s=20)
ways = {{"nccl": {{}}, "few": {{"group": overlap_group(4)}}, "peers": {{"peers": peers}}}}
for name, way in ways.items():
    for tiles in ((1500,), (300, 600, 600), (100,) * 15, (1, 3, 1496)):
        for strips in (None, (1500,)):
            for turn in range(3):
                out = attention_all_reduce(
                    *arguments, is_causal=True, tiles=tiles, strips=strips, **way
                )
                key = f"{{name}}-{{len(tiles)}}-{{strips is None}}-{{turn}}"
                found[key] = out.float().cpu().numpy()
recorded = []
def record():
    recorded.append(attention_all_reduce(
        *arguments, is_causal=True, tiles=(300, 600, 600), strips=(1500,), peers=peers
    ))
replay, count = replayed(record, device)
assert count == 2
for turn in range(3):
    recorded[-1].fill_(torch.nan)
    recorded[-2].fill_(torch.nan)
    torch.cuda.synchronize()
    dist.barrier()
    replay()
    found[f"recorded-{{turn}}"] = recorded[-1].float().cpu().numpy()
costs = measure_costs(*arguments, is_causal=True, peers=peers)
assert min(costs.rows(512), costs.link(512), costs.peers(512)) > 0, costs
plan = choose_plan(costs, QUERIES, is_causal=True)
all_of_them = [None] * size
dist.all_gather_object(all_of_them, plan)
assert all_of_them == [plan] * size
np.savez(f"{{folder}}/{{rank}}.npz", **found)
"""
exec(SHAPE)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    codes, errors = run_ranks(PROGRAM, 2, folder, backend="nccl")
    assert codes == [0, 0], "\n".join(errors)
    return [np.load(folder / f"{rank}.npz") for rank in range(2)]


def oracle():
    query, key, value, weight = (part.bfloat16().double() for part in inputs())  # noqa: F821
    scores = query @ key.mT / query.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    rows = torch.softmax(scores.masked_fill(later, -torch.inf), -1) @ value
    return (rows.permute(0, 2, 1, 3).flatten(2) @ weight.mT).numpy()


def test_all_ways_stay_within_the_budget(results):
    right = oracle()
    for rank in results:
        for name in rank.files:
            if name != "peer":
                assert_within_budget(rank[name].astype(float), right, rank["peer"].astype(float))


def test_every_rank_and_every_turn_gives_the_same_bits(results):
    for name in results[0].files:
        first = results[0][f"{name[:-1]}0" if name != "peer" else name]
        for rank in results:
            np.testing.assert_array_equal(rank[name], first)


def test_a_rank_that_ends_is_told_within_the_time_limit(tmp_path):
    program = """
import os
from tesseral.attention.distributed import PeerMemory, linear_all_reduce
memory = PeerMemory(64, 64, dtype=torch.bfloat16, device=device, timeout_s=5)
x = torch.ones(1, 64, 32, device=device, dtype=torch.bfloat16)
weight = torch.ones(64, 32, device=device, dtype=torch.bfloat16)
linear_all_reduce(x, weight, tiles=(32, 32), peers=memory)
torch.cuda.synchronize()
if rank == 1:
    os._exit(3)
linear_all_reduce(x, weight, tiles=(32, 32), peers=memory)
torch.cuda.synchronize()
"""
    codes, errors = run_ranks(program, 2, tmp_path, tail="", backend="nccl")
    assert codes[0] not in {0, 3}
    assert codes[1] == 3, errors
