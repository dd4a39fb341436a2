"""A trained model says the same packed, through its cache, as with simulated rounding.

Where inputs of layers are rounded too, sums in another order put a value now and then on the
other side of an edge, and the layers after it carry that on: then only means agree.
"""

import pytest
import torch

from support.quantised import freeze, installed, logits_of, simulate
from tesseral.datasets import load_books_excerpt, load_embedded_lm
from tesseral.llm import load, perplexity
from tesseral.llm.quantizer import mark_quantized
from tesseral.llm.text import tokenize
from tesseral.quantization import QuantizationConfig

TEXT = load_books_excerpt("test")[:6000]


@pytest.fixture
def trained():
    # in float32, layers would be fused with other roundings than those of freezing
    model, reader = load(load_embedded_lm(), dtype=torch.float64)
    return model.requires_grad_(False), reader, tokenize(model, reader, TEXT)[None, :256]


ALONE = {
    "weights": {"transform": "hadamard", "activation_bits": 16, "kv_bits": 16},
    "three bits": {"transform": "hadamard", "weight_bits": 3, "activation_bits": 16, "kv_bits": 16},
    "cache": {"transform": "none", "weight_bits": 16, "activation_bits": 16},
}
"""What is stored in few bits, one at a time."""


@pytest.mark.parametrize("name", ALONE)
def test_logits_and_perplexity_are_the_simulated_ones(trained, name):
    model, reader, ids = trained
    config = QuantizationConfig(**ALONE[name])
    simulated = simulate(model, config)
    with installed(simulated):
        logits, expected = logits_of(model, ids), perplexity(model, reader, TEXT, 256)
    freeze(model, config, simulated)
    mark_quantized(model, config)
    # the stored scale is float32: a weight or two within its rounding of an edge get another code
    assert (logits_of(model, ids) - logits).abs().max() < 1e-2 * logits.abs().max()
    assert perplexity(model, reader, TEXT, 256) == pytest.approx(expected, rel=1e-3)
