"""The output embedding, too, is stored in few bits where that is asked for."""

import json

import pytest
import torch
from safetensors.torch import load_file

from support.checkpoints import TEXT, save
from support.models import token_ids
from support.quantised import MODELS, logits_of
from tesseral.llm import generate, load, quantize
from tesseral.llm.head import INPUT
from tesseral.llm.layouts import blocks_of
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.linear import QuantizedLinear

IDS = token_ids(2, 9)


def settings(**changes):
    known = {"weight_bits": 16, "activation_bits": 16, "kv_bits": 16, "transform": "hadamard"}
    return QuantizationConfig(samples=4, sequence_length=16, **known | changes)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "odd"])
def test_a_model_with_a_head_of_few_bits_is_saved_and_loaded(name, changes, tmp_path):
    source = save(MODELS[name]("tesseral", **changes), tmp_path / "model")
    out = quantize(source, settings(head_bits=8), TEXT, tmp_path / "out")
    model, reader = load(out)
    head = model.get_output_embeddings()
    assert isinstance(head, QuantizedLinear)
    assert head.weight_codes.dtype == torch.uint8
    expected = logits_of(load(source)[0], IDS)
    error = (logits_of(model, IDS) - expected).norm() / expected.norm()
    assert 0 < error < 0.02
    assert generate(model, reader, "It was", max_new_tokens=3)


def test_the_input_embedding_keeps_its_bits_and_is_tied_no_more(tmp_path):
    source = save(MODELS["llama"]("tesseral", tie_word_embeddings=True), tmp_path / "model")
    out = quantize(source, settings(head_bits=4), TEXT, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (source, out))
    name = "model.embed_tokens.weight"
    assert torch.equal(before[name], after[name])
    assert after["lm_head.weight"].numel() == 0
    rows, width = before[name].shape
    assert after["lm_head.weight_codes"].shape == (rows, width // 2)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("transform", ["hadamard", "none", "flatquant"])
def test_its_input_is_transformed_and_rounded_like_those_of_other_layers(transform, tmp_path):
    source = save(MODELS["llama"]("tesseral"), tmp_path / "model")
    config = settings(head_bits=4, activation_bits=8, transform=transform, epochs=0)
    model, _ = load(quantize(source, config, TEXT, tmp_path / "out"))
    part = model.get_submodule(INPUT)
    assert part.bits == 8
    assert [f is None for f in part.transform.factors] == [transform == "none"] * 2
    assert len(blocks_of(model)) == 2


def test_by_gptq_its_outputs_are_closer_than_by_the_nearest(tmp_path):
    source, errors = save(MODELS["llama"]("tesseral"), tmp_path / "model"), {}
    ids = load(source)[1](TEXT[:256], return_tensors="pt").input_ids
    expected = logits_of(load(source)[0], ids)
    for rounding in ("nearest", "gptq"):
        config = settings(head_bits=3, rounding=rounding)
        model, _ = load(quantize(source, config, TEXT, tmp_path / rounding))
        errors[rounding] = float((logits_of(model, ids) - expected).norm())
    assert errors["gptq"] < 0.9 * errors["nearest"]
