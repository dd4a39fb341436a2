import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention.cases import visible
from tesseral import _errors
from tesseral.attention.mask import Band, check_dense_mask, check_window, make_band

sides = st.integers(-1, 9)


@given(
    q_len=st.integers(0, 8),
    kv_len=st.integers(0, 8),
    is_causal=st.booleans(),
    window=st.none() | st.tuples(sides, sides),
    align=st.sampled_from(["bottom-right", "top-left"]) | st.integers(-9, 9),
)
def test_a_band_shows_what_the_rules_show(q_len, kv_len, is_causal, window, align):
    band = make_band(q_len, kv_len, is_causal=is_causal, window=window, align=align)
    ahead = np.arange(kv_len)[None, :] - np.arange(q_len)[:, None]
    shown = np.ones((q_len, kv_len), dtype=bool)
    if band.lower is not None:
        shown &= ahead >= band.lower
    if band.upper is not None:
        shown &= ahead <= band.upper
    np.testing.assert_array_equal(
        shown, visible(q_len, kv_len, is_causal=is_causal, window=window, align=align)
    )


def test_no_rule_is_an_unbounded_band():
    assert make_band(3, 5) == Band(lower=None, upper=None)


def test_an_unknown_alignment_is_refused():
    with pytest.raises(_errors.ParameterError, match="align='left' is not 'bottom-right'"):
        make_band(3, 5, align="left")


@pytest.mark.parametrize("window", [3, (1,), (1, 2, 3), (-2, 0), (0, 1.5), "ab", (None, 1)])
def test_a_malformed_window_is_refused(window):
    with pytest.raises(_errors.ParameterError, match=r"call: window=.* is not a pair"):
        check_window("call", window)


def test_a_window_may_be_a_list():
    assert check_window("call", [4, -1]) == (4, -1)


@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (4, 5), (1, 5), (3, 4, 5), (1, 1, 1), (2, 1, 4, 5), (2, 3, 4, 5)]
)
def test_masks_that_broadcast_to_the_scores_are_accepted(shape):
    assert check_dense_mask("call", np.zeros(shape), np, (2, 3, 4, 5)) == "additive"
    assert check_dense_mask("call", np.zeros(shape, bool), np, (2, 3, 4, 5)) == "boolean"


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 4, 5), (3, 1, 4, 5), (1, 2, 3, 4, 5)])
def test_masks_that_do_not_broadcast_are_refused(shape):
    with pytest.raises(_errors.ShapeError, match=r"call: a mask of shape .* does not broadcast"):
        check_dense_mask("call", np.zeros(shape), np, (2, 3, 4, 5))


def test_a_mask_of_integers_is_refused():
    with pytest.raises(_errors.DtypeError, match=r"mask must be boolean .* got int64"):
        check_dense_mask("call", np.zeros((4, 5), np.int64), np, (2, 3, 4, 5))
