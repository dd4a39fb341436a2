"""The prediction of overlapped tiles: lower bounds, exact small cases, and when one tile wins."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesseral.attention.distributed import (
    Line,
    OverlapCosts,
    choose_plan,
    plans,
)

COSTS = OverlapCosts(rows=Line(2.0, 1.0), scores=Line(0.0, 0.0), link=Line(1.0, 2.0))


def test_one_tile_takes_its_turns():
    assert COSTS.predict((4,)) == (2 + 4) + (1 + 8)


def test_a_second_tile_is_computed_while_the_first_is_summed():
    # computed at 4 and 8; sums from 4 to 9 and from 9 to 14
    assert COSTS.predict((2, 2)) == 14


def test_computing_is_slower_while_a_sum_runs():
    # the second tile's 4 seconds take 5 beside the sum until 9, the rest none
    assert replace(COSTS, slowdown=1.25).predict((2, 2)) == 14
    assert replace(COSTS, slowdown=2.0).predict((2, 2)) == pytest.approx(4 + 5 + 1.5 + 5)


def test_causal_work_is_the_triangle_that_is_seen():
    costs = replace(COSTS, rows=Line(0, 0), scores=Line(0.0, 1.0))
    assert costs.compute(0, 4, kv_len=4, q_len=4, is_causal=True) == 1 + 2 + 3 + 4
    assert costs.compute(2, 4, kv_len=6, q_len=4, is_causal=True) == 5 + 6
    assert costs.compute(0, 4, kv_len=6, q_len=4, is_causal=False) == 24


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=8),
    st.floats(0, 2),
    st.floats(0, 2),
    st.booleans(),
)
def test_no_prediction_is_below_either_line_alone(tiles, fixed, each, is_causal):
    costs = OverlapCosts(rows=Line(0.1, 0.5), scores=Line(0.1, 0.01), link=Line(fixed, each))
    seconds = costs.predict(tiles, is_causal=is_causal)
    total = sum(tiles)
    computed = costs.compute(0, total, kv_len=total, q_len=total, is_causal=is_causal)
    assert seconds >= sum(costs.link(rows) for rows in tiles) - 1e-9
    assert seconds >= computed - 1e-9


def test_what_is_chosen_adds_up_and_is_predicted_no_slower_than_one_tile():
    for q_len in (1, 2, 3, 17, 512, 5000):
        for is_causal in (False, True):
            tiles = choose_plan(COSTS, q_len, is_causal=is_causal).tiles
            assert sum(tiles) == q_len
            assert min(tiles) >= 1
            assert COSTS.predict(tiles) <= COSTS.predict((q_len,)) * 1.001


def test_on_more_ranks_each_computes_less_and_sends_more():
    costs = replace(COSTS, peers=Line(1.0, 3.0), granule=8)
    four = costs.on(4)
    assert four.rows == Line(2.0, 0.5)
    assert (four.link, four.peers) == (Line(3.0, 3.0), Line(3.0, 4.5))
    assert (four.ranks, four.granule) == (4, 16)
    assert costs.on(2) == costs


def test_a_link_whose_cost_is_fixed_is_used_once():
    assert not choose_plan(replace(COSTS, link=Line(1e3, 0.0)), 512).overlaps


def test_the_first_tile_is_the_smallest():
    costs = OverlapCosts(rows=Line(0, 1), scores=Line(0, 0), link=Line(0, 1))
    tiles = choose_plan(costs, 4096).tiles
    assert len(tiles) > 2
    assert tiles[0] == min(tiles) < tiles[1]


def test_tiles_grow_smaller_at_the_end_where_the_link_is_faster_than_computing():
    fast_link = OverlapCosts(rows=Line(0, 2.0), scores=Line(0, 0), link=Line(0, 1.0))
    tiles = choose_plan(fast_link, 4096).tiles
    assert tiles[-3] > tiles[-2] > tiles[-1]
    # the last tile alone is summed when all is computed
    assert choose_plan(fast_link, 4096).seconds == pytest.approx(2 * 4096 + tiles[-1])


def test_plans_hold_the_plain_one_and_snap_to_granules():
    costs = replace(COSTS, peers=Line(0.5, 0.5), granule=16)
    found = plans(costs, 200, is_causal=True)
    assert sum(not plan.overlaps for plan in found) == 1
    assert all(sum(plan.tiles) == sum(plan.strips) == 200 for plan in found)
    assert {plan.through for plan in found} == {"group", "peers"}
    assert all(size % 16 == 0 for plan in found for size in plan.tiles[:-1])
