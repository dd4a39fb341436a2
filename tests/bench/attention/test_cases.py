"""The table of the issue, and the arithmetic of a case, against counting one by one."""

import pytest

from tesseral.bench.attention.cases import READ, TABLE, Case, grid
from tesseral.bench.attention.inputs import make_inputs
from tesseral.core import PackedTensor


def case(**changes):
    sizes = {"q_len": 3, "kv_len": 3, "q_heads": 4, "kv_heads": 2, "head_dim": 8}
    return Case(**{**sizes, "dtype": "float32", **changes})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (3, 3), (1, 5), (3, 7)])
def test_operations_are_counted_over_visible_keys(q_len, kv_len, causal):
    visible = sum(
        not causal or k <= q + kv_len - q_len for q in range(q_len) for k in range(kv_len)
    )
    given = case(q_len=q_len, kv_len=kv_len, causal=causal, batch=2)
    assert given.flops == 2 * 4 * visible * (2 * 8 + 2 * 8)


@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16"}, {"kv_bits": 8}, {"kv_bits": 4}])
def test_bytes_of_keys_and_values_are_those_of_the_arrays(changes):
    given = case(batch=2, kv_len=40, **changes)
    inputs = make_inputs(given)
    assert given.kv_bytes == sum(states.nbytes for states in inputs.states[0])


def test_stored_keys_are_those_of_the_quantised_cache():
    key, value = make_inputs(case(kv_bits=4, kv_len=5)).states[0]
    for states in (key, value):
        assert isinstance(states, PackedTensor)
        assert states.bits == 4
        assert states.scale.shape == states.offset.shape == (1, 2, 5, 1)
        assert str(states.scale.dtype) == "torch.float16"


@pytest.mark.parametrize("changes", [{"q_len": 1}, {"q_len": 1, "kv_bits": 8}])
def test_who_decodes_reads_other_copies_than_the_caches_can_hold(changes):
    given = case(kv_len=40, **changes)
    inputs = make_inputs(given)
    assert len(inputs.states) == -(-4000 // given.kv_bytes)
    assert len({id(states) for pair in inputs.states for states in pair}) == 2 * len(inputs.states)
    assert len(make_inputs(given, copies=2).states) == 2
    assert len(make_inputs(case(q_len=40, kv_len=40)).states) == 1


def test_the_table_is_that_of_the_issue():
    told = {
        (contest.case.name, bar.against): bar.at_least for contest in TABLE for bar in contest.bars
    }
    assert told == {
        ("prefill bf16, 8 heads, 4096, full", "sdpa"): 1.9,
        ("prefill bf16, 8 heads, 1024, causal", "sdpa"): 2.8,
        ("prefill bf16, 8 heads, 4096, causal", "sdpa"): 2.1,
        ("prefill fp32, 8 heads, 4096, full", "sdpa"): 1.05,
        ("prefill fp32, 8 heads, 4096, causal", "sdpa"): 1.15,
        ("decode bf16, 32/8 heads, 32K", "enable_gqa"): 40,
        ("decode bf16, 32/8 heads, 32K", "folded"): 4,
        ("decode bf16, 32/8 heads, 32K", READ): 0.75,
        ("decode fp32, 32/8 heads, 32K", "enable_gqa"): 11,
        ("decode fp32, 32/8 heads, 32K", "folded"): 3,
        ("decode fp32, 32/8 heads, 32K", READ): 0.75,
        ("decode bf16, int8 KV, 8 heads, 32K", "our bf16"): 1.6,
        ("decode bf16, int4 KV, 8 heads, 32K", "our bf16"): 2.6,
        ("decode bf16, int8 KV, 32/8 heads, 32K", "our bf16"): 1.2,
        ("decode bf16, int4 KV, 32/8 heads, 32K", "our bf16"): 1.4,
    }
    capped = {contest.case.q_heads: contest.bars[0].capped for contest in TABLE[-4:]}
    assert capped == {8: None, 32: 0.75}
    assert all(bar.against in (READ, *c.peers) for c in TABLE for bar in c.bars)


def test_the_grid_has_every_shape_of_the_issue_once():
    shapes = list(grid())
    assert len(shapes) == len(set(shapes)) == 3 * 4 * 2 * 5 * 4
    assert max(shape.batch * shape.kv_len for shape in shapes) == 32768
    assert len({shape.name for shape in shapes}) == len(shapes)
    assert {shape.q_len for shape in shapes if shape.decoding} == {1, 16}
