"""Every architecture in the table: quantised, saved, loaded, and it still says the same."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from support.checkpoints import TEXT, save
from support.models import token_ids
from support.quantised import MODELS, logits_of, no_rounding, tiny
from tesseral.llm import QuantizedKVCache, load, quantize
from tesseral.llm.attention_interface import IMPLEMENTATION
from tesseral.llm.layouts import LAYOUTS, blocks_of
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.linear import QuantizedLinear

SHORT = {"samples": 4, "sequence_length": 16, "epochs": 1, "batch_size": 2}
IDS = token_ids(2, 12)

EVERY = [*MODELS, "tied"]
"""Architectures and peculiarities, as :func:`make` knows them."""


def make(name):
    """Return a model with norms that are not ones; "tied" shares its embedding with the output."""
    return tiny("qwen3", tie_word_embeddings=True) if name == "tied" else tiny(name)


@pytest.fixture(scope="module", params=EVERY)
def source(request, tmp_path_factory):
    return save(make(request.param), tmp_path_factory.mktemp("models") / request.param)


def relative(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


def test_every_architecture_of_the_table_is_tested():
    assert {tiny(name).config.model_type for name in MODELS} == set(LAYOUTS)


def test_with_roundings_off_the_saved_model_says_what_the_original_says(source, tmp_path):
    out = quantize(source, no_rounding("flatquant", **SHORT), TEXT, tmp_path / "out")
    original, model = load(source)[0], load(out)[0]
    changed = [m for m in blocks_of(model).modules() if isinstance(m, QuantizedLinear)]
    assert changed
    assert not any(isinstance(m, torch.nn.Linear) for m in blocks_of(model).modules())
    assert relative(logits_of(model, IDS), logits_of(original, IDS)) < 1e-4


def test_a_model_in_four_bits_is_saved_loaded_and_generates(source, tmp_path):
    out = quantize(source, QuantizationConfig(**SHORT), TEXT, tmp_path / "out")
    model, _ = load(out)
    again = AutoModelForCausalLM.from_pretrained(out).eval()
    assert again.config._attn_implementation == IMPLEMENTATION
    expected = logits_of(model, IDS)
    assert torch.equal(logits_of(again, IDS), expected)
    assert relative(expected, logits_of(load(source)[0], IDS)) > 1e-4
    options = {"max_new_tokens": 6, "do_sample": False}
    made = model.generate(IDS, past_key_values=QuantizedKVCache(model), **options)
    assert made.shape == (2, 18)
    # codes in the cache are those that a run without a cache sees
    assert torch.equal(made[:, -1], logits_of(model, made[:, :-1])[:, -1].argmax(-1))
    model.save_pretrained(tmp_path / "again")
    names = [json.loads((p / "config.json").read_text()) for p in (out, tmp_path / "again")]
    assert names[0] == names[1]
    assert torch.equal(
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "again"), IDS), expected
    )


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text"])
def test_norms_with_an_offset_keep_scales_in_half_precision(name, tmp_path):
    model = make(name)
    for block in blocks_of(model):
        # weights whose scale is small: what is stored is near -1, where bfloat16 is coarse
        block.mlp.gate_proj.weight.mul_(1e-3)
        block.mlp.up_proj.weight.mul_(1e-3)
    config = no_rounding("flatquant", **SHORT)
    out = quantize(save(model, tmp_path / "model"), config, TEXT, tmp_path / "out")
    half, whole = load(out, dtype=torch.bfloat16)[0], load(out)[0]
    for block, exact in zip(blocks_of(half), blocks_of(whole), strict=True):
        for norm in ("input_layernorm", "pre_feedforward_layernorm"):
            weights = (b.get_parameter(f"{norm}.weight") for b in (block, exact))
            assert torch.equal(*weights)
    assert half(IDS).logits.dtype == torch.bfloat16
