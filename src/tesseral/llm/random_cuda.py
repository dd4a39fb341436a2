"""Language models of random weights on a device, to measure with: never in a file."""

from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tesseral.llm.quantizer import install
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.linear import QuantizedLinear
from tesseral.quantization.transforms.frozen import FrozenKronecker
from tesseral.quantization.transforms.hadamard import random_hadamard

SPREAD = 0.02
"""Standard deviation of weights."""

_CODES = 4.32
"""That of codes from -7 to 7, each as likely as the others."""


def dense_model(
    shape: dict[str, Any],
    dtype: torch.dtype = torch.float16,
    attention: str = "sdpa",
    device: str = "cuda",
) -> LlamaForCausalLM:
    """Return a Llama that is not quantised; under torch's attention by default."""
    model = _unfilled(shape, attention, dtype).to_empty(device=device)
    return _filled(model)


def offloading_cache(model: LlamaForCausalLM, length: int) -> DynamicCache:
    """Return transformers' cache that moves each layer there and back, with random tokens in it."""
    config = model.config
    cache = DynamicCache(config=config, offloading=True)
    shape = 1, config.num_key_value_heads, length, config.head_dim
    for layer in cache.layers:
        empty = torch.empty((*shape[:2], 0, shape[3]), dtype=model.dtype, device=model.device)
        layer.lazy_initialization(empty, empty)
        sides = [
            torch.empty(shape, dtype=model.dtype, pin_memory=model.device.type == "cuda")
            for _ in range(2)
        ]
        for side in sides:
            side.copy_(torch.randn(shape, dtype=model.dtype, device=model.device))
        layer.keys, layer.values = sides
    cache.layers[0].prefetch()  # as the layer before it would have done
    return cache


def quantised_model(shape: dict[str, Any], transform: str) -> LlamaForCausalLM:
    """Return a Llama in W4A4KV4, its codes random and its transforms Hadamard matrices or none."""
    model = _unfilled(shape, "tesseral")
    install(model, QuantizationConfig(transform=transform))
    model = _filled(model.to_empty(device="cuda"))
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            _fill_codes(module.weight_codes)
            module.weight_scale.fill_(SPREAD / _CODES)
        elif isinstance(module, FrozenKronecker):
            for factor in module.buffers():
                factor.copy_(random_hadamard(len(factor), generator))
        for name in ("clip", "key_clip", "value_clip"):
            if name in module._buffers:
                module.get_buffer(name).fill_(1)
    model.is_quantized = True
    return model


def _fill_codes(codes: torch.Tensor) -> None:
    """Fill packed codes with -7 to 7; of a mean other than zero, all rows would become alike."""
    codes.random_(0, 15 * 15)
    low, high = codes % 15, codes // 15
    codes.copy_(((low + 9) & 15) | (((high + 9) & 15) << 4))


def _unfilled(
    shape: dict[str, Any], attention: str, dtype: torch.dtype = torch.float16
) -> LlamaForCausalLM:
    config = LlamaConfig(**shape, attn_implementation=attention)
    with torch.device("meta"):
        return LlamaForCausalLM._from_config(config, dtype=dtype).eval()


def _filled(model: LlamaForCausalLM) -> LlamaForCausalLM:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if "norm" in name:
            parameter.fill_(1)
        else:
            parameter.normal_(std=SPREAD)
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config).to(model.device)
    return model
