"""A trained model says the same packed, through its cache, as with simulated rounding.

Sums in another order put a value now and then on the other side of an edge of rounding, and the
layers after it carry that on: then single logits differ, and means agree. So where logits are
compared, both sides sum in one order.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.nn.functional import rms_norm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from support.models import token_ids
from support.quantised import freeze, installed, logits_of, simulate, tiny
from tesseral.datasets import load_books_excerpt, load_embedded_lm
from tesseral.llm import load, perplexity, quantize, simulated
from tesseral.llm.evaluate import new_cache
from tesseral.llm.quantizer import mark_quantized
from tesseral.llm.text import consecutive, tokenize
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.kvcodec import KVCodec
from tesseral.quantization.linear import QuantizedLinear

TEXT = load_books_excerpt("test")[:6000]


@pytest.fixture
def trained():
    model, reader = load(load_embedded_lm(), dtype=torch.float64)
    return model.requires_grad_(False), reader, consecutive(tokenize(model, reader, TEXT), 32)


CONFIGS = {
    "weights": {"weight_bits": 3, "activation_bits": 16, "kv_bits": 16},
    "groups": {"group_size": 32, "activation_bits": 16, "kv_bits": 16},
    "cache": {"weight_bits": 16, "activation_bits": 16},
    "all": {},
    "all, no transform": {"transform": "none"},
    "all at 8": {"weight_bits": 8, "activation_bits": 8, "kv_bits": 8},
}


@pytest.fixture
def exact_norms(monkeypatch):
    """Let transformers' norms, which compute in float32, keep to the type they are given."""

    def forward(norm, hidden):
        weight = norm.weight.to(hidden.dtype)
        return rms_norm(hidden, weight.shape, weight, norm.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_calibrated_is_what_is_stored(trained, exact_norms, name):
    model, reader, ids = trained
    config = QuantizationConfig(**CONFIGS[name])
    parts = simulate(model, config)
    with installed(parts):
        logits, expected = logits_of(model, ids), perplexity(model, reader, TEXT, 32)
    freeze(model, config, parts)
    mark_quantized(model, config)
    errors = (logits_of(model, ids) - logits).abs().amax((1, 2)) / logits.abs().amax((1, 2))
    assert errors.max() < 1e-9
    assert perplexity(model, reader, TEXT, 32) == pytest.approx(expected, rel=1e-9)


STORED = {
    "W4A4KV4": {},
    "W8A8KV8": {"weight_bits": 8, "activation_bits": 8, "kv_bits": 8},
    "W3A5K2V6": {"weight_bits": 3, "activation_bits": 5, "key_bits": 2, "value_bits": 6},
    "W4A16": {"activation_bits": 16, "kv_bits": 16},
    "KV4": {"weight_bits": 16, "activation_bits": 16},
    "a wide layer": {"layers": {"down_proj": {"weight_bits": 8, "activation_bits": 16}}},
    "groups": {"group_size": 32},
}


def stored(path, **changes):
    config = {"transform": "hadamard", "rounding": "nearest", "samples": 1, "sequence_length": 16}
    return load(quantize(load_embedded_lm(), QuantizationConfig(**config | changes), TEXT, path))


@torch.inference_mode()
def logits_through_the_cache(model, ids):
    cache = new_cache(model)
    return model(ids, past_key_values=cache, use_cache=cache is not None).logits


@pytest.mark.parametrize("name", STORED)
def test_in_float32_a_packed_model_says_what_it_says_in_floating_numbers(
    name, tmp_path, monkeypatch
):
    monkeypatch.setenv("TESSERAL_ATTENTION_BACKEND", "reference")  # sums in float64 on both sides
    if name == "groups":
        monkeypatch.setenv(
            "TESSERAL_LINEAR_BACKEND", "portable"
        )  # kernels add groups their own way
    model, reader = stored(tmp_path / "out", **STORED[name])
    ids = consecutive(tokenize(model, reader, TEXT), 128)
    logits, expected = logits_through_the_cache(model, ids), perplexity(model, reader, TEXT, 128)
    with simulated(model):
        assert new_cache(model) is None
        errors = (logits_through_the_cache(model, ids) - logits).abs().amax((1, 2))
        assert perplexity(model, reader, TEXT, 128) == pytest.approx(expected, rel=1e-5)
    assert (errors < 1e-5 * logits.abs().amax((1, 2))).all()


@contextmanager
def unpacked_only(monkeypatch):
    """Fail where a packed weight is multiplied or a packed key attended to."""

    def fail(*_, **__):
        raise AssertionError("something packed was used")

    with monkeypatch.context() as patch:
        patch.setattr("tesseral.quantization.kernels.cpu.CpuLinear.linears", fail)
        patch.setattr("tesseral.quantization.kernels.cpu.CpuLinear.linears_of_rows", fail)
        patch.setattr("tesseral.quantization.kernels.portable.PortableLinear.linears", fail)
        patch.setattr("tesseral.llm.cache.QuantizedKVCache.__init__", fail)
        yield


@pytest.mark.parametrize("name", ["biased", "mixtral", "gemma2"])
def test_nothing_packed_is_used_and_the_model_is_left_as_it_was(name, monkeypatch):
    config, ids = QuantizationConfig(), token_ids(2, 9)
    model = tiny(name)
    freeze(model, config, simulate(model, config))
    mark_quantized(model, config)
    before = logits_of(model, ids)
    with unpacked_only(monkeypatch), simulated(model) as same:
        assert same is model
        got = logits_of(model, ids)
    assert (got - before).abs().max() < 1e-4 * before.abs().max()
    with pytest.raises(RuntimeError, match="on purpose"), simulated(model):
        raise RuntimeError("on purpose")
    assert model.is_quantized
    assert torch.equal(logits_of(model, ids), before)
    parts = [m for m in model.modules() if isinstance(m, QuantizedLinear | KVCodec)]
    assert parts
    assert not any({"forward", "encode"} & vars(part).keys() for part in parts)
