import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.cases import visible
from tesseral import _errors
from tesseral.attention import TilingMask
from tesseral.attention.tiling import BlockCount, Coverage

LONG = 1_048_576
sides = st.integers(-1, 12)
rules = st.fixed_dictionaries(
    {
        "is_causal": st.booleans(),
        "window": st.none() | st.tuples(sides, sides),
        "align": st.sampled_from(["bottom-right", "top-left"]) | st.integers(-20, 20),
    }
)
lengths = st.integers(0, 13)


def coverage_of(entries):
    if not entries.any():
        return Coverage.EMPTY
    return Coverage.FULL if entries.all() else Coverage.PARTIAL


@settings(max_examples=80, deadline=None)
@given(q_len=lengths, kv_len=lengths, rule=rules, data=st.data())
def test_every_block_is_classified_as_its_entries_say(q_len, kv_len, rule, data):
    mask = TilingMask(q_len, kv_len, **rule, block=13)
    seen = visible(q_len, kv_len, **rule)
    for q_start in range(q_len + 1):
        q_stop = data.draw(st.integers(q_start, q_len))
        for k_start in range(kv_len + 1):
            k_stop = data.draw(st.integers(k_start, kv_len))
            entries = seen[q_start:q_stop, k_start:k_stop]
            assert mask.classify(q_start, q_stop, k_start, k_stop) is coverage_of(entries)
            np.testing.assert_array_equal(
                mask.block_mask(q_start, q_stop, k_start, k_stop), entries
            )


@pytest.mark.parametrize("rule", [{"is_causal": True}, {"window": (0, -1)}, {"window": (2, 1)}])
def test_the_largest_blocks_are_right_wherever_the_diagonal_runs(rule):
    for align in range(-12, 13):
        mask = TilingMask(12, 12, **rule, align=align, block=4)
        seen = visible(12, 12, **rule, align=align)
        for q, k in np.ndindex(9, 9):
            np.testing.assert_array_equal(
                mask.block_mask(q, q + 4, k, k + 4), seen[q : q + 4, k : k + 4]
            )


@settings(max_examples=200, deadline=None)
@given(q_len=lengths, kv_len=lengths, rule=rules)
def test_key_ranges_are_the_keys_seen_by_some_and_by_all(q_len, kv_len, rule):
    mask = TilingMask(q_len, kv_len, **rule)
    seen = visible(q_len, kv_len, **rule)
    for q_start in range(q_len):
        for q_stop in range(q_start + 1, q_len + 1):
            found = mask.key_range(q_start, q_stop)
            assert 0 <= found.start <= found.full_start <= found.full_stop <= found.stop <= kv_len
            tile = seen[q_start:q_stop]
            assert set(range(found.start, found.stop)) == set(np.flatnonzero(tile.any(0)))
            assert set(range(found.full_start, found.full_stop)) == set(np.flatnonzero(tile.all(0)))


@settings(max_examples=200, deadline=None)
@given(
    q_len=lengths,
    kv_len=lengths,
    rule=rules,
    q_tile=st.integers(1, 14),
    k_tile=st.integers(1, 14),
)
def test_blocks_of_a_grid_are_all_that_is_visible_and_counted(q_len, kv_len, rule, q_tile, k_tile):
    mask = TilingMask(q_len, kv_len, **rule)
    seen = visible(q_len, kv_len, **rule)
    expected = {}
    for q_start in range(0, q_len, q_tile):
        for k_start in range(0, kv_len, k_tile):
            entries = seen[q_start : q_start + q_tile, k_start : k_start + k_tile]
            expected[q_start, k_start] = (*entries.shape, coverage_of(entries))
    found = {
        (b.q_start, b.k_start): (b.q_stop - b.q_start, b.k_stop - b.k_start, b.coverage)
        for b in mask.blocks(q_tile, k_tile)
    }
    assert found == {at: block for at, block in expected.items() if block[2] is not Coverage.EMPTY}
    kinds = [block[2] for block in expected.values()]
    assert mask.count(q_tile, k_tile) == BlockCount(
        full=kinds.count(Coverage.FULL),
        partial=kinds.count(Coverage.PARTIAL),
        empty=kinds.count(Coverage.EMPTY),
    )


def test_a_million_tokens_take_four_mebibytes():
    mask = TilingMask(LONG, LONG, is_causal=True)
    block = mask.block_mask(LONG - 1024, LONG, LONG - 1024, LONG)
    m_mask = block.base
    assert mask.nbytes == m_mask.nbytes == 4 * 2**20
    np.testing.assert_array_equal(block, np.tri(1024, dtype=bool))


def test_a_million_tokens_are_counted_without_visiting_each_block():
    rows = LONG // 1024
    count = TilingMask(LONG, LONG, is_causal=True).count(1024, 1024)
    assert count == BlockCount(
        full=rows * (rows - 1) // 2, partial=rows, empty=rows * (rows - 1) // 2
    )
    banded = TilingMask(LONG, LONG, is_causal=True, window=(1023, 0)).count(1024, 1024)
    assert banded == BlockCount(full=0, partial=2 * rows - 1, empty=rows**2 - 2 * rows + 1)


@pytest.mark.parametrize("rule", [{"is_causal": True}, {"window": (3, -1)}])
def test_a_mask_with_one_edge_is_a_view_of_a_shared_triangle(rule):
    one = TilingMask(64, 64, **rule, block=16).block_mask(16, 32, 16, 32)
    other = TilingMask(99, 77, **rule, block=16).block_mask(0, 9, 3, 5)
    assert np.shares_memory(one.base, other.base)


@pytest.mark.parametrize("rule", [{}, {"is_causal": True}, {"window": (3, 2)}])
def test_block_masks_cannot_be_written_to(rule):
    block = TilingMask(8, 8, **rule).block_mask(0, 8, 0, 8)
    with pytest.raises(ValueError, match="read-only"):
        block[0, 0] = True


def test_equal_masks_are_equal_and_hash_alike():
    assert len({TilingMask(4, 4, is_causal=True), TilingMask(4, 4, is_causal=True)}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q_len": -1}, "a length is at least 0, got q_len=-1"),
        ({"kv_len": -3}, "kv_len=-3"),
        ({"block": 0}, "block=0 must be at least 1"),
        ({"window": (1, -2)}, r"window=\(1, -2\) is not a pair"),
        ({"align": "middle"}, "align='middle'"),
    ],
)
def test_malformed_masks_are_refused(arguments, message):
    with pytest.raises(_errors.ParameterError, match=message):
        TilingMask(**{"q_len": 8, "kv_len": 8, **arguments})


@pytest.mark.parametrize("span", [(-1, 2), (3, 2), (0, 9)])
def test_blocks_beyond_the_mask_are_refused(span):
    mask = TilingMask(8, 8, is_causal=True)
    with pytest.raises(_errors.ShapeError, match=r"queries .* do not lie within \[0, 8\)"):
        mask.key_range(*span)
    with pytest.raises(_errors.ShapeError, match=r"keys .* do not lie within \[0, 8\)"):
        mask.classify(0, 8, *span)
    with pytest.raises(_errors.ShapeError, match=r"queries .* do not lie within \[0, 8\)"):
        mask.block_mask(*span, 0, 8)
    with pytest.raises(_errors.ShapeError, match=r"keys .* do not lie within \[0, 8\)"):
        mask.block_mask(0, 8, *span)


def test_a_block_longer_than_the_triangle_serves_is_refused():
    mask = TilingMask(64, 64, is_causal=True, block=16)
    with pytest.raises(_errors.ShapeError, match=r"\(8, 17\) has a side longer than block=16"):
        mask.block_mask(0, 8, 0, 17)


@pytest.mark.parametrize("tiles", [(0, 4), (4, 0)])
def test_tiles_without_rows_or_columns_are_refused(tiles):
    mask = TilingMask(8, 8)
    with pytest.raises(_errors.ParameterError, match="the side of a tile is at least 1"):
        mask.count(*tiles)
    with pytest.raises(_errors.ParameterError, match="the side of a tile is at least 1"):
        next(mask.blocks(*tiles))
