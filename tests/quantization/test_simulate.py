"""What calibration simulates is what is stored and run."""

import pytest
import torch

from support.models import token_ids
from support.quantised import MODELS, freeze, installed, logits_of, simulate, tiny
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.kvcodec import KVCodec, encode_heads
from tesseral.quantization.linear import QuantizedInput
from tesseral.quantization.simulate import (
    Clip,
    SimulatedCodec,
    SimulatedInput,
    fake_quantize_heads,
    fake_quantize_rows,
)
from tesseral.quantization.transforms.kronecker import Kronecker

WIDTHS = range(2, 9)
IDENTITY = Kronecker((None, None), (None, None))
IDS = token_ids(2, 9)


def states(*shape, spread=1.0, seed=0):
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.2


@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_input_that_is_simulated_is_the_one_that_is_run(bits, spread):
    clip, x = torch.tensor([0.9, 0.7]), states(3, 5, 13, spread=spread)
    stored = QuantizedInput((None, None), bits=bits)
    stored.clip.copy_(clip)
    run = stored.quantize(x)
    assert run.codes.dtype == torch.int8
    assert torch.equal(run.dequantize(), fake_quantize_rows(x, clip, bits))


@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e4, 1e6])
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_keys_that_are_simulated_are_the_ones_that_are_cached(bits, spread):
    clip, x = torch.tensor([0.9, 0.7]), states(2, 3, 5, 7, spread=spread)
    stored = encode_heads(x, clip, bits)
    assert stored.scale.dtype == stored.offset.dtype == torch.float16
    assert torch.equal(stored.dequantize(torch.float32), fake_quantize_heads(x, clip, bits))


def test_widths_of_16_leave_everything_as_it_is():
    clip, x = torch.tensor([0.5, 0.5]), states(2, 3, 5, 8)
    assert fake_quantize_rows(x, clip, 16) is x
    assert fake_quantize_heads(x, clip, 16) is x
    assert encode_heads(x, clip, 16) is x
    assert QuantizedInput((None, None), bits=16).quantize(x) is x


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bits", [(4, 4, 4), (3, 8, 2), (4, 16, 16), (16, 4, 16), (16, 16, 4)])
def test_the_frozen_model_says_what_the_simulated_one_said(name, bits):
    # in float64 no code is on the edge to the next, though stored scales of weights are float32
    model = tiny(name, torch.float64, num_hidden_layers=1)
    widths = dict(zip(("weight_bits", "activation_bits", "kv_bits"), bits, strict=True))
    config = QuantizationConfig(transform="flatquant", **widths)
    original, simulated = logits_of(model, IDS), simulate(model, config)
    with installed(simulated):
        expected = logits_of(model, IDS)
    freeze(model, config, simulated)
    got = logits_of(model, IDS)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (original - expected).abs().max() > 1e-3 * expected.abs().max()


def test_a_learned_clip_opens_almost_wholly_and_a_fixed_one_wholly():
    learned, fixed = Clip(3, learned=True), Clip(learned=False)
    assert learned().shape == (3, 2)
    assert ((learned() > 0.9) & (learned() < 1)).all()
    assert fixed().tolist() == [1, 1]
    assert list(fixed.parameters()) == []


def test_the_scale_comes_before_the_transform():
    factor = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    log_scale = torch.tensor([2.0, 3.0, 5.0, 7.0]).log()
    transform = Kronecker.from_factors([None, factor])
    source = SimulatedInput(transform, log_scale, Clip(learned=False), bits=16)
    got = source.compute(torch.ones(1, 4))
    assert torch.allclose(got, torch.tensor([[2.0, 7.0, 5.0, 17.0]]))


def test_a_merged_factor_is_left_to_the_layer_before():
    transform = Kronecker.from_factors([torch.eye(2) * 3, torch.eye(2) * 5])
    source = SimulatedInput(transform, None, Clip(learned=False), bits=16, merged=True)
    assert torch.allclose(source.compute(torch.ones(1, 4)), torch.full((1, 4), 3.0))


def test_queries_and_keys_are_transformed_apart_and_their_scores_stay():
    transform = Kronecker.from_factors([states(6, 6, seed=1).double()])
    codec = SimulatedCodec(
        transform, Clip(learned=False), Clip(learned=False), key_bits=16, value_bits=16
    )
    query, key = states(1, 2, 3, 6).double(), states(1, 2, 4, 6, seed=2).double()
    encoded, value = codec.encode(key, key)
    assert not torch.allclose(encoded, key)
    assert value is key
    scores = codec.transform_query(query) @ encoded.mT
    assert torch.allclose(scores, query @ key.mT, atol=1e-10)


@pytest.mark.parametrize("bits", [(4, 4), (16, 4), (4, 16), (2, 8)], ids=str)
def test_the_stored_codec_does_what_the_simulated_one_did(bits):
    key_bits, value_bits = bits
    widths = {"key_bits": key_bits, "value_bits": value_bits}
    transform = Kronecker.from_factors([states(6, 6, seed=1)])
    simulated = SimulatedCodec(transform, Clip(learned=True), Clip(learned=True), **widths)
    stored = KVCodec(6, **widths)
    stored.load_state_dict(
        {
            "key_transform.factor0": transform.factors[0],
            "query_transform.factor0": transform.inverse_transposes[0],
            "key_clip": simulated.key_clip(),
            "value_clip": simulated.value_clip(),
        }
    )
    query, key, value = (states(1, 2, 3, 6, seed=seed) for seed in range(3))
    with torch.no_grad():
        assert torch.equal(stored.transform_query(query), simulated.transform_query(query))
        pairs = zip(stored.encode(key, value), simulated.encode(key, value), bits, strict=True)
        for got, expected, width in pairs:
            dense = got if width == 16 else got.dequantize(torch.float32)
            assert torch.equal(dense, expected)


def test_a_codec_keeps_the_type_of_a_half_precision_model():
    codec = KVCodec(6, key_bits=16, value_bits=4)
    x = states(1, 2, 3, 6).to(torch.bfloat16)
    assert codec.transform_query(x).dtype == torch.bfloat16
    key, value = codec.encode(x, x)
    assert key.dtype == torch.bfloat16
    assert value.shape == x.shape


def test_codes_of_odd_widths_are_stored_in_the_next_even_one():
    x = states(1, 1, 2, 8)
    assert [encode_heads(x, torch.ones(2), bits).bits for bits in WIDTHS] == [2, 4, 4, 8, 8, 8, 8]
