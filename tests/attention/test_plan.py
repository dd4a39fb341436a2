import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseral.attention import plan
from tesseral.attention.plan import TilePlan, key_tiles, plan_tiles, spans
from tesseral.attention.problem import AttentionProblem
from tesseral.attention.tiling import KeyRange

PREFILL = AttentionProblem(
    batch=4, q_len=2048, kv_len=2048, q_heads=8, kv_heads=8, head_dim=64, value_dim=64,
    dtype="float32", device="cpu", scale=0.125,
)  # fmt: skip


def planned(**changes):
    return plan_tiles(dataclasses.replace(PREFILL, **changes))


@given(
    batch=st.integers(0, 100),
    q_len=st.integers(0, 10**6),
    kv_len=st.integers(0, 10**6),
    kv_heads=st.integers(1, 64),
    group=st.integers(1, 512),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    key_format=st.sampled_from(["dense", "packed4"]),
)
def test_tiles_have_a_side_and_fit_the_budget_or_are_the_least_useful_ones(
    batch, q_len, kv_len, kv_heads, group, dtype, key_format
):
    got = planned(
        batch=batch, q_len=q_len, kv_len=kv_len, kv_heads=kv_heads, q_heads=kv_heads * group,
        dtype=dtype, key_format=key_format,
    )  # fmt: skip
    assert min(got.batch_tile, got.head_tile, got.q_tile, got.k_tile) >= 1
    assert got.head_tile <= kv_heads
    assert got.batch_tile <= max(batch, 1)
    assert got.k_tile <= max(kv_len, 1)
    assert got.q_tile * group <= max(plan.ROWS, group)
    itemsize = 8 if dtype == "float64" else 4
    assert got.workspace_bytes <= plan.BUDGET_CPU * itemsize


def test_decoding_from_dense_float32_takes_all_keys_in_one_tile():
    got = planned(q_len=1, kv_len=32768, batch=1)
    assert (got.head_tile, got.k_tile) == (8, 32768)


def test_keys_that_must_be_converted_are_taken_in_shorter_tiles():
    dense = planned(q_len=1, kv_len=32768, batch=1)
    for converted in (
        planned(q_len=1, kv_len=32768, batch=1, dtype="bfloat16"),
        planned(q_len=1, kv_len=32768, batch=1, key_format="packed4"),
        planned(q_len=1, kv_len=32768, batch=1, value_format="packed4"),
    ):
        assert converted.k_tile * converted.head_tile < dense.k_tile * dense.head_tile


def test_query_heads_of_a_group_count_as_rows():
    assert planned(q_heads=64, kv_heads=8).q_tile * 8 == planned().q_tile


def test_an_accelerator_gets_larger_tiles():
    assert planned(device="cuda:0").workspace_bytes > planned().workspace_bytes


@given(
    edges=st.lists(st.integers(0, 900), min_size=4, max_size=4).map(sorted),
    k_tile=st.integers(1, 600),
)
def test_key_tiles_cover_what_is_seen_once_and_mask_what_is_not_full(edges, k_tile):
    seen = KeyRange(*edges)
    tiles = TilePlan(batch_tile=1, head_tile=1, q_tile=8, k_tile=k_tile, workspace_bytes=0)
    visited = []
    for keys, masked in key_tiles(seen, tiles):
        assert 0 < keys.stop - keys.start <= (min(k_tile, plan.MASKED_KEYS) if masked else k_tile)
        visited += range(keys.start, keys.stop)
        if not masked:
            assert seen.full_start <= keys.start < keys.stop <= seen.full_stop
    assert visited == list(range(seen.start, seen.stop))


def test_a_tile_that_all_queries_see_reads_no_mask():
    seen = KeyRange(0, 0, 5000, 5000)
    assert not any(masked for _, masked in key_tiles(seen, planned()))


def test_the_edge_of_a_causal_tile_is_one_masked_tile():
    tiles = list(key_tiles(KeyRange(0, 0, 1793, 2048), planned()))
    assert tiles == [
        (slice(0, 1024), False),
        (slice(1024, 1792), False),
        (slice(1792, 2048), True),
    ]


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, [(0, 0)]), (3, [(0, 3)]), (4, [(0, 4)]), (9, [(0, 4), (4, 8), (8, 9)])],
)
def test_spans_cover_a_length(length, expected):
    assert [(s.start, s.stop) for s in spans(length, 4)] == expected
