"""One token through all blocks in a call: the bits of block after block, or the model's own way."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from support.checkpoints import TEXT, save
from support.models import token_ids
from support.native_llm import MODELS, given, logits, make_model
from support.quantised import tiny
from tesseral._errors import ShapeError
from tesseral.core.decoder_block import DecoderBlocks
from tesseral.llm import load, quantize
from tesseral.llm.cache import QuantizedKVCache
from tesseral.llm.native_block import parts_of
from tesseral.llm.native_model import NativeModel, Stack
from tesseral.quantization import QuantizationConfig


@pytest.fixture
def counted(monkeypatch):
    """Say for every token whether all blocks were one call."""
    taken = []
    original = Stack.token

    def token(self, *given):
        hidden = original(self, *given)
        taken.append(hidden is not None)
        return hidden

    monkeypatch.setattr(Stack, "token", token)
    return taken


def block_by_block(model):
    """Return a copy of the model that takes a block after the other."""
    twin = copy.deepcopy(model)
    twin.model.layers[0].register_forward_hook(lambda *_: None)
    return twin


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_passes_all_blocks_in_one_call_and_gives_the_same_bits(kind, batch, dtype, counted):
    model = make_model(kind, dtype=dtype)
    found = logits(model, *given(batch))
    assert counted == [True] * 4
    expected = logits(block_by_block(model), *given(batch))
    assert counted[4:] == [False] * 4
    assert torch.equal(found, expected)


def test_a_mask_that_hides_nothing_changes_nothing_and_padding_goes_its_own_way(counted):
    model, (prompt, tokens) = make_model(), given(2)
    mask = torch.ones_like(prompt)
    plain = logits(model, prompt, tokens)
    assert torch.equal(logits(model, prompt, tokens, attention_mask=mask), plain)
    assert all(counted)
    counted.clear()
    mask = mask.clone()
    mask[1, :4] = 0
    found = logits(model, prompt, tokens, attention_mask=mask)
    assert not any(counted)
    assert torch.equal(found, logits(block_by_block(model), prompt, tokens, attention_mask=mask))


def test_generation_crops_and_reorders_what_a_call_has_stored(counted):
    model, (prompt, _) = make_model(), given(1)
    beams = {"num_beams": 3, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    found = model.generate(prompt, past_key_values=QuantizedKVCache(model), **beams)
    assert sum(counted) >= 11
    twin = block_by_block(model)
    expected = twin.generate(prompt, past_key_values=QuantizedKVCache(twin), **beams)
    assert torch.equal(found, expected)
    cache = QuantizedKVCache(model)
    with torch.inference_mode():
        model(prompt, past_key_values=cache, use_cache=True)
        token = prompt[:, -1:]
        first = model(token, past_key_values=cache, use_cache=True).logits
        assert cache.layers[0].keys.shape[2] == cache.get_seq_length() == prompt.shape[1] + 1
        cache.crop(-1)
        again = model(token, past_key_values=cache, use_cache=True).logits
    assert torch.equal(first, again)


def test_who_watches_asks_or_wants_gradients_gets_the_models_own_way(counted, monkeypatch):
    model = make_model()
    cache = QuantizedKVCache(model)
    model(given(1)[0], past_key_values=cache, use_cache=True)
    model(given(1)[1][:, :1], past_key_values=cache, use_cache=True)  # with gradients
    assert counted == [False]
    logits(model, *given(1))
    assert counted[1:] == [True] * 4
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    logits(model, *given(1))
    handle.remove()
    assert counted[5:] == [False] * 4
    monkeypatch.setenv("TESSERAL_ATTENTION_BACKEND", "blockwise")
    logits(model, *given(1))
    assert counted[9:] == [False] * 4
    with torch.inference_mode():
        cache = QuantizedKVCache(model)
        model(given(1)[0], past_key_values=cache, use_cache=True)
        output = model(
            given(1)[1][:, :1], past_key_values=cache, use_cache=True, output_hidden_states=True
        )
    assert len(output.hidden_states) == len(model.model.layers) + 1


def test_moved_weights_are_noticed_and_copies_are_whole(counted):
    model = make_model()
    found = logits(model, *given(1))
    twin = copy.deepcopy(model)
    assert "_stack" not in twin.model.__dict__
    assert torch.equal(logits(twin, *given(1)), found)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight_scale = 2 * layer.mlp.down_proj.weight_scale
    assert not torch.equal(logits(model, *given(1)), found)
    assert all(counted)


def test_a_cache_is_let_go_and_the_next_one_is_found(counted):
    model, (prompt, tokens) = make_model(), given(1)
    expected = logits(model, prompt, tokens)
    with torch.inference_mode():
        cache = QuantizedKVCache(model)
        model(prompt, past_key_values=cache, use_cache=True)
        model(tokens[:, :1], past_key_values=cache, use_cache=True)
    held = weakref.ref(cache.layers[0].make_room()[0][0])
    del cache
    gc.collect()
    assert held() is None
    assert torch.equal(logits(model, prompt, tokens), expected)
    assert all(counted)


def test_the_class_keeps_its_name():
    model = make_model()
    assert isinstance(model.model, NativeModel)
    assert type(model.model).__name__ == "LlamaModel"


def test_blocks_that_are_not_alike_and_positions_without_room_are_named():
    model, other = make_model(), make_model(dtype=torch.float32)
    blocks = [parts_of(m.model.layers[0]).kernel(m.dtype) for m in (model, other)]
    with pytest.raises(ShapeError, match="must be alike"):
        DecoderBlocks(blocks)
    kernel, cache = DecoderBlocks(blocks[:1]), QuantizedKVCache(model)
    with torch.inference_mode():
        model(given(1)[0], past_key_values=cache, use_cache=True)
    kernel.set_caches([cache.layers[0].make_room()])
    x = torch.zeros(1, 1, kernel.width, dtype=torch.bfloat16)
    angles = (torch.zeros(1, 1, kernel.head_dim, dtype=torch.bfloat16),) * 2
    with pytest.raises(ShapeError, match="lies past room"):
        kernel.token(x, angles, 10**6, None, x.clone())
    with pytest.raises(ShapeError, match="do not fit 2 sequences"):
        kernel.token(x.repeat(2, 1, 1), angles, 0, None, x.repeat(2, 1, 1))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("embedded", [False, True])
def test_a_long_prompt_is_read_in_pieces(kind, padded, embedded, monkeypatch):
    model = make_model(kind, dtype=torch.float32)
    prompt, more = torch.randint(0, 64, (2, 2, 23), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 46, dtype=torch.long)
    mask[1, :5] = 1 - padded
    lengths = []
    block = model.model.layers[0]
    block.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))

    @torch.inference_mode()
    def read():
        cache, found = QuantizedKVCache(model), []
        for tokens, count in ((prompt, 23), (more, 46)):
            given = {"inputs_embeds": model.model.embed_tokens(tokens)} if embedded else {}
            given = given or {"input_ids": tokens}
            output = model(
                **given, attention_mask=mask[:, :count], past_key_values=cache, use_cache=True
            )
            found.append(output.logits)
        return torch.cat(found, dim=1)

    whole = read()
    assert lengths == [23, 23]
    monkeypatch.setattr("tesseral.llm.native_model.PIECE", 20)
    pieces = read()
    assert lengths[2:] == [10, 10, 3] * 2
    seen = mask.bool()
    assert (pieces - whole)[seen].abs().median() < 1e-4 * whole.std()
    assert torch.equal(pieces[seen].argmax(-1), whole[seen].argmax(-1))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "phi3", "olmo2"])
def test_every_architecture_that_reads_in_pieces_says_the_same(name, tmp_path, monkeypatch):
    config = QuantizationConfig(transform="hadamard", samples=2, sequence_length=16)
    out = quantize(save(tiny(name), tmp_path / "original"), config, TEXT, tmp_path / "out")
    model, _ = load(out)
    assert isinstance(model.base_model, NativeModel)
    ids = token_ids(2, 12)

    @torch.inference_mode()
    def read():
        return model(ids, past_key_values=QuantizedKVCache(model), use_cache=True).logits

    whole = read()
    monkeypatch.setattr("tesseral.llm.native_model.PIECE", 10)
    assert (read() - whole).abs().median() < 1e-4 * whole.std()


def test_layers_whose_caches_differ_go_their_own_way(counted):
    model = make_model(widths={"layers": {"0": {"kv_bits": 8}}})
    found = logits(model, *given(1))
    assert counted == [False] * 4
    assert torch.equal(found, logits(block_by_block(model), *given(1)))


def test_a_type_without_a_kernel_goes_its_own_way(counted):
    model = make_model(dtype=torch.float16)
    assert logits(model, *given(1)).isfinite().all()
    assert counted == [False] * 4


def test_blocks_that_were_replaced_are_those_that_compute(counted):
    model = make_model(dtype=torch.float32)
    before = logits(model, *given(1))
    other = make_model(dtype=torch.float32)
    with torch.no_grad():
        other.model.layers[1].post_attention_layernorm.weight.mul_(2)
    model.model.layers[1] = other.model.layers[1]
    found = logits(model, *given(1))
    assert not torch.equal(found, before)
    assert torch.equal(found, logits(block_by_block(model), *given(1)))


def test_threads_that_share_a_model_do_not_share_a_cache():
    model = make_model(dtype=torch.float32)
    prompt, tokens = given(1)
    prompts = [(prompt + step) % 64 for step in range(4)]
    expected = [logits(model, given_prompt, tokens) for given_prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(lambda one: logits(model, one, tokens), prompts))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_angles_that_depend_on_a_prompts_length_are_those_of_the_whole(monkeypatch):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = make_model(dtype=torch.float32, rope_parameters=rope, max_position_embeddings=8)
    prompt = token_ids(1, 24, 64)
    found = {}
    for piece in (4, 10**6):
        monkeypatch.setattr("tesseral.llm.native_model.PIECE", piece)
        with torch.inference_mode():
            cache = QuantizedKVCache(model)
            found[piece] = model(prompt, past_key_values=cache, use_cache=True).logits
    assert torch.equal(found[4], found[10**6])


def test_hidden_states_that_the_configuration_asks_for_are_given(monkeypatch):
    monkeypatch.setattr("tesseral.llm.native_model.PIECE", 4)
    model = make_model()
    model.config.output_hidden_states = True
    with torch.inference_mode():
        cache = QuantizedKVCache(model)
        output = model.model(token_ids(1, 12), past_key_values=cache, use_cache=True)
    assert [x.shape[1] for x in output.hidden_states] == [12] * 3
