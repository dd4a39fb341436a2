"""Attention to keys on several ranks is that of one device; rows that see nothing stay zero."""

import numpy as np
import pytest
import torch

from support.budget import assert_within_budget
from support.ranks import run_ranks
from tesseral.attention import attention
from tesseral.attention.distributed.sequence import merge

CASES = {
    "full": ({}, 5, (7, 0, 11)),
    "causal": ({"is_causal": True}, 9, (6, 13, 4)),
    "decode": ({"is_causal": True, "softcap": 3.0}, 1, (20, 3, 1)),
    "short": ({"is_causal": True}, 12, (3, 2, 4)),
}
RING = {"full": {}, "causal": {"is_causal": True, "scale": 0.3}}
INPUTS = """
def inputs(q_len, kv_len):
    torch.manual_seed(q_len)
    query, key = torch.randn(2, 4, q_len, 8), torch.randn(2, 2, kv_len, 8)
    return query, key, torch.randn(2, 2, kv_len, 8)
"""
exec(INPUTS)
PROGRAM = f"""
import numpy as np
from tesseral.attention.distributed import gathered_attention, ring_attention
{INPUTS}
found = {{}}
for name, (rules, q_len, lengths) in {CASES!r}.items():
    lengths = lengths[:size]
    query, key, value = inputs(q_len, sum(lengths))
    key, value = (part.split(lengths, dim=2)[rank] for part in (key, value))
    for given in (None, lengths):
        out = gathered_attention(query, key, value, **rules, lengths=given)
        found[f"{{name}}-{{given is None}}"] = out.numpy()
for name, rules in {RING!r}.items():
    query, key, value = (part.chunk(size, dim=2)[rank] for part in inputs(36, 36))
    found[f"ring-{{name}}"] = ring_attention(query, key, value, **rules).numpy()
np.savez(f"{{folder}}/{{rank}}.npz", **found)
for call in (
    lambda: gathered_attention(query, key, value, lengths=[1] * size),
    lambda: ring_attention(query, key[:, :, rank:], value[:, :, rank:]),
):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
"""


@pytest.fixture(scope="module", params=[2, 3])
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    codes, errors = run_ranks(PROGRAM, request.param, folder)
    assert codes == [0] * request.param, "\n".join(errors)
    return [np.load(folder / f"{rank}.npz") for rank in range(request.param)], errors


def on_one_device(rules, sizes, dtype):
    parts = (part.to(dtype) for part in inputs(*sizes))  # noqa: F821
    return attention(*parts, **rules).numpy()


@pytest.mark.parametrize("name", CASES)
def test_gathered_states_are_those_of_all_keys_at_once(results, name):
    ranks, _ = results
    rules, q_len, lengths = CASES[name]
    sizes = q_len, sum(lengths[: len(ranks)])
    oracle, peer = (on_one_device(rules, sizes, d) for d in (torch.float64, torch.float32))
    for rank in ranks:
        for asked in (True, False):
            assert_within_budget(rank[f"{name}-{asked}"], oracle, peer, floor=5e-7)
            np.testing.assert_array_equal(rank[f"{name}-{asked}"], ranks[0][f"{name}-True"])


@pytest.mark.parametrize("name", RING)
def test_a_ring_gives_every_rank_its_rows(results, name):
    ranks, _ = results
    oracle, peer = (on_one_device(RING[name], (36, 36), d) for d in (torch.float64, torch.float32))
    got = np.concatenate([rank[f"ring-{name}"] for rank in ranks], axis=2)
    assert_within_budget(got, oracle, peer, floor=5e-7)


def test_lengths_and_shapes_that_do_not_fit_are_refused_on_every_rank(results):
    _, errors = results
    for error in errors:
        assert "give the number of keys on each rank" in error
        assert "ring_attention: rank 1 has ((" in error


def test_two_parts_without_keys_make_one_without():
    nothing = torch.zeros(3, 2), torch.full((3,), -torch.inf)
    out, lse = merge(nothing, nothing)
    assert torch.equal(out, nothing[0])
    assert torch.equal(lse, nothing[1])
