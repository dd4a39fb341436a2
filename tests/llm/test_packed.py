"""A trained model says the same packed, through its cache, as with simulated rounding.

Sums in another order put a value now and then on the other side of an edge of rounding, and the
layers after it carry that on: in float32 only means agree. In float64 that takes a value on the
edge itself: a sum of codes that is zero, where the edge between two codes of a cache is zero, too.
"""

import pytest
import torch
from torch.nn.functional import rms_norm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from support.quantised import freeze, installed, logits_of, simulate
from tesseral.datasets import load_books_excerpt, load_embedded_lm
from tesseral.llm import load, perplexity
from tesseral.llm.quantizer import mark_quantized
from tesseral.llm.text import consecutive, tokenize
from tesseral.quantization import QuantizationConfig

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
}


@pytest.fixture
def exact_norms(monkeypatch):
    """Let transformers' norms, which compute in float32, keep to the type they are given."""

    def forward(norm, hidden):
        weight = norm.weight.to(hidden.dtype)
        return rms_norm(hidden, weight.shape, weight, norm.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_perplexity_are_the_simulated_ones(trained, exact_norms, name):
    model, reader, ids = trained
    config = QuantizationConfig(**CONFIGS[name])
    simulated = simulate(model, config)
    with installed(simulated):
        logits, expected = logits_of(model, ids), perplexity(model, reader, TEXT, 32)
    freeze(model, config, simulated)
    mark_quantized(model, config)
    errors = (logits_of(model, ids) - logits).abs().amax((1, 2)) / logits.abs().amax((1, 2))
    assert (errors < 1e-9).double().mean() > (0.8 if name.startswith("all") else 0.999)
    assert perplexity(model, reader, TEXT, 32) == pytest.approx(expected, rel=1e-3)
