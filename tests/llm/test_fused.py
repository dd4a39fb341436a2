"""Blocks in few launches give what the model's own modules give, token by token."""

import contextlib

import pytest
import torch

from support.kernels import DEVICE, kernels, needs_kernels
from support.quantised import tiny
from tesseral._errors import BackendError, ShapeError
from tesseral.llm.cache import QuantizedKVCache
from tesseral.llm.fused import DecodeGraph, FusedDecoder
from tesseral.llm.fused.cache import check_room
from tesseral.llm.fused.generate import continue_greedily
from tesseral.llm.fused.support import supports
from tesseral.llm.layouts import blocks_of, open_block
from tesseral.quantization.block import replace_with_quantized
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.linear import QuantizedInput, QuantizedLinear
from tesseral.quantization.transforms.frozen import FrozenKronecker

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.fixture(scope="module")
def _kernels():
    with kernels():
        yield


def quantised(name="llama", config=None, **changes):
    """Return a model of random codes and of transforms that are no identities."""
    model = tiny(name, **SIZES | changes)
    config = QuantizationConfig() if config is None else config
    generator = torch.Generator().manual_seed(0)
    for index, block in enumerate(blocks_of(model)):
        layout, shape = open_block(block, model.config.model_type)
        replace_with_quantized(block, layout, shape, config.in_block(index))
    for module in model.modules():
        if isinstance(module, QuantizedLinear) and "weight_codes" in module._buffers:
            shape = module.weight_codes.shape
            drawn = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            module.weight_codes.copy_(drawn)
            spread = torch.rand(module.weight_scale.shape, generator=generator)
            module.weight_scale.copy_(0.05 * spread + 0.01)
        if isinstance(module, FrozenKronecker):
            for factor in module.buffers():
                factor.copy_(torch.linalg.qr(torch.randn(factor.shape, generator=generator))[0])
    model.is_quantized = True
    return model.eval().to(DEVICE)


def prompts(batch=2, length=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 60, (batch, length), generator=generator).to(DEVICE)


@contextlib.contextmanager
def off_the_edges(model):
    """See to it that no code inside would be another one had float32 rounded otherwise.

    One code of 8 bits moves logits by 0.03.
    """
    distances = []

    def look(source, given):
        found = source.quantize(*given)
        exact = source.transform(*given) / found.scale
        distances.append((exact - exact.floor() - 0.5).abs().min() / 2 ** (source.bits - 1))

    for module in model.modules():
        if isinstance(module, QuantizedInput):
            module.register_forward_pre_hook(look)
    try:
        yield
    finally:
        assert min(distances) > 1e-6, "a code lies on an edge of rounding: take another seed"


@needs_kernels
@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "bits", "seed"),
    [("llama", {}, 1), ("qwen2", {"kv_bits": 8, "activation_bits": 8}, 325)],
    ids=str,
)
def test_prompts_and_tokens_give_the_logits_of_the_modules(name, bits, seed):
    model = quantised(name, QuantizationConfig(**bits))
    decoder, ids = FusedDecoder(model), prompts(length=3, seed=seed)
    cache, theirs = decoder.new_cache(2, 8), QuantizedKVCache(model)
    with off_the_edges(model):
        expected = model(ids, past_key_values=theirs).logits[:, -1]
        found = decoder.prefill(ids, cache)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        for _ in range(2):
            token = expected.argmax(-1, keepdim=True)
            expected = model(token, past_key_values=theirs).logits[:, -1]
            found = decoder.step(token, cache)
            cache.place.add_(1)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@needs_kernels
@pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")
@torch.inference_mode()
def test_a_graph_generates_what_the_modules_generate():
    model = quantised()
    decoder, ids = FusedDecoder(model), prompts()
    cache = decoder.new_cache(2, 16)
    graph = DecodeGraph(decoder, cache)
    for _ in range(2):  # it starts again wherever it is
        graph.start(ids, decoder.prefill(ids, cache))
        graph.advance(8)
        expected = model.generate(
            ids, past_key_values=QuantizedKVCache(model), max_new_tokens=9, do_sample=False
        )
        assert torch.equal(graph.history[:, :16], expected)


@needs_kernels
@pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")
def test_a_text_ends_where_a_token_ends_it():
    model, ids = quantised(), prompts(1)
    whole = continue_greedily(model, ids, 40, [])
    assert whole.shape == (1, 47)
    end = whole[0, 30].item()
    first = whole[0, 7:].tolist().index(end) + 7
    assert torch.equal(continue_greedily(model, ids, 40, [end]), whole[:, : first + 1])
    assert torch.equal(continue_greedily(model, ids, 1, []), whole[:, :8])


@needs_kernels
def test_prompts_that_do_not_fit_are_refused():
    decoder = FusedDecoder(quantised())
    cache = decoder.new_cache(2, 6)
    for ids in (prompts(), prompts(1, 3), prompts()[:, :0]):
        with pytest.raises(ShapeError, match="do not fit a cache for 2 sequences of up to 6"):
            decoder.prefill(ids, cache)
    assert cache.nbytes == 2 * 2 * 2 * 2 * 6 * (16 // 2 + 4)


@needs_kernels
@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("qwen3", {}, "runs llama, mistral, qwen2, not qwen3"),
        ("mistral", {}, "to a window"),
        ("llama", {"weight_bits": 8}, "q_proj reads 4-bit weights, got 8"),
        ("llama", {"weight_bits": 16}, "q_proj has no packed weight"),
        ("llama", {"activation_bits": 16}, "rows that are not quantised"),
        ("llama", {"kv_bits": 2}, "got 2"),
        ("llama", {"group_size": 16}, "one scale a row, got 4"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_said(name, config, reason):
    model = quantised(name, QuantizationConfig(**config))
    assert reason in supports(model).reason
    with pytest.raises(BackendError, match="FusedDecoder: cannot run"):
        FusedDecoder(model)


def test_a_cache_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (10**9, 10**10))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 5 * 10**8)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda _: 10**8)
    check_room(10**9, "cuda", 4, 9)
    with pytest.raises(MemoryError, match=r"4 sequences of 9 tokens needs 2\.00 GB, and 1\.40 GB"):
        check_room(2 * 10**9, "cuda", 4, 9)


@needs_kernels
def test_a_model_that_is_not_quantised_is_refused():
    assert supports(tiny("llama").to(DEVICE)).reason == "block 0: is not quantised"
