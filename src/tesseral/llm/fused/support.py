"""Whether a model's blocks are of the kind that is run in few launches."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tesseral.llm.layouts import blocks_of
from tesseral.quantization.kernels.problem import LinearProblem
from tesseral.quantization.kernels.registry import BACKENDS
from tesseral.quantization.kernels.triton.backend import fits
from tesseral.quantization.kvcodec import KVCodec
from tesseral.quantization.linear import QuantizedLinear
from tesseral.runtime.registry import YES, Verdict
from tesseral.runtime.triton import ready

MODEL_TYPES = ("llama", "mistral", "qwen2")
"""Architectures whose blocks are two norms, attention with rotated heads, and a gated MLP."""

LINEARS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Linear layers of a block; those of a line read the same rows."""

_CACHE_BITS = (4, 8)


def supports(model: PreTrainedModel) -> Verdict:
    """Return whether a model can be run by :class:`~tesseral.llm.fused.FusedDecoder`."""
    config: Any = model.config
    device = next(model.parameters()).device.type
    verdict = ready(device)
    if not verdict.ok:
        return verdict
    if config.model_type not in MODEL_TYPES:
        return Verdict(False, f"runs {', '.join(MODEL_TYPES)}, not {config.model_type}")
    if getattr(config, "hidden_act", "silu") != "silu":
        return Verdict(False, f"takes the activation silu, got {config.hidden_act}")
    if _has_window(config):
        return Verdict(False, "attends to all tokens before, the model to a window")
    for index, block in enumerate(blocks_of(model)):
        verdict = _supports_block(block, device, model.dtype)
        if not verdict.ok:
            return Verdict(False, f"block {index}: {verdict.reason}")
    return YES


def _has_window(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) is not None


def _supports_block(block: nn.Module, device: str, dtype: torch.dtype) -> Verdict:
    codec = getattr(block.self_attn, "kv_codec", None)
    if not isinstance(codec, KVCodec):
        return Verdict(False, "is not quantised")
    for bits in (codec.key_bits, codec.value_bits):
        if bits not in _CACHE_BITS:
            return Verdict(False, f"stores keys and values in {_CACHE_BITS} bits, got {bits}")
    for names in LINEARS:
        for name in names:
            verdict = _supports_layer(block.get_submodule(name), device, dtype)
            if not verdict.ok:
                return Verdict(False, f"{name} {verdict.reason}")
    return YES


def _supports_layer(layer: nn.Module, device: str, dtype: torch.dtype) -> Verdict:
    if not isinstance(layer, QuantizedLinear) or "weight_codes" not in layer._buffers:
        return Verdict(False, "has no packed weight")
    source = layer._source[0]
    if not 2 <= source.bits <= 8:
        return Verdict(False, "reads rows that are not quantised")
    if source.clip.dtype != torch.float32:
        return Verdict(False, f"has scales of {source.clip.dtype}, not of float32")
    problem = LinearProblem(
        device=device,
        weight_bits=layer.stored.bits,
        activation_bits=source.bits,
        in_features=layer.in_features,
        groups=layer.weight_scale.shape[-1],
    )
    verdict = BACKENDS.get("triton").supports(problem)
    if not verdict.ok:
        return verdict
    sizes = [None if factor is None else len(factor) for factor in source.transform.factors]
    return fits(layer.in_features, sizes, dtype)
