"""Norms rescaled so that quantised hidden states match the original ones after them."""

import torch

from support.models import token_ids
from support.quantised import tiny
from tesseral.llm.blockwise import InMemory, quantize_blocks
from tesseral.llm.layouts import blocks_of, final_norm_of
from tesseral.quantization.calibration.gains import rescale_norm
from tesseral.quantization.config import QuantizationConfig

TOKENS = token_ids(8, 16)


def normed(n=12):
    norm = torch.nn.RMSNorm(n, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, n))
    return norm


def states(noise, n=12):
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(4, 50, n, generator=generator, dtype=torch.float64)
    added = torch.randn(4, 50, n, generator=generator, dtype=torch.float64)
    return original, original + noise * added


def distance(norm, weight, original, present):
    with torch.no_grad():
        target = norm(original)
        scaled = norm(present) * (weight / norm.weight)
    return float((scaled - target).square().sum())


def test_no_other_factor_brings_the_outputs_closer():
    norm, (original, present) = normed(), states(0.7)
    weight = norm.weight.detach().clone()
    rescale_norm(norm, original, present)
    best = norm.weight.detach().clone()
    factor = best / weight
    assert torch.allclose(factor, factor[0].expand_as(factor))
    assert 0.5 < factor[0] < 0.95
    with torch.no_grad():
        norm.weight.copy_(weight)
    least = distance(norm, best, original, present)
    for other in (0.99, 1.01):
        assert distance(norm, best * other, original, present) > least


def test_equal_and_empty_states_leave_a_norm_as_it_is():
    norm, (original, _) = normed(), states(0.0)
    weight = norm.weight.detach().clone()
    rescale_norm(norm, original, original)
    assert torch.allclose(norm.weight, weight, rtol=1e-12)
    rescale_norm(norm, original, torch.zeros_like(original))
    assert torch.allclose(norm.weight, weight, rtol=1e-12)


@torch.no_grad()
def after_every_norm(model):
    """Return the outputs of all norms on TOKENS, first to last."""
    kept, modules = [], []
    for block in blocks_of(model):
        modules += [block.input_layernorm, block.post_attention_layernorm]
    for norm in [*modules, final_norm_of(model)]:
        norm.register_forward_hook(lambda _, __, output: kept.append(output))
    model(TOKENS, use_cache=False)
    return kept


def quantised(**changes):
    config = QuantizationConfig(
        weight_bits=3,
        activation_bits=3,
        kv_bits=3,
        epochs=1,
        batch_size=4,
        propagate=False,  # so that blocks learn the same with and without
        **changes,
    )
    model = tiny("llama", initializer_range=0.1)
    quantize_blocks(model, config, TOKENS, InMemory(), lambda _: None)
    return model


def test_after_calibration_every_norm_is_at_its_least_squares_factor():
    original = after_every_norm(tiny("llama", initializer_range=0.1))
    plain = after_every_norm(quantised(rescale_norms=False))
    rescaled = after_every_norm(quantised())
    # the final norm carries no per-channel scale, so its outputs can be compared directly
    target, before, after = original[-1], plain[-1], rescaled[-1]
    best = (target * after).sum() / after.square().sum()
    assert abs(float(best) - 1) < 1e-4
    assert (after - target).square().sum() < (before - target).square().sum()
    # the first norm reads what the original reads: nothing to match
    torch.testing.assert_close(rescaled[0], plain[0])


def test_nothing_is_rescaled_where_nothing_is_learned():
    weights = []
    for rescale in (True, False):
        config = QuantizationConfig(transform="hadamard", rescale_norms=rescale, batch_size=4)
        model = tiny("llama")
        quantize_blocks(model, config, TOKENS, InMemory(), lambda _: None)
        weights.append(final_norm_of(model).weight)
    assert torch.equal(*weights)
