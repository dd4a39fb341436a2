"""Blockwise attention against the float64 oracle, within the budget of plain code."""

import dataclasses

import numpy as np
import pytest
import torch

from attention.cases import SMALL_TILES, blockwise, make_inputs, oracle, plain, to_float64, visible
from support.budget import assert_within_budget
from tesseral.attention.backends.blockwise import BlockwiseBackend

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
EDGES = [1, 15, 16, 17, 33, 40]  # around the small tiles of 8 queries and 16 keys
RULES = {
    "full": {},
    "causal": {"is_causal": True},
    "window": {"window": (5, 3)},
    "left_window": {"window": (9, -1)},
    "right_window": {"window": (-1, 2)},
    "causal_window": {"is_causal": True, "window": (20, 6)},
}


def check(inputs, dtype=torch.float32, *, rules=None, bias=None, plan=SMALL_TILES, **options):
    """Compare blockwise with the oracle, on inputs rounded to ``dtype``; peer: plain code."""
    query, key, value = (torch.asarray(array).to(dtype) for array in inputs)
    rules = rules or {}
    got, lse = blockwise(query, key, value, plan=plan, **rules, **options)
    expected, expected_lse = oracle(query, key, value, **rules, **options)
    hidden = torch.asarray(~visible(query.shape[2], key.shape[2], **rules))
    dense = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)
    dense = dense if bias is None else dense + torch.asarray(bias).to(dtype)
    peer = plain(query, key, value, dense, softcap=options.get("softcap"))
    assert got.dtype == dtype
    # rounding a score moves its weight in proportion to the score; a lucky peer hides that
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    largest = (query.norm(dim=-1).max() * key.norm(dim=-1).max()).item() / query.shape[3] ** 0.5
    floor = torch.finfo(precise).eps * largest + 2 * torch.finfo(dtype).eps
    assert_within_budget(to_float64(got), expected, to_float64(peer), floor=floor)
    assert lse.dtype == precise
    precision = 1e-13 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(to_float64(lse), expected_lse, rtol=precision, atol=precision)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("order", ["random", "rising"])
def test_every_type_and_rule_stays_within_budget(dtype, rules, order):
    check(make_inputs(33, 50, order=order), dtype, rules=rules)


@pytest.mark.parametrize("kv_len", EDGES, ids="kv{}".format)
@pytest.mark.parametrize("q_len", EDGES, ids="q{}".format)
@pytest.mark.parametrize("rules", [RULES["full"], RULES["causal"], RULES["causal_window"]])
def test_lengths_around_the_edges_of_tiles(q_len, kv_len, rules):
    check(make_inputs(q_len, kv_len, batch=1, q_heads=2, order="rising"), rules=rules)


@pytest.mark.parametrize("head_dim", [1, 2, 7, 64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_head_dimensions_from_1_to_256(head_dim, dtype):
    check(make_inputs(20, 40, head_dim=head_dim), dtype, rules={"is_causal": True})


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (8, 1)])
def test_grouped_queries_read_the_key_head_of_their_group(q_heads, kv_heads):
    inputs = make_inputs(19, 35, q_heads=q_heads, kv_heads=kv_heads, value_dim=5)
    check(inputs, rules={"is_causal": True})


@pytest.mark.parametrize("changes", [
    {"batch_tile": 2, "head_tile": 1},
    {"batch_tile": 3, "head_tile": 2},
    {"q_tile": 1, "k_tile": 5},
    {"q_tile": 40, "k_tile": 3},
    {"q_tile": 7, "k_tile": 300},
])  # fmt: skip
def test_the_answer_does_not_depend_on_the_tiles(changes):
    plan = dataclasses.replace(SMALL_TILES, **changes)
    inputs = make_inputs(40, 290, batch=3, q_heads=4, kv_heads=2)
    check(inputs, torch.float64, rules={"is_causal": True, "window": (200, -1)}, plan=plan)


def test_the_tiles_chosen_by_default_are_right_too():
    check(make_inputs(600, 1500, batch=1, q_heads=2, head_dim=8), plan=None,
          rules={"is_causal": True, "window": (1100, -1)})  # fmt: skip


RNG = np.random.default_rng(3)
MASK_SHAPES = [(45,), (21, 1), (21, 45), (1, 45), (4, 1, 45), (2, 1, 21, 45), (2, 4, 21, 45)]


@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
@pytest.mark.parametrize("rules", [RULES["full"], RULES["causal_window"]], ids=["alone", "ruled"])
class TestDenseMasks:
    def test_boolean(self, shape, rules):
        mask = torch.asarray(RNG.random(shape) < 0.6)
        bias = np.where(mask, 0.0, -np.inf)
        check(make_inputs(21, 45), rules=rules, bias=bias, mask=mask)

    def test_additive_with_hidden_entries(self, shape, rules):
        bias = np.where(RNG.random(shape) < 0.8, RNG.standard_normal(shape), -np.inf)
        check(make_inputs(21, 45), rules=rules, bias=bias, mask=torch.asarray(bias))


def test_an_additive_mask_of_the_lowest_number_hides_as_well_as_infinity():
    shown = torch.asarray(RNG.random((21, 45)) < 0.6)
    shown[:, 0] = True
    query, key, value = (torch.asarray(a).float() for a in make_inputs(21, 45))
    lowest = torch.zeros(shown.shape).masked_fill_(~shown, torch.finfo(torch.float32).min)
    got, _ = blockwise(query, key, value, mask=lowest)
    expected, _ = blockwise(query, key, value, mask=shown)
    torch.testing.assert_close(got, expected)


def test_a_half_precision_mask_is_added_in_float32():
    bias = torch.asarray(RNG.standard_normal((21, 45))).half()
    check(make_inputs(21, 45), torch.float16, bias=bias, mask=bias)


@pytest.mark.parametrize("shape", [(4,), (2, 4)], ids=str)
def test_alibi_penalises_distance_from_the_place_of_the_query(shape):
    slopes = torch.asarray(RNG.random(shape))
    distance = np.abs(np.arange(21)[:, None] + 45 - 21 - np.arange(45)[None, :])
    bias = -np.broadcast_to(slopes, (2, 4))[..., None, None] * distance
    check(make_inputs(21, 45), rules={"is_causal": True}, bias=bias, alibi_slopes=slopes)


def test_softcap_bounds_the_scores():
    check(make_inputs(21, 45, order="rising"), rules={"is_causal": True}, softcap=1.5)


def test_sinks_join_the_denominator_and_the_lse():
    sinks = torch.tensor([0.0, 3.0, -torch.inf, 40.0], dtype=torch.float32)
    query, key, value = (torch.asarray(a).float() for a in make_inputs(21, 45))
    got, lse = blockwise(query, key, value, sinks=sinks, is_causal=True)
    expected, expected_lse = oracle(query, key, value, sinks=sinks, is_causal=True)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)


def test_everything_at_once():
    query, key, value = (torch.asarray(a) for a in make_inputs(30, 45, order="rising"))
    options = {
        "is_causal": True,
        "window": (25, -1),
        "scale": 0.3,
        "softcap": 5.0,
        "sinks": torch.asarray(RNG.standard_normal(4)),
        "alibi_slopes": torch.asarray(RNG.random(4)),
        "mask": torch.asarray(RNG.random((2, 1, 30, 45)) < 0.5),
    }
    for got, expected in zip(
        blockwise(query, key, value, **options),
        oracle(query, key, value, **options),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rules", [{"is_causal": True}, {"window": (2, 0)}, {"window": (0, 4)}])
def test_queries_before_the_first_key_get_zeros_and_minus_infinity(rules):
    query, key, value = make_inputs(40, 10)
    output, lse = blockwise(query, key, value, **rules)
    unseen = ~visible(40, 10, **rules).any(1)
    assert unseen.sum() > 20
    np.testing.assert_array_equal(output[:, :, unseen], 0.0)
    np.testing.assert_array_equal(lse[:, :, unseen], -np.inf)
    assert np.isfinite(lse[:, :, ~unseen]).all()
    expected, _ = oracle(query, key, value, **rules)
    np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-14)


def test_rows_that_a_dense_mask_hides_get_zeros_and_minus_infinity():
    query, key, value = make_inputs(20, 40)
    mask = np.ones((20, 40), dtype=bool)
    mask[[0, 9, 19]] = False
    output, lse = blockwise(query, key, value, mask=mask)
    assert (output[:, :, [0, 9, 19]] == 0).all()
    assert (lse[:, :, [0, 9, 19]] == -np.inf).all()
    assert np.isfinite(lse).sum() == 2 * 4 * 17


def test_a_row_that_sees_only_its_sink_gets_zeros_and_the_sink():
    query, key, value = make_inputs(8, 16)
    sinks = np.array([0.5, 1.5, -np.inf, 2.5])
    output, lse = blockwise(query, key, value, mask=np.zeros((1,), bool), sinks=sinks)
    assert (output == 0).all()
    np.testing.assert_array_equal(lse, np.broadcast_to(sinks[:, None], (2, 4, 8)))


@pytest.mark.parametrize("sizes", [(0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("sinks", [None, np.ones(4)], ids=["bare", "sinks"])
@pytest.mark.parametrize("plan", [None, SMALL_TILES], ids=["default", "small"])
def test_empty_axes_give_empty_or_zero_outputs(sizes, sinks, plan):
    batch, q_len, kv_len = sizes
    inputs = make_inputs(q_len, kv_len, batch=batch, value_dim=3)
    output, lse = blockwise(*inputs, plan=plan, is_causal=True, sinks=sinks)
    assert output.shape == (batch, 4, q_len, 3)
    assert (output == 0).all()
    np.testing.assert_array_equal(
        lse, np.full((batch, 4, q_len), -np.inf if sinks is None else 1.0)
    )


@pytest.mark.parametrize("rules", [{"is_causal": True}, {"window": (4, 1)}])
def test_a_token_that_is_hidden_never_changes_an_output(rules):
    query, key, value = make_inputs(20, 36)
    before, _ = blockwise(query, key, value, **rules)
    seen = visible(20, 36, **rules)
    for token in (3, 17, 20, 35):
        changed_key, changed_value = key.copy(), value.copy()
        changed_key[:, :, token] += 7.0
        changed_value[:, :, token] -= 7.0
        after, _ = blockwise(query, changed_key, changed_value, **rules)
        blind = ~seen[:, token]
        np.testing.assert_array_equal(after[:, :, blind], before[:, :, blind])
        assert (after[:, :, ~blind] != before[:, :, ~blind]).any(-1).all()


def layouts(array):
    """Return the same values behind strides of several kinds."""
    swapped = np.ascontiguousarray(np.swapaxes(array, 1, 2))
    wide = np.zeros((*array.shape[:3], 2 * array.shape[3]))
    wide[..., ::2] = array
    return {
        "heads_after_length": np.swapaxes(swapped, 1, 2),
        "every_other_number": wide[..., ::2],
        "columns_first": np.asfortranarray(array),
    }


@pytest.mark.parametrize("layout", ["heads_after_length", "every_other_number", "columns_first"])
@pytest.mark.parametrize("framework", [np.asarray, torch.asarray], ids=["numpy", "torch"])
def test_strides_do_not_matter(layout, framework):
    inputs = make_inputs(20, 40)
    strided = [framework(layouts(array)[layout]) for array in inputs]
    output, _ = blockwise(*strided, is_causal=True)
    expected, _ = oracle(*inputs, is_causal=True)
    np.testing.assert_allclose(output, expected, rtol=1e-12, atol=1e-13)


def test_inputs_are_left_as_they_were():
    inputs = make_inputs(20, 40)
    mask, sinks = np.zeros((20, 40)), np.zeros(4)
    copies = [array.copy() for array in (*inputs, mask, sinks)]
    blockwise(*inputs, mask=mask, sinks=sinks, softcap=2.0, is_causal=True)
    for array, copy in zip((*inputs, mask, sinks), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_the_same_call_twice_gives_the_same_bits():
    inputs = [torch.asarray(array).float() for array in make_inputs(40, 80)]
    first, _ = blockwise(*inputs, is_causal=True)
    second, _ = blockwise(*inputs, is_causal=True)
    assert torch.equal(first, second)


def test_a_mask_survives_inference_mode_into_training():
    query, key, value = (torch.asarray(array) for array in make_inputs(20, 40))
    with torch.inference_mode():
        blockwise(query, key, value, is_causal=True)
    output, _ = blockwise(query.requires_grad_(), key, value, is_causal=True)
    output.sum().backward()
    assert query.grad.isfinite().all()


def test_the_backend_takes_every_problem():
    assert BlockwiseBackend().supports(None).ok
