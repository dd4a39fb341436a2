"""Flatness is that of what linear layers read, before and after transforms."""

import numpy as np
import pytest
import torch

from support.checkpoints import TEXT, tokenizer
from support.models import tiny_bert, tiny_llama
from support.quantised import freeze, no_rounding, simulate, tiny
from tesseral._errors import DataError, UnsupportedModelError
from tesseral.llm.block_error import block_errors
from tesseral.llm.flatness import flatness
from tesseral.llm.quantizer import mark_quantized
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.placement import INPUT_SITES

SITES = [site.name for site in INPUT_SITES]
READERS = {
    "attention_input": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention_output": ["self_attn.o_proj"],
    "mlp_input": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp_hidden": ["mlp.down_proj"],
}


def quantised(config, name="llama"):
    model = tiny(name)
    freeze(model, config, simulate(model, config))
    mark_quantized(model, config)
    return model


@torch.no_grad()
def inputs_of(model, length, count):
    """Return what every site of every block reads, in float64, (tokens, width)."""
    seen, handles = {}, []
    for index, block in enumerate(model.model.layers):
        for site, names in READERS.items():
            handles.append(
                block.get_submodule(names[0]).register_forward_pre_hook(
                    lambda _, xs, key=(index, site): seen.update({key: xs[0]})
                )
            )
    tokens = torch.tensor(tokenizer()(TEXT).input_ids)[: length * count].reshape(count, length)
    model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return {key: x.flatten(0, -2).double().numpy() for key, x in seen.items()}


def rms(x, axis=0):
    magnitudes = np.sqrt((x**2).mean(axis))
    return magnitudes / np.sqrt((magnitudes**2).mean())


def rounding_error(x, bits):
    # the side of a row that reaches farther has one code more
    sides = np.stack([-x.min(-1, keepdims=True), x.max(-1, keepdims=True)])
    scale = np.maximum(sides.max(0) / 2 ** (bits - 1), sides.min(0) / (2 ** (bits - 1) - 1))
    return ((np.round(x / scale) * scale - x) ** 2).sum() / (x**2).sum()


@pytest.mark.parametrize("bits", [3, 4])
def test_the_original_is_measured_as_numpy_does(bits):
    model = tiny("llama")
    found = flatness(model, tokenizer(), TEXT, sequence_length=20, max_sequences=3, bits=bits)
    expected = inputs_of(model, 20, 3)
    assert [(f.block, f.site) for f in found] == [(b, s) for b in (0, 1) for s in SITES]
    for f in found:
        x = expected[f.block, f.site]
        block = model.model.layers[f.block]
        weights = [block.get_submodule(name).weight.double() for name in READERS[f.site]]
        np.testing.assert_allclose(f.activation, rms(x), rtol=1e-5)
        np.testing.assert_allclose(f.weight, rms(torch.cat(weights).numpy()), rtol=1e-6)
        assert f.rounding_error == pytest.approx(rounding_error(x, bits), rel=1e-4)


def test_without_transform_and_rounding_nothing_changes():
    options = {"sequence_length": 20, "max_sequences": 2}
    before = flatness(tiny("llama"), tokenizer(), TEXT, **options)
    after = flatness(quantised(no_rounding("none")), tokenizer(), TEXT, **options)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b.activation, a.activation, rtol=1e-4)
        np.testing.assert_allclose(b.weight, a.weight, rtol=1e-5)
        assert b.rounding_error == pytest.approx(a.rounding_error, rel=1e-3)


def test_inputs_of_a_quantised_model_are_taken_after_the_transform_and_before_rounding():
    # the transforms of this model are known; its rounding is off, so inputs can be recomputed
    model = quantised(no_rounding("hadamard"))
    found = flatness(model, tokenizer(), TEXT, sequence_length=20, max_sequences=2)
    for f in found:
        block = model.model.layers[f.block]
        parent = block.get_submodule(READERS[f.site][0].rpartition(".")[0])
        transform = parent.get_submodule(f.site).transform
        x = inputs_of(model, 20, 2)[f.block, f.site]
        transformed = transform(torch.from_numpy(x).float()).double().numpy()
        np.testing.assert_allclose(f.activation, rms(transformed), rtol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "phi3"])
def test_any_layout_is_measured_and_left_as_it_was(name):
    before, options = tiny(name), {"sequence_length": 20, "max_sequences": 2}
    names = list(before.state_dict())
    original = flatness(before, tokenizer(), TEXT, **options)
    assert list(before.state_dict()) == names
    after = flatness(quantised(no_rounding("none"), name), tokenizer(), TEXT, **options)
    for a, b in zip(original, after, strict=True):
        np.testing.assert_allclose(b.activation, a.activation, rtol=1e-4)
        np.testing.assert_allclose(b.weight, a.weight, rtol=1e-5)


def test_a_hadamard_transform_flattens_an_outlier():
    config, model = no_rounding("hadamard"), tiny("llama")
    model.model.layers[0].input_layernorm.weight.data[3] = 100
    before = flatness(model, tokenizer(), TEXT, sequence_length=20)[0]
    freeze(model, config, simulate(model, config))
    mark_quantized(model, config)
    after = flatness(model, tokenizer(), TEXT, sequence_length=20)[0]
    assert before.activation.argmax() == 3
    assert after.activation.max() < before.activation.max() / 2
    assert after.rounding_error < before.rounding_error


def test_nothing_stays_attached():
    for model in (tiny("llama"), quantised(QuantizationConfig())):
        flatness(model, tokenizer(), TEXT, sequence_length=20, max_sequences=1)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_blocks_are_compared_on_the_originals_inputs():
    original, model = tiny("llama"), quantised(QuantizationConfig())
    errors = block_errors(model, original, tokenizer(), TEXT, sequence_length=20, max_sequences=2)
    # the first block broken: the second still gets what enters the original's second
    for parameter in model.model.layers[0].buffers():
        parameter.zero_()
    broken = block_errors(model, original, tokenizer(), TEXT, sequence_length=20, max_sequences=2)
    assert broken[0] > errors[0] > 0
    assert broken[1] == errors[1] > 0


def test_the_error_of_a_block_is_what_numpy_says():
    original, model = tiny("llama"), quantised(QuantizationConfig())
    (error, _) = block_errors(
        model, original, tokenizer(), TEXT, sequence_length=20, max_sequences=3
    )
    tokens = torch.tensor(tokenizer()(TEXT).input_ids)[:60].reshape(3, 20)
    with torch.no_grad():
        right, got = (
            m(tokens, output_hidden_states=True, use_cache=False).hidden_states[1].double()
            for m in (original, model)
        )
    assert error == pytest.approx(float((got - right).square().sum() / right.square().sum()))


def test_a_block_that_rounds_nothing_has_no_error():
    original, model = tiny("llama"), quantised(no_rounding("flatquant"))
    errors = block_errors(model, original, tokenizer(), TEXT, sequence_length=20)
    assert max(errors) < 1e-8


def test_comparing_leaves_nothing_attached():
    original, model = tiny("llama"), quantised(QuantizationConfig())
    block_errors(model, original, tokenizer(), TEXT, sequence_length=20, max_sequences=1)
    assert not any(block._forward_hooks for block in original.model.layers)


@pytest.mark.parametrize("measure", [flatness, lambda m, *given: block_errors(m, m, *given)])
def test_a_text_shorter_than_a_sequence_is_refused(measure):
    with pytest.raises(DataError, match="has 19 tokens, fewer than one sequence of 128"):
        measure(tiny_llama("tesseral"), tokenizer(), TEXT[:19])


def test_an_unknown_architecture_is_refused():
    with pytest.raises(UnsupportedModelError, match="'bert' is not supported"):
        flatness(tiny_bert(), tokenizer(), TEXT)
