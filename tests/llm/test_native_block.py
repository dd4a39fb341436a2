"""A block that takes a token in two calls gives what it gives module by module."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tesseral._errors import DtypeError, ShapeError
from tesseral.core.decoder_block import DecoderBlock
from tesseral.llm.cache import QuantizedKVCache
from tesseral.llm.native_modules import use_native_modules
from tesseral.llm.quantizer import install, mark_quantized
from tesseral.quantization import QuantizationConfig

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
}
MODELS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def make_model(kind="llama", *, dtype=torch.bfloat16, **changes):
    """Return a quantised model of random codes."""
    torch.manual_seed(0)
    config_class, model_class = MODELS[kind]
    model = model_class._from_config(config_class(**SHAPE | changes), dtype=dtype)
    config = QuantizationConfig(transform="hadamard", rounding="nearest")
    install(model, config)
    for name, array in (*model.named_buffers(), *model.named_parameters()):
        if name.endswith("weight_codes"):
            array.random_(0, 256)
        elif name.endswith("weight_scale"):
            array.fill_(0.02)
        elif "factor" in name:
            array.copy_(torch.linalg.qr(torch.randn(array.shape))[0])
        elif name.endswith("norm.weight"):
            array.data.uniform_(0.5, 1.5)
        elif name.endswith("proj.bias"):
            array.data.normal_()
    mark_quantized(model, config)
    model.set_attn_implementation("tesseral")
    use_native_modules(model)
    return model.eval()


def kernels_of(model):
    parts = [layer.__dict__.get("_parts") for layer in model.model.layers]
    return [None if p is None else p._kernel for p in parts]


@torch.inference_mode()
def logits(model, prompt, tokens, **options):
    cache, found = QuantizedKVCache(model), []
    model(prompt, past_key_values=cache, use_cache=True, **options)
    mask = options.get("attention_mask")
    for position in range(tokens.shape[1]):
        if mask is not None:
            mask = options["attention_mask"] = torch.nn.functional.pad(mask, (0, 1), value=1)
        token = tokens[:, position : position + 1]
        output = model(token, past_key_values=cache, use_cache=True, **options)
        found.append(output.logits[:, -1])
    return torch.stack(found)


def given(batch):
    generator = torch.Generator().manual_seed(batch)
    drawn = torch.randint(0, 64, (batch, 13), generator=generator)
    return drawn[:, :9], drawn[:, 9:]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_in_bfloat16_the_logits_are_the_same_to_the_bit(kind, batch):
    model = make_model(kind)
    found = logits(model, *given(batch))
    assert all(kernels_of(model))
    for layer in model.model.layers:  # who watches a module sees it called
        layer.mlp.register_forward_hook(lambda *_: None)
    assert torch.equal(found, logits(model, *given(batch)))


def test_in_float32_they_differ_by_roundings():
    model = make_model(dtype=torch.float32)
    found = logits(model, *given(2))
    assert all(kernels_of(model))
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: None)
    expected = logits(model, *given(2))
    assert (found - expected).abs().median() < 1e-3 * expected.std()


def test_padding_is_not_seen():
    model, (prompt, tokens) = make_model(), given(2)
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    found = logits(model, prompt, tokens, attention_mask=mask)
    assert all(kernels_of(model))
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: None)
    assert torch.equal(found, logits(model, prompt, tokens, attention_mask=mask))


def test_moved_weights_are_noticed_and_copies_are_whole():
    model = make_model()
    found = logits(model, *given(1))
    twin = copy.deepcopy(model)
    assert kernels_of(twin) == [None, None]
    assert torch.equal(logits(twin, *given(1)), found)
    for layer in model.model.layers:
        down = layer.mlp.down_proj
        down.weight_scale = 2 * down.weight_scale
    assert not torch.equal(logits(model, *given(1)), found)


@pytest.mark.parametrize("changes", [{"hidden_act": "gelu"}, {"head_dim": 24}], ids=str)
def test_other_blocks_go_their_own_way(changes):
    model = make_model(**changes)
    assert logits(model, *given(1)).isfinite().all()
    assert kernels_of(model) == [None, None]


def test_parts_that_do_not_fit_are_named():
    model = make_model()
    logits(model, *given(1))
    norms, layers, factor, key, value = kernels_of(model)[0]._kept
    with pytest.raises(DtypeError, match="float16"):
        DecoderBlock("float16", 32, norms, layers, factor, key, value)
    with pytest.raises(ShapeError, match="do not make a block"):
        DecoderBlock("bfloat16", 32, norms, layers[::-1], factor, key, value)
    block, x = kernels_of(model)[0], torch.zeros(1, 1, 96, dtype=torch.bfloat16)
    with pytest.raises(ShapeError, match="attended must be"):
        block.after(x, x, x.clone())
    with pytest.raises(DtypeError, match="out must be bfloat16"):
        block.after(torch.zeros(1, 4, 1, 32, dtype=torch.bfloat16), x, x.float())


def test_long_prompts_are_the_same_in_pieces(monkeypatch):
    model, (prompt, tokens) = make_model(), given(3)
    whole = logits(model, prompt, tokens)
    monkeypatch.setattr("tesseral.llm.native_modules._TOKENS", 5)
    assert torch.equal(logits(model, prompt, tokens), whole)
