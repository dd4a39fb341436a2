import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tesseral.attention.softmax import SoftmaxState

ROWS, KEYS, DIM = 3, 12, 2


def make_scores(seed, spread=30.0):
    """Return scores of which row 0 sees nothing and row 1 only the last key, and values."""
    rng = np.random.default_rng(seed)
    scores = spread * rng.standard_normal((ROWS, KEYS))
    scores[0] = -np.inf
    scores[1, :-1] = -np.inf
    return scores, rng.standard_normal((KEYS, DIM))


def merge_in_some_order(states, draw):
    """Merge random pairs until one is left: any order and any grouping can come up."""
    states = list(states)
    while len(states) > 1:
        first = states.pop(draw(st.integers(0, len(states) - 1)))
        second = states.pop(draw(st.integers(0, len(states) - 1)))
        states.append(first.merge(second))
    return states[0]


@given(
    seed=st.integers(0, 99),
    cuts=st.sets(st.integers(1, KEYS - 1)),
    data=st.data(),
)
def test_parts_merge_to_the_whole_in_any_order_and_grouping(seed, cuts, data):
    scores, values = make_scores(seed)
    edges = [0, *sorted(cuts), KEYS]
    parts = [
        SoftmaxState.from_scores(scores[:, a:b], values[a:b]) for a, b in itertools.pairwise(edges)
    ]
    output, lse = merge_in_some_order(parts, data.draw).finish()
    whole_output, whole_lse = SoftmaxState.from_scores(scores, values).finish()
    np.testing.assert_allclose(output, whole_output, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(lse, whole_lse, rtol=1e-14)


def test_the_whole_is_the_softmax():
    scores, values = make_scores(0, spread=1.0)
    output, lse = SoftmaxState.from_scores(scores, values).finish()
    weights = np.exp(scores[1:])
    np.testing.assert_allclose(lse[1:], np.log(weights.sum(1)), rtol=1e-14)
    np.testing.assert_allclose(output[1:], weights @ values / weights.sum(1)[:, None], rtol=1e-12)


def test_a_row_that_sees_nothing_is_zero_with_lse_minus_infinity():
    scores, values = make_scores(1)
    alone = SoftmaxState.from_scores(scores[:, :4], values[:4])
    for state in (alone, alone.merge(SoftmaxState.from_scores(scores[:, 4:8], values[4:8]))):
        output, lse = state.finish()
        np.testing.assert_array_equal(output[:2], 0.0)
        np.testing.assert_array_equal(lse[:2], -np.inf)


def test_the_empty_state_changes_nothing_from_either_side():
    scores, values = make_scores(2)
    state = SoftmaxState.from_scores(scores, values)
    empty = SoftmaxState.empty(scores, (ROWS,), DIM)
    for merged in (state.merge(empty), empty.merge(state)):
        for got, expected in zip(merged.finish(), state.finish(), strict=True):
            np.testing.assert_array_equal(got, expected)
    output, lse = empty.finish()
    np.testing.assert_array_equal(output, np.zeros((ROWS, DIM)))
    np.testing.assert_array_equal(lse, np.full(ROWS, -np.inf))


def test_scores_far_beyond_the_range_of_exp_neither_overflow_nor_vanish():
    parts = [
        (np.array([[score]]), np.array([[value]])) for score, value in [(1e4, 1.0), (-1e4, 5.0)]
    ]
    states = [SoftmaxState.from_scores(*part) for part in parts]
    for order in (states, states[::-1]):
        output, lse = functools.reduce(SoftmaxState.merge, order).finish()
        assert output == 1.0
        assert lse == 1e4


def test_a_nan_among_the_scores_stays_visible():
    scores, values = make_scores(3)
    scores[2, 5] = np.nan
    output, lse = SoftmaxState.from_scores(scores, values).finish()
    assert np.isnan(output[2]).all()
    assert np.isnan(lse[2])


@pytest.mark.parametrize("which", ["output", "lse"])
def test_gradients_through_a_merge_are_those_of_the_softmax(which):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(ROWS, KEYS, dtype=torch.float64, generator=generator).requires_grad_()
    values = torch.randn(KEYS, DIM, dtype=torch.float64, generator=generator).requires_grad_()

    def merged(scores, values):
        states = [
            SoftmaxState.from_scores(scores[:, a:b], values[a:b]) for a, b in [(0, 5), (5, 12)]
        ]
        output, lse = states[0].merge(states[1]).finish()
        return output if which == "output" else lse

    def direct(scores, values):
        return torch.softmax(scores, 1) @ values if which == "output" else scores.logsumexp(1)

    weights = torch.randn(merged(scores, values).shape, dtype=torch.float64, generator=generator)
    got, expected = (
        torch.autograd.grad(
            (f(scores, values) * weights).sum(), (scores, values), materialize_grads=True
        )
        for f in (merged, direct)
    )
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
