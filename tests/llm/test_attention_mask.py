"""Our mask function says what transformers' own does, mostly without building the mask."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    create_causal_mask,
    create_sliding_window_causal_mask,
    find_packed_sequence_indices,
    or_masks,
    packed_sequence_mask_function,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from support.models import tiny_bloom, tiny_llama, tiny_mistral, tiny_mpt
from tesseral._errors import BackendError, ParameterError
from tesseral.llm.attention_interface import register
from tesseral.llm.attention_mask import attention_mask
from tesseral.llm.rule_mask import BandMask, SegmentMask

register()


def own_function(batch, head, query, key):
    return key <= query + 1


PATTERNS = {
    "causal": causal_mask_function,
    "full": bidirectional_mask_function,
    "window": sliding_window_causal_mask_function(4),
    "window_both_ways": sliding_window_bidirectional_mask_function(3),
    "nested_windows": and_masks(
        sliding_window_causal_mask_function(5), sliding_window_causal_mask_function(3)
    ),
    "chunks": chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.long)),
    "window_or_more": or_masks(sliding_window_causal_mask_function(2), own_function),
    "causal_and_more": and_masks(causal_mask_function, own_function),
    "own": own_function,
}


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(PATTERNS)),
    q_len=st.integers(1, 6),
    kv_len=st.integers(1, 12),
    q_offset=st.integers(0, 14),
    kv_offset=st.integers(0, 4),
    padding=st.none() | st.lists(st.booleans(), min_size=1, max_size=20),
    as_tensor=st.booleans(),
)
def test_the_mask_is_that_of_transformers(
    name, q_len, kv_len, q_offset, kv_offset, padding, as_tensor
):
    if padding is not None:
        padding = torch.tensor([padding, [True] * len(padding)])
    case = (2, q_len, kv_len, torch.tensor(q_offset) if as_tensor else q_offset, kv_offset)
    got = attention_mask(*case, PATTERNS[name], padding)
    expected = sdpa_mask(*case, PATTERNS[name], padding, allow_is_causal_skip=False)
    assert got.shape == expected.shape
    assert got.dtype == torch.bool
    assert torch.equal(torch.clone(got), expected)


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("causal", (-1, 0)),
        ("full", (-1, -1)),
        ("window", (3, 0)),
        ("window_both_ways", (3, 3)),
        ("nested_windows", (2, 0)),
    ],
)
def test_a_band_is_kept_as_a_rule(name, window):
    length = 1_000_000  # as an array this mask would take a terabyte
    padding = torch.arange(length)[None] >= 7
    mask = attention_mask(1, length, length, 0, 0, PATTERNS[name], padding)
    assert mask.shape == (1, 1, length, length)
    assert mask.window == window
    assert torch.equal(mask.padding, padding)
    assert repr(mask).startswith("BandMask(shape=(1, 1, 1000000, 1000000)")


def test_the_unused_end_of_a_static_cache_is_left_out():
    padding = torch.ones(1, 5, dtype=torch.bool)
    mask = attention_mask(1, 3, 100, torch.tensor(2), 0, causal_mask_function, padding)
    assert mask.n_keys == 5
    assert mask.padding is None


@settings(deadline=None)
@given(
    name=st.sampled_from(["causal", "full", "window", "window_both_ways"]),
    q_len=st.integers(1, 6),
    past=st.integers(0, 6),
    padding=st.none() | st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_the_rule_hides_what_the_mask_hides_and_names_nothing_else(name, q_len, past, padding):
    padding = None if padding is None else torch.tensor([padding])
    mask = attention_mask(1, q_len, q_len + past, past, 0, PATTERNS[name], padding)
    seen = torch.ones(1, 1, q_len, q_len + past, dtype=torch.bool)
    distance = torch.arange(q_len + past) - torch.arange(past, q_len + past)[:, None]
    before, after = mask.rule.get("window", (-1, -1))
    if mask.rule.get("is_causal"):
        after = 0
    bands = [distance >= -before] * (before >= 0) + [distance <= after] * (after >= 0)
    for band in bands:
        assert not band.all(), "a rule that hides nothing was named"
        seen = seen & band
    seen = seen & mask.rule.get("mask", torch.tensor(True))
    assert torch.equal(seen, mask.materialize())


@pytest.mark.parametrize("name", ["chunks", "window_or_more", "causal_and_more", "own"])
def test_a_pattern_that_is_no_band_becomes_an_array(name):
    assert not isinstance(attention_mask(2, 5, 5, 0, 0, PATTERNS[name]), BandMask)


def test_a_function_that_only_looks_like_one_of_transformers_becomes_an_array():
    sliding_window = 3

    def inner_mask(batch, head, query, key):
        return key > query - sliding_window

    inner_mask.__qualname__ = "sliding_window_overlay.<locals>.inner_mask"
    assert not isinstance(attention_mask(1, 5, 5, 0, 0, inner_mask), BandMask)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    name=st.sampled_from(["causal", "window", "full"]),
)
def test_packed_sequences_are_kept_as_a_rule(lengths, name):
    # in the second row the sequences come in another order
    rows = [torch.cat([torch.arange(n) for n in row]) for row in (lengths, lengths[::-1])]
    positions = torch.stack(rows)
    if name == "full":
        together = packed_sequence_mask_function(find_packed_sequence_indices(positions))
        function = and_masks(bidirectional_mask_function, together)
        mask = attention_mask(2, sum(lengths), sum(lengths), mask_function=function)
    else:
        config = tiny_mistral("tesseral", sliding_window=4).config
        build = create_causal_mask if name == "causal" else create_sliding_window_causal_mask
        mask = build(config, torch.empty(2, sum(lengths), 0), None, None, positions)
    assert isinstance(mask, SegmentMask)
    assert mask.edges.tolist() == np.cumsum([0, *lengths, *lengths[::-1]]).tolist()
    before = 3 if name == "window" else 100
    for row in range(2):
        for i, j in np.ndindex(*mask.shape[2:]):
            distance = j - i
            same = bool(torch.equal(i - positions[row, i], j - positions[row, j]))
            seen = same and distance >= -before and (name == "full" or distance <= 0)
            assert mask.materialize()[row, 0, i, j] == seen, (row, i, j)


def test_packed_sequences_of_any_length_take_next_to_no_memory():
    length = 1_000_000  # as an array this mask would take a terabyte
    mask = SegmentMask(torch.arange(length)[None] // 1000, (-1, 0), "cpu")
    assert len(mask.edges) == 1001
    assert mask.rule == {"is_causal": True}
    assert repr(mask).endswith("n_sequences=1000)")


def test_packed_sequences_beside_an_unknown_function_become_an_array():
    packed = packed_sequence_mask_function(torch.tensor([[0, 0, 1, 1, 1]]))
    mask = attention_mask(1, 5, 5, 0, 0, and_masks(own_function, packed))
    assert type(mask) is torch.Tensor


def test_an_ordinary_tensor_is_given_where_transformers_needs_one():
    mask = attention_mask(1, 1, 5, 4, allow_is_causal_skip=False, device="meta")
    assert type(mask) is torch.Tensor


def test_a_rule_is_given_on_a_cpu_where_transformers_compiles_nothing():
    mask = attention_mask(1, 1, 100, 4, allow_is_causal_skip=False)
    assert (mask.n_keys, mask.rule) == (5, {})


def test_an_ordinary_tensor_is_given_while_compiling():
    kinds = []

    @torch.compile(backend="eager")
    def double(x):
        mask = attention_mask(1, 3, 3)
        kinds.append(type(mask))
        return x * mask

    assert double(torch.ones(3, 3)).sum() == 6
    assert kinds == [torch.Tensor]


def test_models_get_a_rule_through_the_interface_of_transformers():
    config = tiny_llama("tesseral").config
    embeddings = torch.empty(2, 5, 0)
    mask = create_causal_mask(config, embeddings, torch.ones(2, 5), DynamicCache())
    assert isinstance(mask, BandMask)
    assert mask.padding is None


@pytest.fixture
def band():
    padding = torch.tensor([[True, False, True, True]])
    return attention_mask(1, 3, 4, 1, 0, causal_mask_function, padding)


def test_any_operation_works_on_the_mask_that_the_rule_stands_for(band):
    expected = [[1, 0, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert band[0, 0].int().tolist() == expected
    assert torch.where(band, 1, 0)[0, 0].tolist() == expected
    assert (band & band).sum() == 6
    assert type(band.clone()) is torch.Tensor


def test_moving_a_mask_to_where_it_is_keeps_the_rule(band):
    assert band.to("cpu").contiguous() is band


def test_a_mask_is_not_written_into(band):
    with pytest.raises(ParameterError, match=r"masked_fill_.*would write into a mask"):
        band.masked_fill_(band, False)


@pytest.mark.parametrize(
    "misread",
    [
        lambda scores, mask: scores + mask,
        lambda scores, mask: (1 - mask.float()) * -1e9 + scores,
        lambda scores, mask: scores - 1e9 * mask,
        lambda scores, mask: scores.masked_fill(mask, -1e9),
    ],
)
def test_a_mask_is_not_taken_for_another_kind(band, misread):
    with pytest.raises(BackendError, match=r"does not call the attention that .*'eager'"):
        misread(torch.zeros(1, 2, 3, 4), band)


def test_what_is_hidden_may_be_filled(band):
    filled = torch.zeros(1, 1, 3, 4).masked_fill(~band, -1.0)
    assert torch.equal(filled, band.materialize().float() - 1)


@pytest.mark.parametrize("build", [tiny_bloom, tiny_mpt])
def test_a_model_that_does_not_call_our_attention_is_an_error(build):
    with pytest.raises(BackendError, match="Use attn_implementation='eager'"):
        build("tesseral")(torch.tensor([[1, 2, 3]]))
