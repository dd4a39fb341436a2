"""Models under our attention give what they give under transformers' own."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from support.budget import assert_within_budget
from support.models import (
    BUILDERS,
    DECODERS,
    VOCABULARY,
    tiny_bert,
    tiny_llama,
    tiny_modern_bert,
    tiny_t5,
    token_ids,
)
from tesseral._errors import BackendError, DtypeError, ParameterError, ShapeError
from tesseral.llm.attention_interface import EncodedTensor, attention_forward, register
from tesseral.llm.attention_mask import attention_mask
from tesseral.llm.paged_cache import PACKED, PagedKVCache
from tesseral.llm.rule_mask import BandMask, SegmentMask

register()

LENGTH = 15
FLOOR = 1e-6

ENCODERS = {"bert": tiny_bert, "modern_bert": tiny_modern_bert}

CACHES = {
    "no_cache": lambda _: None,
    "dynamic": lambda model: DynamicCache(config=model.config),
    "dynamic_full": lambda _: DynamicCache(),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=LENGTH + 8),
}
PLANS = {"prefill": [LENGTH], "decode": [9, 1, 1, 1, 1, 1, 1], "chunked": [5, 6, 4]}
PADDINGS = {"full": (0, 0), "left": (4, 0), "right": (0, 4)}


@torch.no_grad()
def logits_of(model, ids, mask=None, cache=None, plan=(LENGTH,)):
    """Run ``ids`` in chunks of the sizes of ``plan`` and return the logits of all of them."""
    parts, start = [], 0
    for size in plan:
        stop = start + size
        seen = None if mask is None else mask[:, :stop]
        options = {"use_cache": False} if cache is None else {"past_key_values": cache}
        parts.append(model(ids[:, start:stop], attention_mask=seen, **options).logits)
        start = stop
    return torch.cat(parts, dim=1)


def padded(kind):
    """Return tokens and a padding mask; the second row has padding, the first has none."""
    left, right = PADDINGS[kind]
    ids, mask = token_ids(2, LENGTH), torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :left] = 0
    mask[1, LENGTH - right :] = 0
    return ids * mask, None if kind == "full" else mask


@torch.no_grad()
def logits_without_padding(model, ids, mask):
    """Run the real tokens of each row alone; where there is padding the logits are zero."""
    real = torch.ones_like(ids).bool() if mask is None else mask.bool()
    logits = torch.zeros(*ids.shape, VOCABULARY, dtype=model.dtype)
    for row in range(len(ids)):
        logits[row, real[row]] = model(ids[row, real[row]][None]).logits[0]
    return logits


def assert_as_exact_as_eager(got, oracle, peer, mask=None):
    real = torch.ones(got.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    got, oracle, peer = (x[real].detach().double().numpy() for x in (got, oracle, peer))
    assert_within_budget(got, oracle, peer, floor=FLOOR)


# without a cache there is one way to run, and padding on the right has no next token
WAYS = [
    (cache, plan, padding)
    for cache, plan, padding in itertools.product(CACHES, PLANS, PADDINGS)
    if plan == "prefill" or (cache != "no_cache" and padding != "right")
]


@pytest.mark.parametrize(("cache", "plan", "padding"), WAYS)
@pytest.mark.parametrize("name", DECODERS)
def test_logits_are_those_of_eager_attention(name, cache, plan, padding):
    build = DECODERS[name]
    ids, mask = padded(padding)
    model = build("tesseral")
    got = logits_of(model, ids, mask, CACHES[cache](model), PLANS[plan])
    oracle = logits_without_padding(build().double(), ids, mask)
    peer = logits_of(build(), ids, mask)
    assert_as_exact_as_eager(got, oracle, peer, mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", DECODERS)
def test_logits_in_half_precision_are_as_exact_as_those_of_eager_attention(name, dtype):
    build, (ids, mask) = DECODERS[name], padded("left")
    model = build("tesseral").to(dtype)
    got = logits_of(model, ids, mask, CACHES["static"](model), PLANS["chunked"])
    oracle = logits_without_padding(build().to(dtype).double(), ids, mask)
    assert_as_exact_as_eager(got, oracle, logits_of(build().to(dtype), ids, mask), mask)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_sees_both_ways(name, padding):
    build = ENCODERS[name]
    ids, mask = padded(padding)
    # under padding, eager attention in float64 overflows
    models = build("tesseral"), build("sdpa").double(), build()
    with torch.no_grad():
        got, oracle, peer = (model(ids, attention_mask=mask).logits for model in models)
    assert_as_exact_as_eager(got, oracle, peer, mask)


@pytest.mark.parametrize("padding", ["full", "left"])
def test_an_encoder_and_decoder_with_a_position_bias_is_as_exact_as_eager(padding):
    ids, mask = padded(padding)
    targets = token_ids(2, 7, seed=1)
    models = tiny_t5("tesseral"), tiny_t5("sdpa").double(), tiny_t5()
    with torch.no_grad():
        got, oracle, peer = (
            m(ids, attention_mask=mask, decoder_input_ids=targets).logits for m in models
        )
    assert_as_exact_as_eager(got, oracle, peer)
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    got, _, peer = (m.generate(ids, **options) for m in models)
    assert torch.equal(got, peer)


@pytest.mark.parametrize("name", DECODERS)
def test_packed_sequences_do_not_see_each_other(name):
    build, sequences = DECODERS[name], [token_ids(2, n, seed=n) for n in (9, 7, 1)]
    positions = torch.cat([torch.arange(9), torch.arange(7), torch.arange(1)])[None]
    packed = torch.cat(sequences, 1)
    got, peer = (
        build(attention)(packed, position_ids=positions, use_cache=False).logits
        for attention in ("tesseral", "sdpa" if name not in ("gemma2", "gpt_oss") else "eager")
    )
    oracle = torch.cat([build().double()(ids, use_cache=False).logits for ids in sequences], 1)
    assert_as_exact_as_eager(got, oracle, peer)


def test_gradients_of_packed_sequences_are_those_of_the_sequences_alone():
    packed, apart, positions = tiny_llama("tesseral"), tiny_llama("tesseral"), torch.arange(6) % 3
    ids = token_ids(2, 6)
    packed(ids, position_ids=positions[None], use_cache=False).logits.square().sum().backward()
    apart(ids.reshape(4, 3), use_cache=False).logits.square().sum().backward()
    for one, other in zip(packed.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("cache", ["no_cache", "static"])
@pytest.mark.parametrize("name", BUILDERS)
def test_changing_a_future_token_never_changes_a_past_output(name, cache):
    model = BUILDERS[name]("tesseral")
    before = token_ids(1, LENGTH)
    after = before.clone()
    after[:, 10] = (after[:, 10] + 1) % VOCABULARY
    first, second = (logits_of(model, ids, cache=CACHES[cache](model)) for ids in (before, after))
    assert torch.equal(first[:, :10], second[:, :10])
    assert not torch.equal(first[:, 10], second[:, 10])


@pytest.mark.parametrize("chunk", [None, 4], ids=["whole", "chunked"])
@pytest.mark.parametrize("implementation", ["dynamic", "static"])
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_generation_equals_that_of_eager_attention(name, implementation, chunk):
    ids, mask = padded("left")
    options = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False}
    expected = DECODERS[name]("eager").generate(ids, **options)
    options |= {"cache_implementation": implementation, "prefill_chunk_size": chunk}
    assert torch.equal(DECODERS[name]("tesseral").generate(ids, **options), expected)


def gradients_of(model, ids, mask):
    """Run a training step without its update and return the gradients by parameter."""
    model.train()
    model(ids, attention_mask=mask, labels=ids.masked_fill(ids == 0, -100)).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("padding", ["full", "right"])
@pytest.mark.parametrize("name", DECODERS)
def test_gradients_are_as_exact_as_those_of_eager_attention(name, padding):
    build, (ids, mask) = DECODERS[name], padded(padding)
    found = gradients_of(build("tesseral"), ids, mask)
    oracle, peer = gradients_of(build().double(), ids, mask), gradients_of(build(), ids, mask)
    for parameter, gradient in found.items():
        assert gradient is not None, parameter
        assert_as_exact_as_eager(gradient[None], oracle[parameter][None], peer[parameter][None])


def test_a_model_learns_under_our_attention():
    model, ids = tiny_llama("tesseral").train(), token_ids(4, LENGTH)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        losses.append(model(ids, labels=ids).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def test_function_and_mask_are_registered_under_one_name():
    register()
    assert AttentionInterface()["tesseral"] is attention_forward
    assert AttentionMaskInterface()["tesseral"] is attention_mask


def states(q_len, kv_len, batch=1, seed=0):
    """Return random queries of 4 heads, and keys and values of 2."""
    rng = torch.Generator().manual_seed(seed)
    shapes = (batch, 4, q_len, 8), (batch, 2, kv_len, 8), (batch, 2, kv_len, 8)
    return tuple(torch.randn(shape, generator=rng) for shape in shapes)


CAUSAL = SimpleNamespace(is_causal=True)
BIDIRECTIONAL = SimpleNamespace(is_causal=False)


def attend(module, q_len, kv_len, mask=None, **options):
    output, weights = attention_forward(module, *states(q_len, kv_len), mask, **options)
    assert weights is None
    assert output.is_contiguous()
    assert output.shape == (1, q_len, 4, 8)
    return output


def seen(q_len, kv_len, before=None, after=None):
    """Return the mask of a window around a diagonal that ends at the last query and key."""
    distance = torch.arange(kv_len) - torch.arange(kv_len - q_len, kv_len)[:, None]
    visible = torch.ones(q_len, kv_len, dtype=torch.bool)
    if before is not None:
        visible &= distance >= -before
    if after is not None:
        visible &= distance <= after
    return visible[None, None]


@pytest.mark.parametrize(
    ("module", "options", "sizes", "window"),
    [
        (CAUSAL, {}, (5, 5), (None, 0)),
        (CAUSAL, {}, (1, 9), (None, None)),
        (CAUSAL, {"is_causal": False}, (5, 9), (None, None)),
        (CAUSAL, {"sliding_window": 3}, (9, 9), (2, 0)),
        (CAUSAL, {"sliding_window": 3}, (1, 9), (2, 0)),
        (BIDIRECTIONAL, {}, (5, 9), (None, None)),
        (BIDIRECTIONAL, {"is_causal": True}, (5, 5), (None, 0)),
        (BIDIRECTIONAL, {"sliding_window": 3}, (9, 9), (2, 2)),
        (SimpleNamespace(), {}, (5, 5), (None, 0)),
    ],
)
def test_without_a_mask_module_and_window_say_what_is_seen(module, options, sizes, window):
    expected = attend(BIDIRECTIONAL, *sizes, mask=seen(*sizes, *window))
    torch.testing.assert_close(attend(module, *sizes, **options), expected)


@pytest.mark.parametrize(("q_len", "kv_len"), [(5, 9), (9, 5)])
def test_a_causal_call_that_does_not_say_where_its_queries_stand_is_refused(q_len, kv_len):
    with pytest.raises(ShapeError, match=f"{q_len} queries on {kv_len} keys came without a mask"):
        attend(CAUSAL, q_len, kv_len)


def test_a_floating_mask_is_added_to_the_scores():
    visible = seen(5, 9, after=0)
    added = torch.zeros(1, 1, 5, 9).masked_fill(~visible, torch.finfo(torch.float32).min)
    expected = attend(BIDIRECTIONAL, 5, 9, mask=visible)
    torch.testing.assert_close(attend(CAUSAL, 5, 9, mask=added), expected)


@pytest.mark.parametrize("kind", ["none", "boolean", "floating"])
def test_a_position_bias_is_added_beside_a_mask(kind):
    bias = torch.linspace(-2, 2, 4 * 5 * 9).reshape(1, 4, 5, 9)
    added = torch.zeros(1, 1, 5, 9).masked_fill(~seen(5, 9, after=0), -torch.inf)
    mask = {"none": None, "boolean": seen(5, 9, after=0), "floating": added}[kind]
    expected = attend(BIDIRECTIONAL, 5, 9, mask=bias if mask is None else bias + added)
    got = attend(BIDIRECTIONAL, 5, 9, mask=mask, position_bias=bias)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("biased", [False, True])
def test_packed_sequences_are_read_as_the_mask_they_stand_for(biased):
    numbers = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]])
    mask = SegmentMask(numbers, (2, 0), "cpu")
    inputs = states(5, 5, batch=2)
    options = {"position_bias": torch.randn(1, 4, 5, 5)} if biased else {}
    got, _ = attention_forward(CAUSAL, *inputs, mask, **options)
    expected, _ = attention_forward(CAUSAL, *inputs, mask.materialize(), **options)
    torch.testing.assert_close(got, expected)
    assert got.is_contiguous()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("q_offset", [0, 3])
def test_a_band_is_read_as_the_mask_it_stands_for(q_offset, window):
    function = sliding_window_causal_mask_function(window) if window else causal_mask_function
    padding = torch.arange(12) != 1
    mask = attention_mask(1, 5, 12, q_offset, 0, function, padding[None])
    assert isinstance(mask, BandMask)
    expected = attend(CAUSAL, 5, 12, mask=mask.materialize())
    torch.testing.assert_close(attend(CAUSAL, 5, 12, mask=mask), expected)


def test_a_query_that_sees_nothing_gives_zeros():
    padding = torch.tensor([[False, False, True, True, True]])
    output = attend(CAUSAL, 5, 5, mask=attention_mask(1, 5, 5, attention_mask=padding))
    assert torch.equal(output[:, :2], torch.zeros(1, 2, 4, 8))
    assert torch.isfinite(output).all()
    assert (output[:, 2:] != 0).all()


def test_a_mask_of_other_sizes_is_refused():
    with pytest.raises(ShapeError, match="for 5 queries on 7 keys does not fit 5 queries on 9"):
        attend(CAUSAL, 5, 9, mask=attention_mask(1, 5, 7))


@pytest.mark.parametrize("shape", [(1, 5), (5, 5), (1, 5, 5)])
def test_a_mask_whose_axes_would_have_to_be_guessed_is_refused(shape):
    with pytest.raises(ShapeError, match=r"a mask must have 4 axes .* got shape"):
        attend(CAUSAL, 5, 5, mask=torch.ones(shape, dtype=torch.bool))


def test_a_mask_of_another_kind_is_refused():
    with pytest.raises(DtypeError, match="mask of type list cannot be read"):
        attend(CAUSAL, 5, 5, mask=[])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dropout": 0.1}, "dropout=0.1 is not supported"),
        ({"output_attentions": True}, "output_attentions=True is not supported"),
        ({"indices": torch.zeros(1, 5, 2)}, r"attention to chosen keys \(indices\) is not support"),
        ({"block_indices": torch.zeros(1)}, "chosen blocks of keys .* is not supported"),
        ({"sinks": torch.zeros(1, 4, 5, 1)}, "a sink for each query .* is not supported"),
        ({"head_mask": torch.ones(4)}, "a mask of heads .* is not supported"),
    ],
)
def test_what_cannot_be_done_is_refused(option, message):
    with pytest.raises(BackendError, match=message):
        attend(CAUSAL, 5, 5, **option)


def test_a_paged_cache_that_is_not_ours_is_refused():
    with pytest.raises(BackendError, match=r"type object cannot be read; call tesseral.llm.gen"):
        attend(CAUSAL, 5, 5, cache=object())


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, 5, 5, dtype=torch.bool)])
def test_a_mask_beside_a_paged_cache_is_refused(mask):
    ours = object.__new__(PagedKVCache)
    with pytest.raises(BackendError, match="takes neither masks nor position biases"):
        attend(CAUSAL, 5, 5, mask, cache=ours)
    with pytest.raises(BackendError, match="takes neither masks nor position biases"):
        attend(CAUSAL, 5, 5, PACKED, cache=ours, position_bias=torch.zeros(1, 4, 5, 5))
    with pytest.raises(BackendError, match="nor attention to later tokens"):
        attend(BIDIRECTIONAL, 5, 5, PACKED, cache=ours)


def test_training_with_dropout_is_refused_by_the_model():
    model = tiny_llama("tesseral", attention_dropout=0.1).train()
    with pytest.raises(BackendError, match="train with attention_dropout=0"):
        model(token_ids(1, 5))


def test_encoded_keys_of_a_module_without_codec_are_refused():
    query, key, value = states(5, 5)
    with pytest.raises(ParameterError, match="no kv_codec but gets encoded keys"):
        attention_forward(CAUSAL, query, key.as_subclass(EncodedTensor), value, None)
