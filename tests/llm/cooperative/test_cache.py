"""A cooperative cache changes where keys and values lie, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from support.codec import FakeCodec, attach_codecs
from support.models import tiny_gemma3, tiny_llama, token_ids
from tesseral._errors import ParameterError, ShapeError
from tesseral.llm import CooperativeCache, QuantizedKVCache, plan_memory
from tesseral.llm.cooperative import layers
from tesseral.llm.cooperative.link import Link, pinned

CONTEXT = 96

maps = Path("/proc/self/maps")
needs_maps = pytest.mark.skipif(not maps.exists(), reason="the system tells no map of memory")


def planned(model, *, host=1, batch=2, strip=10, context=CONTEXT, **asked):
    """Return a plan that puts the last ``host`` layers without window on the host."""
    plan = plan_memory(model, context, 1 << 40, 1 << 40, batch=batch, **asked)
    layers = tuple(range(plan.n_layers))[plan.n_layers - host :]
    return replace(plan, host_layers=layers, strip_tokens=strip)


def remote():
    return Link(torch.device("cpu"), remote=True)


@torch.inference_mode()
def run(model, cache, tokens, lengths):
    """Return the logits of all tokens, fed in chunks of ``lengths``."""
    chunks, start = [], 0
    for length in lengths:
        part = tokens[:, start : start + length]
        chunks.append(model(part, past_key_values=cache, use_cache=True).logits)
        start += length
    return torch.cat(chunks, dim=1)


LENGTHS = (40, 23, 1, 3, 1, 1)
"""Chunks of a prompt, then tokens: one at a time, and three as a draft would bring."""


def tokens_of(lengths=LENGTHS, batch=2):
    return token_ids(batch, sum(lengths))


def test_without_a_link_the_logits_are_the_same_bits():
    model = tiny_llama("tesseral")
    expected = run(model, DynamicCache(), tokens_of(), LENGTHS)
    cache = CooperativeCache(model, planned(model))
    assert torch.equal(run(model, cache, tokens_of(), LENGTHS), expected)
    assert cache.get_seq_length() == sum(LENGTHS)


@pytest.mark.parametrize("cooperate", [True, False], ids=["cpu", "copied"])
@pytest.mark.parametrize("passing", [0, 7, 10])
@pytest.mark.parametrize("host", [1, 2])
def test_over_a_link_strips_and_parts_sum_up_to_the_same(host, passing, cooperate):
    model = tiny_llama("tesseral")
    expected = run(model, DynamicCache(), tokens_of(), LENGTHS)
    cache = CooperativeCache(
        model, planned(model, host=host), cooperate=cooperate, passing=passing, link=remote()
    )
    torch.testing.assert_close(
        run(model, cache, tokens_of(), LENGTHS), expected, atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("bits", [8, 4])
def test_a_model_without_codec_may_keep_codes(bits):
    model = tiny_llama("tesseral").double()
    near = CooperativeCache(model, planned(model, host=0, kv_bits=bits))
    far = CooperativeCache(model, planned(model, host=2, kv_bits=bits), passing=7, link=remote())
    expected = run(model, near, tokens_of(), LENGTHS)
    torch.testing.assert_close(run(model, far, tokens_of(), LENGTHS), expected, atol=1e-5, rtol=0)
    assert near.nbytes == far.nbytes == far.host_bytes
    assert near.host_bytes == 0


@pytest.mark.parametrize("bits", [(4, 4), (8, 4), (16, 4)], ids=str)
def test_codes_of_a_quantised_model_are_its_own(bits):
    # in float64, where no code is on the edge to the next
    model = attach_codecs(tiny_llama("tesseral"), *bits).double()
    tokens = tokens_of()
    expected = run(model, QuantizedKVCache(model), tokens, LENGTHS)
    cache = CooperativeCache(model, planned(model, host=1), passing=7, link=remote())
    torch.testing.assert_close(run(model, cache, tokens, LENGTHS), expected, atol=1e-5, rtol=0)
    assert (cache.plan.key_bits, cache.plan.value_bits) == bits


@pytest.mark.parametrize("cooperate", [True, False], ids=["cpu", "copied"])
def test_layers_of_the_host_may_differ_in_their_widths(cooperate):
    model = attach_codecs(tiny_llama("tesseral", num_hidden_layers=3), 4, 4).double()
    for layer, bits in zip(model.model.layers, ((4, 4), (8, 4), (16, 8)), strict=True):
        layer.self_attn.kv_codec = FakeCodec(8, *bits).double()
    tokens = tokens_of()
    expected = run(model, QuantizedKVCache(model), tokens, LENGTHS)
    plan = planned(model, host=3)
    cache = CooperativeCache(model, plan, link=remote(), passing=7, cooperate=cooperate)
    torch.testing.assert_close(run(model, cache, tokens, LENGTHS), expected, atol=1e-5, rtol=0)
    assert cache._shared.conveyor.nbytes <= plan.layer_bytes * 2 * 10 // CONTEXT + 4096


def test_numbers_are_made_of_codes_some_at_a_time_where_only_values_are_coded(monkeypatch):
    model = attach_codecs(tiny_llama("tesseral"), 16, 4).double()
    tokens, asked = tokens_of((90,)), []
    monkeypatch.setattr(layers, "DENSE_TOKENS", 32)
    monkeypatch.setattr(layers, "FEW_ROWS", 8)
    original = layers.dense
    monkeypatch.setattr(
        layers,
        "dense",
        lambda states, dtype: asked.append(states[1].shape[2]) or original(states, dtype),
    )
    cache = CooperativeCache(model, planned(model, host=0), link=remote())
    got = run(model, cache, tokens, (60, 30))
    expected = run(model, QuantizedKVCache(model), tokens, (60, 30))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert max(asked) < 90


def test_nothing_but_the_room_is_kept_where_host_and_device_are_one():
    model = tiny_llama("tesseral")
    cache = CooperativeCache(model, planned(model, host=2))
    run(model, cache, tokens_of(), LENGTHS)
    assert all(layer._own is None for layer in cache.layers)


def test_keys_of_another_size_are_refused():
    model, other = tiny_llama("tesseral"), tiny_llama("tesseral", head_dim=16)
    cache = CooperativeCache(other, planned(other))
    with pytest.raises(ShapeError, match=r"keys of 8 numbers a head do not fit the plan.* for 16"):
        run(model, cache, token_ids(2, 3), (3,))


@needs_maps
def test_memory_is_unregistered_before_it_goes_back_to_the_system(monkeypatch):
    told = []

    class Runtime:
        def cudaHostRegister(self, address, *_):
            told.append(address)
            return 0

        def cudaHostUnregister(self, address):
            lines = (line.split()[0].split("-") for line in maps.read_text().splitlines())
            told.append(any(int(a, 16) <= address < int(b, 16) for a, b in lines))

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    array = pinned((3 << 20,), torch.uint8)
    assert told == [array.data_ptr()]
    del array
    assert told[1:] == [True]


def test_padding_is_hidden_in_every_part():
    model = tiny_llama("tesseral")
    tokens = tokens_of((30,))
    padding = torch.ones_like(tokens)
    padding[0, :13] = 0
    with torch.inference_mode():
        cache = CooperativeCache(model, planned(model), passing=7, link=remote())
        got = []
        for start, stop in ((0, 20), (20, 29), (29, 30)):
            call = model(
                tokens[:, start:stop],
                attention_mask=padding[:, :stop],
                position_ids=(padding.cumsum(1) - 1).clamp(min=0)[:, start:stop],
                past_key_values=cache,
            )
            got.append(call.logits)
        plain = model(
            tokens,
            attention_mask=padding,
            position_ids=(padding.cumsum(1) - 1).clamp(min=0),
        ).logits
    torch.testing.assert_close(torch.cat(got, 1)[0, 13:], plain[0, 13:], atol=2e-5, rtol=2e-5)


def test_layers_with_a_window_stay_on_the_device():
    model = tiny_gemma3("tesseral", num_hidden_layers=3)
    tokens = tokens_of()
    expected = run(model, DynamicCache(config=model.config), tokens, LENGTHS)
    plan = replace(planned(model), host_layers=(1,))
    got = run(model, CooperativeCache(model, plan, link=remote(), passing=4), tokens, LENGTHS)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_generation_in_chunks_goes_on_as_without():
    model = tiny_llama("tesseral")
    tokens = tokens_of((40,))
    expected = model.generate(tokens, max_new_tokens=20, do_sample=False)
    cache = CooperativeCache(model, planned(model), link=remote(), passing=7)
    got = model.generate(
        tokens, max_new_tokens=20, do_sample=False, past_key_values=cache, prefill_chunk_size=16
    )
    assert torch.equal(got, expected)


def test_what_was_cropped_is_written_over():
    model = tiny_llama("tesseral")
    tokens, others = tokens_of(), token_ids(2, 9, seed=5)
    cache = CooperativeCache(model, planned(model), link=remote(), passing=10)
    run(model, cache, torch.cat([tokens[:, :40], others], 1), (40, 5, 4))
    cache.crop(-9)
    got = run(model, cache, tokens[:, 40:], LENGTHS[1:])
    expected = run(model, DynamicCache(), tokens, LENGTHS)[:, 40:]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


def test_a_strip_that_was_cropped_is_brought_again():
    model = tiny_llama("tesseral")
    tokens, others = tokens_of((40, 1, 1)), token_ids(2, 46, seed=5)
    cache = CooperativeCache(model, planned(model, host=2), link=remote(), passing=10)
    run(model, cache, torch.cat([tokens[:, :4], others], 1), (48, 1, 1))
    cache.crop(-46)
    got = run(model, cache, tokens[:, 4:], (36, 1, 1))
    expected = run(model, DynamicCache(), tokens, (40, 1, 1))[:, 4:]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("host", [1, 2])
def test_strips_that_grow_are_brought_again(host):
    model, lengths = tiny_llama("tesseral"), (5, *[1] * 9)
    tokens = tokens_of(lengths)
    cache = CooperativeCache(model, planned(model, host=host), link=remote(), passing=10)
    got = run(model, cache, tokens, lengths)
    expected = run(model, DynamicCache(), tokens, lengths)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


def test_beams_take_their_keys_along():
    model = tiny_llama("tesseral")
    tokens = tokens_of()
    cache = CooperativeCache(model, planned(model), link=remote(), passing=10)
    run(model, cache, tokens, (40, 1))
    order = torch.tensor([1, 0])
    cache.reorder_cache(order)
    rest = (22, 1, 3, 1, 1)
    got = run(model, cache, tokens[order][:, 41:], rest)
    expected = run(model, DynamicCache(), tokens, (40, 1, *rest))[order][:, 41:]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


def test_a_cache_can_be_used_again():
    model = tiny_llama("tesseral")
    cache = CooperativeCache(model, planned(model), link=remote(), passing=10)
    run(model, cache, token_ids(2, 50, seed=9), (50,))
    cache.reset()
    got = run(model, cache, tokens_of(), LENGTHS)
    expected = run(model, DynamicCache(), tokens_of(), LENGTHS)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


def test_other_batches_and_longer_contexts_are_refused():
    model = tiny_llama("tesseral")
    cache = CooperativeCache(model, planned(model))
    with pytest.raises(ShapeError, match=r"\(1, 2\) do not fit the plan, which is for \(2, 2\)"):
        run(model, cache, token_ids(1, 3), (3,))
    with pytest.raises(ParameterError, match="97 tokens do not fit a plan for 96"):
        run(model, cache, token_ids(2, 97), (97,))
    with pytest.raises(ParameterError, match="not planned for; call plan_memory with batch=6"):
        cache.batch_repeat_interleave(3)


def test_another_model_or_attention_is_refused():
    model = tiny_llama("tesseral")
    with pytest.raises(ParameterError, match="plan is for 2 layers and the model has 3"):
        CooperativeCache(tiny_llama("tesseral", num_hidden_layers=3), planned(model))
    with pytest.raises(ParameterError, match="attn_implementation='eager'"):
        CooperativeCache(tiny_llama(), planned(model))
    plan = plan_memory(model, CONTEXT, 1, 1)
    with pytest.raises(ParameterError, match="do not hold the model"):
        CooperativeCache(model, plan)


def test_a_timeline_says_who_did_what():
    model = tiny_llama("tesseral")
    cache = CooperativeCache(model, planned(model), link=remote(), passing=7)
    run(model, cache, tokens_of(), (40, 23))
    with cache.recorded() as timeline:
        run(model, cache, tokens_of((1,)), (1,))
    works = timeline.works()
    assert {(work.row, work.kind) for work in works} == {
        ("device", "attention"),
        ("CPU", "attention"),
    }
    assert all(0 <= work.start_s <= work.end_s for work in works)
