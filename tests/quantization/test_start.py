"""The start from second moments: its formulas against definitions, and what they are for."""

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.models import token_ids
from support.quantised import logits_of, tiny
from tesseral.llm.blockwise import InMemory, quantize_blocks
from tesseral.llm.capture import block_arguments, hidden_states
from tesseral.llm.layouts import blocks_of, open_block
from tesseral.quantization.block import SimulatedBlock
from tesseral.quantization.calibration.loop import observe
from tesseral.quantization.calibration.objective import token_weights
from tesseral.quantization.calibration.start import (
    balanced_grams,
    balanced_scale,
    geometric_mean,
    power,
    start_from_moments,
)
from tesseral.quantization.calibration.statistics import Moments, measure
from tesseral.quantization.calibration.task import BlockTask
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.placement import CODEC, INPUT_SITES

TOKENS = token_ids(4, 16)


def definite(n, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    sizes = torch.randn(n, generator=generator, dtype=torch.float64).mul(spread).exp()
    return (root * sizes) @ root.mT + 1e-3 * torch.eye(n, dtype=torch.float64)


def cost(moments, grams, scale=None):
    """Return ``tr(G S) tr(G^-1 M)``, all of it formed."""
    gram = grams[0] if len(grams) == 1 else torch.kron(*grams)
    moments = moments if scale is None else moments.scaled(scale)
    return float((gram @ moments.rows).trace() * (gram.inverse() @ moments.gradients).trace())


@given(n=st.integers(1, 8), seed=st.integers(0, 99))
def test_the_geometric_mean_turns_one_moment_into_the_other(n, seed):
    rows, gradients = definite(n, seed), definite(n, seed + 1)
    gram = geometric_mean(rows, gradients)
    turned = gram @ rows @ gram
    assert torch.allclose(turned / turned.trace(), gradients / gradients.trace(), atol=1e-8)
    assert torch.linalg.det(gram) == pytest.approx(1, rel=1e-6)


@given(n=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_geometric_mean_has_the_least_cost(n, seed):
    moments = Moments(rows=definite(n, seed), gradients=definite(n, seed + 1))
    root = power(moments.rows, 0.5)
    bound = float(power(root @ moments.gradients @ root, 0.5).trace() ** 2)
    grams = balanced_grams(moments, [n])
    assert cost(moments, grams) == pytest.approx(bound, rel=1e-6)
    assert cost(moments, [definite(n, seed + 2)]) >= bound * (1 - 1e-9)


@pytest.mark.parametrize("sizes", [(2, 3), (1, 5), (4, 4)])
def test_no_factor_alone_can_be_better(sizes):
    n = prod(sizes)
    moments = Moments(rows=definite(n), gradients=definite(n, 1))
    grams = balanced_grams(moments, list(sizes))
    least = cost(moments, grams)
    for side, size in enumerate(sizes):
        for seed in range(4):
            shifted = list(grams)
            shift = definite(size, seed, spread=0.1)
            shifted[side] = grams[side] + 1e-2 * shift * grams[side].trace() / shift.trace()
            # the factors alternate: all but the last are a little off their optimum
            assert cost(moments, shifted) > least * 0.99
    identities = [torch.eye(s, dtype=torch.float64) for s in sizes]
    assert least < 0.8 * cost(moments, identities)


def test_a_product_of_moments_has_the_product_of_their_means():
    rows, gradients = [[definite(n, seed + n) for n in (2, 3)] for seed in (0, 7)]
    moments = Moments(rows=torch.kron(*rows), gradients=torch.kron(*gradients))
    for found, s, m in zip(balanced_grams(moments, [2, 3]), rows, gradients, strict=True):
        assert torch.allclose(found, geometric_mean(s, m), rtol=1e-6, atol=1e-9)


def test_the_scale_of_independent_channels_is_the_fourth_root():
    rows, gradients = (torch.rand(6, dtype=torch.float64) + 0.1 for _ in range(2))
    moments = Moments(rows=rows.diag(), gradients=gradients.diag())
    grams = [torch.eye(n, dtype=torch.float64) for n in (2, 3)]
    scale = balanced_scale(moments, grams, torch.ones(6, dtype=torch.float64))
    expected = (gradients / rows) ** 0.25
    assert torch.allclose(scale, expected / expected.log().mean().exp(), rtol=1e-2)


def test_a_scale_lowers_the_cost_for_any_factors():
    moments = Moments(rows=definite(6), gradients=definite(6, 1))
    grams = [definite(2, 3), definite(3, 4)]
    ones = torch.ones(6, dtype=torch.float64)
    scale = balanced_scale(moments, grams, ones)
    assert cost(moments, grams, scale) < 0.9 * cost(moments, grams)
    assert torch.log(scale).mean() == pytest.approx(0, abs=1e-12)


def task_of(model):
    block = blocks_of(model)[0]
    layout, shape = open_block(block, model.config.model_type)
    hidden = torch.cat(list(hidden_states(model, TOKENS, 4)))
    arguments = block_arguments(model, TOKENS[0])[0]
    return BlockTask(
        block=block,
        layout=layout,
        shape=shape,
        arguments=arguments,
        inputs=hidden,
        received=hidden,
        index=0,
        n_blocks=1,
    )


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral"])
def test_moments_are_those_of_inputs_and_of_gradients_there(name):
    task = task_of(tiny(name, torch.float64))
    outputs, _ = observe(task, 4)
    weights = token_weights(outputs, "token")
    moments = measure(task, weights, torch.Generator().manual_seed(5))
    assert moments.keys() == {s.name for s in INPUT_SITES} | {CODEC}
    rows, gradients = 0, 0
    generator = torch.Generator().manual_seed(5)
    norm = task.block.get_submodule(task.layout.norms["attention"])
    for hidden, weight in zip(task.inputs, weights, strict=True):
        kept = []
        handle = norm.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output))
        with torch.enable_grad():
            output = task.run(hidden[None].clone().requires_grad_())
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1
            (error,) = torch.autograd.grad((output * signs * weight.sqrt()).sum(), kept)
        handle.remove()
        for x, g in zip(kept[0][0].detach(), error[0], strict=True):
            rows = rows + (g @ g) * torch.outer(x, x)
            gradients = gradients + (x @ x) * torch.outer(g, g)
    assert torch.allclose(moments["attention_input"].rows, rows, rtol=1e-6)
    assert torch.allclose(moments["attention_input"].gradients, gradients, rtol=1e-6)


@pytest.mark.parametrize("objective", ["token", "mean"])
def test_weights_make_a_relative_error_of_a_square(objective):
    targets, error = torch.randn(2, 3, 4, 5).double()
    targets = targets * torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    found = (error.square() * token_weights(targets, objective)).mean()
    if objective == "token":
        expected = (error.square().sum(-1) / targets.square().sum(-1)).mean()
    else:
        expected = error.square().sum() / targets.square().sum()
    assert found == pytest.approx(float(expected))


def test_a_start_reaches_every_learned_part_and_keeps_the_function():
    task = task_of(tiny("llama", torch.float64))
    outputs, maxima = observe(task, 4)
    config = QuantizationConfig(weight_bits=16, activation_bits=16, kv_bits=16)
    generator = torch.Generator().manual_seed(0)
    simulated = SimulatedBlock(task.block, task.layout, task.shape, config, maxima, generator)
    before = {name: p.clone() for name, p in simulated.state_dict().items()}
    start_from_moments(simulated, measure(task, token_weights(outputs, "token"), generator))
    moved = {n for n, p in simulated.state_dict().items() if not torch.equal(p, before[n])}
    # five transforms of nine factors, three scales
    assert sum(name.endswith("left_start") for name in moved) == 9
    assert sum(name.endswith("log_scale") for name in moved) == 9 + 3
    with simulated.installed():
        (found,) = task.run_all(task.inputs, 4)
    assert torch.allclose(found, outputs, rtol=1e-10)


def outliers(**changes):
    """Return a random Llama, three channels of each norm of its blocks raised to 20."""
    model = tiny(
        "llama",
        hidden_size=256,
        intermediate_size=704,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        **changes,
    )
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.fill_(1.0)
            parameter[[3, 77, 200]] = 20.0
    return model


def test_untrained_transforms_halve_the_error_of_outliers():
    tokens, errors = token_ids(8, 64), []
    for changes in ({"transform": "none", "rounding": "nearest"}, {"epochs": 0}):
        model = outliers()
        expected = logits_of(model, tokens)
        config = QuantizationConfig(kv_bits=16, **changes)
        quantize_blocks(model, config, tokens, InMemory(), lambda _: None)
        errors.append(float((logits_of(model, tokens) - expected).norm() / expected.norm()))
    assert errors[1] < 0.5 * errors[0]
