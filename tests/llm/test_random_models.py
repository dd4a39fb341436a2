"""Models of every architecture with sizes and settings drawn at random go all the way."""

import random

import pytest
import torch

from support.checkpoints import TEXT, save
from support.models import token_ids
from support.quantised import MODELS, logits_of, tiny
from tesseral.llm import QuantizedKVCache, load, quantize
from tesseral.quantization import QuantizationConfig

SEEDS = range(1)
"""Draws for each architecture; more take longer and may find more."""

IDS = token_ids(2, 12)
OFF = {"weight_bits": 16, "activation_bits": 16, "kv_bits": 16}


def sizes(name, draw):
    """Return sizes of a model, any number of channels and heads that its architecture allows."""
    kv_heads, shared = draw.randint(1, 3), draw.randint(1, 3)
    heads = kv_heads * shared
    found = {
        "hidden_size": heads * draw.randint(2, 9),
        "intermediate_size": draw.randint(5, 61),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": draw.randint(1, 2),
        "head_dim": 2 * draw.randint(2, 9),
        "tie_word_embeddings": draw.random() < 0.5,
    }
    if name == "qwen3_moe":
        found |= {"moe_intermediate_size": draw.randint(5, 30), "mlp_only_layers": []}
    if name in ("llama", "qwen3"):
        found["attention_bias"] = draw.random() < 0.5
    return found


def settings(draw):
    """Return a configuration, anything that may be asked of it."""
    bits = (2, 3, 4, 5, 6, 7, 8, 16)
    return {
        "weight_bits": draw.choice(bits),
        "activation_bits": draw.choice(bits),
        "key_bits": draw.choice(bits),
        "value_bits": draw.choice(bits),
        "head_bits": draw.choice((4, 8, 16, 16)),
        "layers": draw.choice(({}, {"down_proj": {"weight_bits": 8}}, {"0": {"kv_bits": 8}})),
    } | methods(draw)


def methods(draw):
    """Return how the transforms come about."""
    return {
        "transform": draw.choice(("none", "hadamard", "flatquant", "flatquant", "flatquant")),
        "rounding": draw.choice(("nearest", "gptq")),
        "start": draw.choice(("moments", "hadamard")),
        "parametrisation": draw.choice(("cayley", "free")),
        "objective": draw.choice(("token", "mean")),
        "propagate": draw.random() < 0.5,
        "rescale_norms": draw.random() < 0.5,
        "epochs": draw.randint(0, 1),
        "batch_size": draw.randint(1, 4),
        "samples": 4,
        "sequence_length": 16,
        "seed": draw.randint(0, 1000),
    }


@pytest.fixture(scope="module", params=[(name, seed) for name in MODELS for seed in SEEDS], ids=str)
def drawn(request, tmp_path_factory):
    """A model, its directory, and the generator that drew its sizes."""
    name, seed = request.param
    draw = random.Random(f"{name} {seed}")
    own = {} if name in ("odd", "twice odd") else sizes(name, draw)
    model = tiny(name, **own)
    return model, save(model, tmp_path_factory.mktemp("models") / "model"), draw


def test_with_roundings_off_it_says_what_the_original_says(drawn, tmp_path):
    original, source, draw = drawn
    config = QuantizationConfig(**methods(draw) | OFF)
    model = load(quantize(source, config, TEXT, tmp_path / "out"))[0]
    got, expected = (logits_of(m, IDS) for m in (model, original))
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_it_is_quantised_saved_loaded_and_generates(drawn, tmp_path):
    _, source, draw = drawn
    out = quantize(source, QuantizationConfig(**settings(draw)), TEXT, tmp_path / "out")
    model = load(out)[0]
    options = {"max_new_tokens": 4, "do_sample": False}
    made = model.generate(IDS, past_key_values=QuantizedKVCache(model), **options)
    # codes in the cache are those that a run without a cache sees
    assert torch.equal(made[:, -1], logits_of(model, made[:, :-1])[:, -1].argmax(-1))
