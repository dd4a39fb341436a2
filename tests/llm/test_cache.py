"""The quantised cache stores what the codecs make of the tokens, and models read it back."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from support.budget import assert_within_budget
from support.codec import FakeCodec, attach_codecs
from support.models import BUILDERS, tiny_gemma2, tiny_llama, tiny_qwen3, token_ids
from tesseral._errors import ParameterError, ShapeError
from tesseral.core.packed import PackedTensor
from tesseral.llm.attention_interface import EncodedTensor, attention_forward, register
from tesseral.llm.cache import QuantizedKVCache, QuantizedKVLayer
from tesseral.llm.paged_rows import arrays_of
from tesseral.quantization.kvcodec import KVCodec

register()

WIDTHS = [(4, 4), (8, 2), (16, 4), (4, 16), (16, 16)]
LENGTH = 15


def quantised(name="llama", bits=(4, 4), dtype=torch.float64, **changes):
    """Return a model with codecs; in float64, where no code is on the edge to the next."""
    return attach_codecs(BUILDERS[name]("tesseral", **changes), *bits).to(dtype)


@torch.no_grad()
def logits_of(model, ids, cache=None, plan=(LENGTH,)):
    """Run ``ids`` in chunks of the sizes of ``plan`` and return the logits of all of them."""
    options = {"use_cache": False} if cache is None else {"past_key_values": cache}
    parts = [model(chunk, **options).logits for chunk in ids.split(list(plan), dim=1)]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("plan", [[15], [9, 1, 1, 1, 1, 1, 1], [5, 6, 4]], ids=str)
@pytest.mark.parametrize("bits", WIDTHS, ids=str)
@pytest.mark.parametrize("name", BUILDERS)
def test_logits_do_not_depend_on_the_cache(name, bits, plan):
    model, ids = quantised(name, bits), token_ids(2, LENGTH)
    expected = logits_of(model, ids)
    assert expected.dtype == torch.float64
    for cache in (QuantizedKVCache(model), DynamicCache(config=model.config)):
        got = logits_of(model, ids, cache, plan)
        assert type(got) is torch.Tensor
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [(4, 4), (16, 4), (4, 16)], ids=str)
def test_bits_make_a_difference(bits):
    ids = token_ids(2, LENGTH)
    exact = logits_of(tiny_llama("tesseral").double(), ids)
    assert (logits_of(quantised(bits=bits), ids) - exact).abs().max() > 0.01


@pytest.mark.parametrize("name", BUILDERS)
def test_a_transform_without_rounding_changes_nothing(name):
    model, ids = quantised(name, (16, 16), torch.float32), token_ids(2, LENGTH)
    got = logits_of(model, ids, QuantizedKVCache(model), [9, 6])
    oracle = logits_of(BUILDERS[name]("sdpa").double(), ids)
    peer = logits_of(BUILDERS[name]("eager"), ids)
    assert_within_budget(got.numpy(), oracle.numpy(), peer.numpy(), floor=2e-6)


def test_attention_reads_what_the_codec_wrote():
    rng = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, n, 6, 8, generator=rng) for n in (4, 2, 2))
    codec = FakeCodec(8, 4, 4)
    module = SimpleNamespace(is_causal=True, kv_codec=codec)
    got, _ = attention_forward(module, query, key, value, None)
    keys, values = (
        part.dequantize(torch.float64).repeat_interleave(2, dim=1)
        for part in codec.encode(key, value)
    )
    scores = codec.transform_query(query).double() @ keys.mT / 8**0.5
    scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(1, 2)
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=0)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 90), min_size=1, max_size=6), bits=st.sampled_from(WIDTHS))
def test_what_is_stored_is_what_the_codec_made_of_each_piece(sizes, bits):
    codec = FakeCodec(8, *bits)
    layer = QuantizedKVLayer(codec)
    pieces = [random_states(size, seed=size) for size in sizes]
    for key, value in pieces:
        layer.update(key, value)
    start = 0
    for size, piece in zip(sizes, pieces, strict=True):
        keys, values = codec.encode(*piece)
        assert_same(layer.keys[:, :, start : start + size], keys)
        assert_same(layer.values[:, :, start : start + size], values)
        start += size
    assert layer.get_seq_length() == layer.keys.shape[2] == start


def test_only_new_tokens_are_encoded():
    layer = filled(100)
    layer.update(*random_states(3))
    assert layer._codec.encoded_tokens == 103


def test_growing_copies_seldom_and_leaves_little_room():
    layer = QuantizedKVLayer(FakeCodec(8, 4, 4))
    places = places_while_growing(layer, 2000)
    assert len(places) < 20
    assert layer.nbytes <= 1.3 * (layer.keys.nbytes + layer.values.nbytes)


def test_growing_copies_nothing_up_to_what_is_expected():
    layer = QuantizedKVLayer(FakeCodec(8, 4, 4), expected=1500)
    assert len(places_while_growing(layer, 1500)) == 1
    assert layer.nbytes == layer.keys.nbytes + layer.values.nbytes
    assert len(places_while_growing(layer, 1)) == 1  # past it, elsewhere
    assert layer.get_seq_length() == 1501
    assert_same(layer.keys[:, :, -1:], FakeCodec(8, 4, 4).encode(*random_states(1))[0])


def test_where_room_cannot_be_set_aside_it_grows_all_the_same(monkeypatch):
    monkeypatch.setattr("tesseral.llm.token_store.reserve", lambda *_: None)
    layer = QuantizedKVLayer(FakeCodec(8, 4, 4), expected=10**9)
    places_while_growing(layer, 100)
    assert layer.nbytes <= 1.4 * (layer.keys.nbytes + layer.values.nbytes)


def test_a_model_of_n_positions_has_room_for_as_many():
    cache = QuantizedKVCache(attach_codecs(tiny_gemma2("tesseral"), 4, 4))
    assert [(layer._window, layer._expected) for layer in cache.layers] == [(6, 0), (None, 128)]
    assert cache.is_sliding == [True, False]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("head_dim", "bits", "expected"), [(128, 4, 4.25), (64, 4, 4.5)])
def test_the_system_says_how_much_memory_a_value_takes(head_dim, bits, expected):
    """Pages that the kernel has handed out, while twice as much is set aside."""
    layer = QuantizedKVLayer(KVCodec(None, key_bits=bits, value_bits=bits), expected=8192)
    before = resident_pages()
    for _ in range(2):
        layer.update(*torch.randn(2, 1, 8, 2048, head_dim).unbind())
    values = 2 * 8 * 4096 * head_dim
    assert 8 * (resident_pages() - before) / values == pytest.approx(expected, rel=0.01)


def test_the_first_update_leaves_next_to_no_room():
    layer = filled(1000)
    assert layer.nbytes <= 1.05 * (layer.keys.nbytes + layer.values.nbytes)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 90), min_size=1, max_size=8), window=st.integers(1, 70))
def test_a_layer_with_a_window_gives_what_is_seen_and_keeps_what_will_be(sizes, window):
    codec = FakeCodec(8, 4, 16)
    layer = QuantizedKVLayer(codec, window)
    pieces = [random_states(size, seed=size) for size in sizes]
    everything = [joined(side) for side in zip(*[codec.encode(*p) for p in pieces], strict=True)]
    length = 0
    for piece in pieces:
        visible, first = layer.get_mask_sizes(piece[0].shape[2])
        got = layer.update(*piece)
        length += piece[0].shape[2]
        assert first == max(0, length - piece[0].shape[2] - window + 1)
        for side, stored, whole in zip(got, (layer.keys, layer.values), everything, strict=True):
            assert_same(side, whole[:, :, length - visible : length])
            kept = min(length, window - 1)
            assert_same(stored, whole[:, :, length - kept : length])
    assert layer.get_seq_length() == length
    room = 2 * 2 * (max(sizes) + 2 * window + 64)  # batch, heads
    assert layer.nbytes <= room * (4 + 8 + 8 * 4)  # codes, scales and offsets; numbers


def test_what_leaves_a_window_comes_back_only_if_it_is_recorded():
    layer, states = QuantizedKVLayer(FakeCodec(8, 4, 4), window=6), random_states(12)
    layer.update(*states)
    with pytest.raises(ParameterError, match=r"left the window of 6; call activate_past_recording"):
        layer.crop(-1)
    layer.crop(0)
    layer.update(*random_states(4))
    layer.activate_past_recording()
    whole = FakeCodec(8, 4, 4).encode(*random_states(80, seed=1))
    layer.update(*random_states(80, seed=1))  # more than there is room for
    layer.crop(-3)
    assert_same(layer.keys, whole[0][:, :, 72:77])
    assert layer.get_seq_length() == 93
    assert layer.get_mask_sizes(2) == (7, 88)


def test_four_bits_take_a_quarter_of_the_room():
    model = quantised(head_dim=64, dtype=torch.float32)
    cache = QuantizedKVCache(model)
    assert cache.nbytes == 0
    logits_of(model, token_ids(1, 64), cache, [64])
    codes = 2 * 2 * 2 * 64 * 32  # layers, sides, heads, tokens, bytes a head
    scales = 2 * 2 * 2 * 64 * 8
    assert cache.nbytes == codes + scales


def test_crop_takes_the_last_tokens_away():
    layer = filled(70)
    expected = copy.deepcopy(layer)
    layer.update(*random_states(9, seed=1))
    layer.crop(-9)
    assert_same(layer.keys, expected.keys)
    layer.crop(0)
    assert layer.get_seq_length() == 70
    layer.crop(-100)
    assert layer.get_seq_length() == 0
    with pytest.raises(ParameterError, match=r"crop\(5\) must be called with minus the number"):
        layer.crop(5)


def test_reset_forgets_everything():
    model = quantised()
    cache = QuantizedKVCache(model)
    first = logits_of(model, token_ids(2, LENGTH), cache)
    cache.reset()
    assert (cache.get_seq_length(), cache.nbytes, cache.is_initialized) == (0, 0, False)
    assert torch.equal(logits_of(model, token_ids(2, LENGTH), cache), first)


@pytest.mark.parametrize("bits", [(4, 4), (16, 16)], ids=str)
def test_batch_rows_are_reordered_selected_and_repeated(bits):
    layer, like = filled(5, bits=bits), filled(5, bits=bits)
    layer.reorder_cache(torch.tensor([1, 1]))
    assert_same(layer.keys[1:], like.keys[1:])
    assert_same(layer.keys[:1], like.keys[1:])
    layer = copy.deepcopy(like)
    layer.batch_select_indices(torch.tensor([1]))
    assert_same(layer.values, like.values[1:])
    layer.batch_repeat_interleave(3)
    assert layer.values.shape == (3, 2, 5, 8)
    assert_same(layer.values[2:], like.values[1:])


def test_an_empty_layer_bears_every_operation():
    layer = QuantizedKVLayer(FakeCodec(8, 4, 4))
    layer.crop(-1)
    layer.reset()
    layer.reorder_cache(torch.tensor([0]))
    assert (layer.keys, layer.get_seq_length(), layer.get_max_length()) == (None, 0, -1)
    assert layer.get_mask_sizes(3) == (3, 0)


def test_a_copy_goes_its_own_way_and_shares_the_codec():
    layer, like = filled(5), filled(5)
    clone = copy.deepcopy(layer)
    like.update(*random_states(1, seed=1))
    clone.update(*random_states(1, seed=1))
    layer.update(*random_states(1, seed=2))
    assert_same(clone.keys, like.keys)
    assert clone._codec is layer._codec


def test_storage_can_be_prepared_before_the_first_token():
    cache = QuantizedKVCache(quantised(dtype=torch.float32))
    cache.early_initialization(2, 2, 8, torch.float32, torch.device("cpu"))
    assert cache.is_initialized
    assert cache.layers[0].keys.shape == (2, 2, 0, 8)


def test_no_gradient_passes():
    key, value = random_states(3)
    keys, _ = QuantizedKVLayer(FakeCodec(8, 16, 16)).update(key.requires_grad_(), value)
    assert isinstance(keys, EncodedTensor)
    assert not keys.requires_grad


def test_tokens_of_another_batch_are_refused():
    key, value = random_states(1)
    with pytest.raises(ShapeError, match=r"\(1, 2\) do not fit those stored for \(2, 2\)"):
        filled(5).update(key[:1], value[:1])


GENERATE = {"max_new_tokens": 8, "do_sample": False}


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"prefill_chunk_size": 4}, {"prompt_lookup_num_tokens": 3}],
    ids=["greedy", "beams", "chunked", "prompt_lookup"],
)
@pytest.mark.parametrize("name", BUILDERS)
def test_generation_does_not_depend_on_the_cache(name, options):
    model = quantised(name)
    ids = token_ids(1, 5).repeat(1, 3)
    got, expected = (
        model.generate(ids, past_key_values=cache, **GENERATE, **options)
        for cache in (QuantizedKVCache(model), DynamicCache(config=model.config))
    )
    assert torch.equal(got, expected)


def test_a_padded_batch_generates_what_each_row_would_alone():
    model, ids = quantised(), token_ids(2, LENGTH)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    both = model.generate(
        ids * mask, attention_mask=mask, past_key_values=QuantizedKVCache(model), **GENERATE
    )
    alone = model.generate(ids[1:, 4:], past_key_values=QuantizedKVCache(model), **GENERATE)
    assert torch.equal(both[1, LENGTH:], alone[0, LENGTH - 4 :])


def test_a_prompt_is_reused_by_copying_its_cache():
    model, ids = quantised(), token_ids(1, LENGTH)
    prompt = QuantizedKVCache(model)
    logits_of(model, ids[:, :10], prompt, [10])
    expected = model.generate(ids, past_key_values=QuantizedKVCache(model), **GENERATE)
    for _ in range(2):
        got = model.generate(ids, past_key_values=copy.deepcopy(prompt), **GENERATE)
        assert torch.equal(got, expected)
    assert prompt.get_seq_length() == 10


def test_a_model_without_codecs_is_refused():
    with pytest.raises(ParameterError, match="LlamaForCausalLM has no kv_codec on any"):
        QuantizedKVCache(tiny_llama("tesseral"))


def test_a_model_with_too_few_codecs_is_refused():
    model = quantised()
    del model.model.layers[1].self_attn.kv_codec
    with pytest.raises(ParameterError, match=r"no kv_codec in layers \[1\] of 2"):
        QuantizedKVCache(model)


def test_a_model_under_another_attention_is_refused():
    model = attach_codecs(tiny_qwen3("sdpa"), 4, 4)
    with pytest.raises(ParameterError, match=r"set_attn_implementation\('tesseral'\) first"):
        QuantizedKVCache(model)


def places_while_growing(layer, count):
    """Append tokens one by one, and return the addresses at which the codes of keys lay."""
    key, value = random_states(count)
    places = set()
    for token in range(count):
        keys, _ = layer.update(key[:, :, token : token + 1], value[:, :, token : token + 1])
        places.add(keys.data.data_ptr())
    return places


def joined(states):
    arrays = [torch.cat(parts, dim=2) for parts in zip(*map(arrays_of, states), strict=True)]
    if not isinstance(states[0], PackedTensor):
        return arrays[0]
    return PackedTensor(data=arrays[0], scale=arrays[1], offset=arrays[2], bits=4, length=8)


def resident_pages():
    """Return the bytes in memory of all maps that ask for no huge pages."""
    maps = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    sizes = [re.search(r"^Rss:\s+(\d+) kB", m, re.M) for m in maps if " nh" in m]
    return 1024 * sum(int(size[1]) for size in sizes)


def random_states(length, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2, 2, length, 8, generator=rng).unbind()


def filled(length, bits=(4, 4)):
    layer = QuantizedKVLayer(FakeCodec(8, *bits))
    layer.update(*random_states(length))
    return layer


def assert_same(got, expected):
    assert got.shape == expected.shape
    if isinstance(expected, PackedTensor):
        assert torch.equal(got.data, expected.data)
        assert torch.equal(got.scale, expected.scale)
        assert torch.equal(got.offset, expected.offset)
    else:
        assert torch.equal(got.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))
