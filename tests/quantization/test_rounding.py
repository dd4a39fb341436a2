"""Weights rounded so that errors cancel in their output."""

import pytest
import torch

from support.models import token_ids
from support.quantised import logits_of, tiny
from tesseral._errors import ParameterError
from tesseral.llm.blockwise import InMemory, quantize_blocks
from tesseral.llm.capture import block_arguments, hidden_states
from tesseral.llm.layouts import blocks_of, open_block
from tesseral.quantization.block import SimulatedBlock
from tesseral.quantization.calibration.loop import observe
from tesseral.quantization.calibration.moments import second_moments
from tesseral.quantization.calibration.task import BlockTask
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.numerics import (
    row_range,
    symmetric_codes,
    symmetric_scale,
    weight_scale,
)
from tesseral.quantization.placement import INPUT_SITES
from tesseral.quantization.rounding import compensated_codes, nearest_codes

TOKENS = token_ids(8, 16)


def correlated(n, count=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n // 4, n, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, n, generator=generator, dtype=torch.float64)
    common = torch.randn(count, n // 4, generator=generator, dtype=torch.float64)
    return common @ mixing + 0.3 * noise


def weight_and_scale(rows, n, bits):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, n, generator=generator, dtype=torch.float64)
    return weight, symmetric_scale(*row_range(weight, torch.ones(2)), bits)


def column_by_column(weight, scale, bits, moments):
    """Return the same codes from the definition: re-solve for the columns left after each."""
    n = weight.shape[1]
    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(n, dtype=weight.dtype)
    rest, codes = weight.clone(), torch.empty_like(weight)
    for column in range(n):
        inverse = torch.linalg.inv(damped[column:, column:])
        codes[:, column : column + 1] = symmetric_codes(rest[:, column : column + 1], scale, bits)
        error = rest[:, column : column + 1] - codes[:, column : column + 1] * scale
        rest[:, column:] -= error * (inverse[:1] / inverse[0, 0])
    return codes


@pytest.mark.parametrize("n", [8, 128, 150])
@pytest.mark.parametrize("bits", [3, 4])
def test_codes_equal_those_of_the_definition(n, bits):
    x = correlated(n)
    weight, scale = weight_and_scale(5, n, bits)
    expected = column_by_column(weight, scale, bits, x.mT @ x)
    assert torch.equal(compensated_codes(weight, scale, bits, x.mT @ x), expected)


def test_the_output_is_closer_than_with_rounding_to_the_nearest():
    x = correlated(96)
    weight, scale = weight_and_scale(24, 96, 4)

    def error(codes):
        return float((x @ (codes * scale - weight).mT).square().mean())

    nearest = error(symmetric_codes(weight, scale, 4))
    assert error(compensated_codes(weight, scale, 4, x.mT @ x)) < 0.5 * nearest


@pytest.mark.parametrize("factor", [0.0, 1e-9, 1.0, 1e9])
def test_uncorrelated_inputs_leave_nothing_to_make_up_for(factor):
    weight, scale = weight_and_scale(6, 40, 4)
    moments = factor * torch.eye(40, dtype=torch.float64)
    codes = compensated_codes(weight, scale, 4, moments)
    assert torch.equal(codes, symmetric_codes(weight, scale, 4))


def test_a_channel_that_is_always_zero_does_no_harm():
    x = correlated(32)
    x[:, 3] = 0
    weight, scale = weight_and_scale(6, 32, 4)
    codes = compensated_codes(weight, scale, 4, x.mT @ x)
    assert codes.isfinite().all()
    assert codes.abs().max() <= 8


def test_moments_are_those_of_what_each_site_hands_to_its_readers():
    model = tiny("llama")
    block = blocks_of(model)[0]
    layout, shape = open_block(block, "llama")
    hidden = torch.cat(list(hidden_states(model, TOKENS, 4)))
    task = BlockTask(
        block=block,
        layout=layout,
        shape=shape,
        arguments=block_arguments(model, TOKENS[0])[0],
        inputs=hidden,
        received=hidden,
        index=0,
        n_blocks=1,
    )
    _, maxima = observe(task, 4)
    config = QuantizationConfig()
    generator = torch.Generator().manual_seed(0)
    simulated = SimulatedBlock(block, task.layout, shape, config, maxima, generator)
    weights = torch.rand(*hidden.shape[:2], 1, generator=generator)
    moments = second_moments(simulated, task, weights)
    assert set(moments) == {site.name for site in INPUT_SITES}
    entering = block.input_layernorm(hidden)
    expected = simulated.inputs["attention_input"].compute(entering).flatten(0, 1)
    weighed = expected * weights.flatten(0, 1)
    torch.testing.assert_close(moments["attention_input"], weighed.mT @ expected)
    assert moments["mlp_hidden"].shape == (shape.intermediate, shape.intermediate)


@pytest.mark.parametrize("transform", ["none", "hadamard", "flatquant"])
def test_a_model_rounded_by_gptq_is_closer_to_the_original(transform):
    errors = []
    for rounding in ("nearest", "gptq"):
        config = QuantizationConfig(
            transform=transform,
            rounding=rounding,
            weight_bits=3,
            activation_bits=16,
            kv_bits=16,
            epochs=0,
            batch_size=4,
        )
        model = tiny("llama", initializer_range=0.1)
        before = logits_of(model, TOKENS)
        quantize_blocks(model, config, TOKENS, InMemory(), lambda _: None)
        errors.append(float((logits_of(model, TOKENS) - before).square().mean()))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_groups_are_rounded_as_weights_of_their_own(groups):
    weight = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    clip = torch.linspace(0.5, 1, 10, dtype=torch.float64).reshape(5, 2)
    size = 12 // groups
    scale = weight_scale(weight, clip, 4, size)
    codes = nearest_codes(weight, scale, 4)
    assert scale.shape == (5, groups)
    for g, part in enumerate(weight.split(size, dim=1)):
        own = symmetric_scale(*row_range(part, clip), 4)
        assert torch.equal(scale[:, g : g + 1], own)
        assert torch.equal(codes[:, g * size : (g + 1) * size], symmetric_codes(part, own, 4))
    # with independent inputs there is nothing to make up for
    assert torch.equal(compensated_codes(weight, scale, 4, torch.eye(12).double()), codes)


def test_a_group_that_does_not_fit_is_refused():
    with pytest.raises(ParameterError, match="group_size=5 does not divide the 12 channels"):
        weight_scale(torch.ones(2, 12), torch.ones(2, 2), 4, 5)


@pytest.mark.parametrize(
    "changes",
    [{"group_size": 4}, {"layers": {"down_proj": {"weight_bits": 8, "activation_bits": 8}}}],
    ids=["groups", "layers"],
)
def test_finer_scales_and_wider_layers_lose_less(changes):
    errors = []
    for extra in ({}, changes):
        config = QuantizationConfig(
            weight_bits=3, activation_bits=3, kv_bits=16, epochs=0, rounding="nearest", **extra
        )
        model = tiny("llama", initializer_range=0.1)
        before = logits_of(model, TOKENS)
        quantize_blocks(model, config, TOKENS, InMemory(), lambda _: None)
        errors.append(float((logits_of(model, TOKENS) - before).square().mean()))
    assert errors[1] < 0.95 * errors[0]
