"""Every architecture in the table: quantised, saved, loaded, and it still says the same."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from support.checkpoints import TEXT, same_tensors, save
from support.models import token_ids
from support.quantised import MODELS, freeze, logits_of, no_rounding, simulate, tiny
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


def stored(path):
    return load_file(path / "model.safetensors")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_read_in_both_forms_and_written_by_their_own_names(name, tmp_path):
    model, config = make(name), no_rounding("hadamard", **SHORT | {"epochs": 0})
    # what the hub has holds each expert's weights by themselves; transformers can also keep them
    # as its modules do
    apart = save(model, tmp_path / "apart")
    fused = save(model, tmp_path / "fused", save_original_format=False)
    assert any(".experts.0." in key for key in stored(apart))
    assert any(key.endswith(".experts.gate_up_proj") for key in stored(fused))
    outs = [
        quantize(source, config, TEXT, tmp_path / f"{source.name} out") for source in (apart, fused)
    ]
    assert same_tensors(*map(stored, outs))
    held = load(outs[0])[0].state_dict()
    assert {key for key in stored(outs[0]) if ".experts." in key} == {
        key for key in held if ".experts." in key
    }


def test_a_router_reads_what_it_read_before():
    model = tiny("mixtral", torch.float64)
    parts, config = simulate(model, no_rounding("flatquant")), no_rounding("flatquant")
    assert all(p.inputs["mlp_input"].scale is not None for p in parts)
    seen = []
    for rounds in range(2):
        block = blocks_of(model)[0]
        handle = block.mlp.gate.register_forward_hook(lambda _, __, out: seen.append(out[0]))
        logits_of(model, IDS)
        handle.remove()
        if rounds == 0:
            freeze(model, config, parts)
    assert torch.allclose(seen[0], seen[1], rtol=1e-10)


def stop_at_the_second_block(step):
    if step.block == 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize("epochs", [0, 1])
def test_experts_that_no_token_chose_are_quantised_and_reported(tmp_path, epochs):
    model = make("mixtral")
    for block in blocks_of(model):
        # scores s, -s, 2s, 0, -2s: the fourth expert is never among the two best
        router = block.mlp.gate.weight
        router.copy_(torch.tensor([1.0, -1.0, 2.0, 0.0, -2.0])[:, None] * router[0])
    source, steps = save(model, tmp_path / "model"), []
    config = QuantizationConfig(**SHORT | {"epochs": epochs, "rounding": "gptq"})
    with pytest.raises(KeyboardInterrupt):
        quantize(source, config, TEXT, tmp_path / "out", report=stop_at_the_second_block)
    out = quantize(source, config, TEXT, tmp_path / "out", report=steps.append)
    assert steps[0].loss is None, "the run did not go on"
    assert {(s.block, s.rare_experts) for s in steps if s.rare_experts} == {(0, (3,)), (1, (3,))}
    assert all(t.isfinite().all() for t in stored(out).values() if t.is_floating_point())
    assert logits_of(load(out)[0], IDS).isfinite().all()


def test_experts_learn(tmp_path):
    steps, changes = [], {"samples": 16, "epochs": 12, "batch_size": 4}
    source = save(make("mixtral"), tmp_path / "model")
    config = QuantizationConfig(**SHORT | changes, kv_bits=16, activation_bits=16)
    quantize(source, config, TEXT, tmp_path / "out", report=steps.append)
    losses = [step.loss for step in steps if step.block == 0]
    # a token whose router changes its mind moves the loss more than one epoch of learning
    assert sum(losses[-4:]) < sum(losses[:4])


def test_a_model_that_sees_images_still_does(tmp_path):
    source = save(make("gemma3"), tmp_path / "model")
    out = quantize(source, no_rounding("flatquant", **SHORT), TEXT, tmp_path / "out")
    original, model = load(source)[0], load(out)[0]
    ids = token_ids(1, 12).remainder(50) + 1
    image = slice(3, 3 + original.config.mm_tokens_per_image)
    ids[:, image] = original.config.image_token_index
    types = torch.zeros_like(ids)
    types[:, image] = 1
    pixels = torch.linspace(-1, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)
    options = {"token_type_ids": types, "use_cache": False}
    with torch.no_grad():
        got, expected, other = (
            m(ids, pixel_values=p, **options).logits
            for m, p in ((model, pixels), (original, pixels), (original, -pixels))
        )
    assert relative(got, expected) < 1e-4
    assert relative(got, other) > 1e-3
