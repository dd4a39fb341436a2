"""Models whose blocks are simulated or frozen with transforms that are not at their start."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from support.models import (
    tiny_gemma2,
    tiny_gemma3,
    tiny_gemma3_seeing,
    tiny_llama,
    tiny_mistral,
    tiny_mixtral,
    tiny_olmo2,
    tiny_phi3,
    tiny_qwen2,
    tiny_qwen3,
    tiny_qwen3_moe,
)
from tesseral.llm.layouts import blocks_of, open_block
from tesseral.quantization.block import SimulatedBlock, replace_with_quantized
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.freeze import frozen_state
from tesseral.quantization.placement import INPUT_SITES
from tesseral.quantization.transforms.kronecker import Kronecker

ODD = {
    "hidden_size": 29,
    "intermediate_size": 37,
    "head_dim": 6,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
"""Sizes that are prime or odd, and one head of keys for three of queries."""

BIASED = {"attention_bias": True, "mlp_bias": True}
"""Every linear layer has a bias."""

TWICE_ODD = {"hidden_size": 34, "intermediate_size": 46, "head_dim": 6}
"""Widths of 2 mod 4."""

MODELS = {
    "llama": tiny_llama,
    "biased": lambda attention, **changes: tiny_llama(attention, **BIASED | changes),
    "mistral": tiny_mistral,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "gemma2": tiny_gemma2,
    "gemma3_text": tiny_gemma3,
    "gemma3": tiny_gemma3_seeing,
    "phi3": tiny_phi3,
    "olmo2": tiny_olmo2,
    "mixtral": tiny_mixtral,
    "qwen3_moe": tiny_qwen3_moe,
    "odd": lambda attention, **changes: tiny_mistral(attention, **ODD | changes),
    "twice odd": lambda attention, **changes: tiny_mistral(attention, **TWICE_ODD | changes),
}


def tiny(name: str, dtype: torch.dtype = torch.float32, **changes):
    """Return a model under our attention whose norms are not ones and biases not zeros."""
    model = MODELS[name]("tesseral", **changes).to(dtype).requires_grad_(False)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()))
        if "norm" in parameter_name:
            parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()))
    return model


def no_rounding(transform: str, **changes) -> QuantizationConfig:
    """Return a configuration that transforms and never rounds."""
    off = {"weight_bits": 16, "activation_bits": 16, "kv_bits": 16}
    return QuantizationConfig(transform=transform, **off | changes)


def scramble(module: torch.nn.Module, spread: float = 0.3, seed: int = 0) -> torch.nn.Module:
    """Move every parameter of a module away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(spread * noise)
    return module


def simulate(model, config: QuantizationConfig, *, only: str | None = None) -> list[SimulatedBlock]:
    """Return simulated parts of every block, with scrambled parameters.

    ``only`` names one placement, an input site or ``"kv_codec"``; the others stay identities.
    """
    simulated = []
    for index, block in enumerate(blocks_of(model)):
        layout, shape = open_block(block, model.config.model_type)
        generator = torch.Generator().manual_seed(index)
        maxima = {
            site.name: torch.rand(site.width(shape), generator=generator) + 0.1
            for site in INPUT_SITES
        }
        parts = SimulatedBlock(block, layout, shape, config, maxima, generator)
        scramble(parts, seed=index)
        if only is not None:
            _neutralise(parts, only)
        parts.refresh()
        simulated.append(parts)
    return simulated


def _neutralise(parts: SimulatedBlock, only: str) -> None:
    for name, site in parts.inputs.items():
        if name != only:
            site.log_scale = None
            _set_identity(site, 2)
    if only != "kv_codec":
        _set_identity(parts.codec, 1)


def _set_identity(part: torch.nn.Module, n_factors: int) -> None:
    del part.transform  # a module does not give way to what is none
    part.transform = Kronecker((None,) * n_factors, (None,) * n_factors)


@contextmanager
def installed(simulated: list[SimulatedBlock]) -> Iterator[None]:
    """Put the simulated parts of all blocks in place, and take them away afterwards."""
    with ExitStack() as stack:
        for parts in simulated:
            stack.enter_context(parts.installed())
        yield


def freeze(model, config: QuantizationConfig, simulated: list[SimulatedBlock]) -> None:
    """Replace every block's linear layers by stored ones; what has no transform is identity."""
    for block, parts in zip(blocks_of(model), simulated, strict=True):
        layout, shape = open_block(block, model.config.model_type)
        state = frozen_state(parts, parts.dtype)
        replace_with_quantized(block, layout, shape, config, parts.dtype)
        missing, unexpected = block.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(".transform." in n or "_transform." in n for n in missing), missing


@torch.no_grad()
def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of whole sequences, without a cache."""
    return model(ids, use_cache=False).logits
