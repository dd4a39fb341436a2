"""transformers reads and writes our checkpoints by itself."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.quantizers import auto

from support.checkpoints import TEXT, same_tensors, save
from support.models import tiny_gpt_oss, tiny_llama, token_ids
from support.quantised import logits_of
from tesseral._errors import ParameterError, UnsupportedModelError
from tesseral.llm import TesseralConfig, TesseralQuantizer, load, quantize
from tesseral.llm.attention_interface import IMPLEMENTATION
from tesseral.llm.layouts import blocks_of, check_architecture
from tesseral.llm.loading import quiet
from tesseral.llm.quantizer import install, mark_quantized
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.linear import QuantizedLinear

CONFIG = QuantizationConfig(epochs=0, samples=2, sequence_length=16, weight_bits=3, key_bits=8)


@pytest.fixture(scope="module")
def quantised(original, tmp_path_factory):
    return quantize(original, CONFIG, TEXT, tmp_path_factory.mktemp("quantised") / "out")


def test_auto_classes_read_what_load_reads(quantised):
    model, _ = load(quantised)
    auto = AutoModelForCausalLM.from_pretrained(quantised)
    assert auto.config._attn_implementation == IMPLEMENTATION
    assert same_tensors(auto.state_dict(), model.state_dict())
    assert torch.equal(logits_of(auto.eval(), token_ids(2, 9)), logits_of(model, token_ids(2, 9)))


def test_a_quantised_model_can_be_saved_again(quantised, tmp_path):
    model, tokenizer = load(quantised)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again, _ = load(tmp_path / "again")
    assert same_tensors(again.state_dict(), model.state_dict())
    described = (
        json.loads((p / "config.json").read_text()) for p in (quantised, tmp_path / "again")
    )
    assert next(described) == next(described)


def test_the_configuration_can_be_read_from_the_checkpoint(quantised):
    described = json.loads((quantised / "config.json").read_text())["quantization_config"]
    assert described.pop("quant_method") == "tesseral"
    assert QuantizationConfig.from_dict(described) == CONFIG
    assert load(quantised)[0].config.quantization_config.settings == CONFIG


def test_the_configuration_survives_its_own_dictionary():
    description = TesseralConfig(**CONFIG.to_dict())
    again = TesseralConfig.from_dict(description.to_dict())
    assert again.settings == CONFIG
    assert again.to_dict() == description.to_dict()


def test_unknown_keys_are_refused():
    with pytest.raises(ParameterError, match="unknown key 'epoch'"):
        TesseralConfig(epoch=128)


def test_a_quantised_model_is_marked_and_cannot_be_trained():
    model = tiny_llama()
    install(model, CONFIG)
    mark_quantized(model, CONFIG)
    assert model.is_quantized
    assert isinstance(model.hf_quantizer, TesseralQuantizer)
    assert model.hf_quantizer.is_serializable()
    assert not model.hf_quantizer.is_trainable
    assert not model.hf_quantizer.quantization_config.settings.learns


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_transformers_alone_refuses_rather_than_fill_in_random_weights(
    original, tmp_path, monkeypatch, bits
):
    config = QuantizationConfig(weight_bits=bits, epochs=0, samples=1, sequence_length=16)
    out = quantize(original, config, TEXT, tmp_path / "out")
    for mapping in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(mapping, "tesseral")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"), quiet():
        AutoModelForCausalLM.from_pretrained(out)


def test_every_linear_layer_of_every_block_is_replaced():
    model = tiny_llama()
    install(model, CONFIG)
    for block in blocks_of(model):
        kinds = {type(module) for module in block.modules()}
        assert QuantizedLinear in kinds
        assert torch.nn.Linear not in kinds
    assert isinstance(model.lm_head, torch.nn.Linear)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_scales_and_transforms_keep_their_own_type(original, tmp_path, dtype):
    widths = {"weight_bits": 8, "activation_bits": 8, "kv_bits": 8}
    config = QuantizationConfig(epochs=0, samples=2, sequence_length=16, **widths)
    out = quantize(original, config, TEXT, tmp_path / "out")
    model, _ = load(out, dtype=dtype)
    assert model.dtype == dtype
    codec = blocks_of(model)[0].self_attn.kv_codec
    site = blocks_of(model)[0].mlp.mlp_input
    kept = (codec.key_clip, codec.key_transform.factor0, site.transform.factor0, site.clip)
    assert {t.dtype for t in kept} == {torch.float32}
    half, whole, unquantised = (
        logits_of(m, token_ids(2, 9)) for m in (model, load(out)[0], load(original)[0])
    )
    assert half.dtype == dtype
    # what half precision loses is less than what 8-bit codes lost before
    assert (half.float() - whole).abs().mean() < (whole - unquantised).abs().mean()


def test_an_architecture_without_layout_is_named(tmp_path):
    save(tiny_gpt_oss(), tmp_path / "model")
    with pytest.raises(
        UnsupportedModelError, match="'gpt_oss' is not supported; supported are llama, mistral, qw"
    ):
        quantize(tmp_path / "model", CONFIG, TEXT, tmp_path / "out")
    with pytest.raises(UnsupportedModelError, match="'gpt_oss' is not supported"):
        check_architecture("gpt_oss")


def test_a_model_without_blocks_is_named():
    with pytest.raises(
        UnsupportedModelError,
        match=r"Linear has no decoder blocks under model\.layers or model\.language_model\.layers",
    ):
        blocks_of(torch.nn.Linear(2, 2))
