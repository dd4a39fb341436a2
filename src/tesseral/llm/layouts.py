"""Which module plays which part, per architecture: names only."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from tesseral._errors import UnsupportedModelError
from tesseral.quantization.placement import BlockLayout, BlockShape

_LLAMA = BlockLayout(
    attention="self_attn",
    linears={
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    norms={"attention": "input_layernorm", "mlp": "post_attention_layernorm"},
)

LAYOUTS: Mapping[str, BlockLayout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""Layout of a decoder block by ``config.model_type``."""


def layout_of(model_type: str) -> BlockLayout:
    """Return the layout of an architecture.

    Raises
    ------
    UnsupportedModelError
        If it is not known.
    """
    if model_type not in LAYOUTS:
        raise UnsupportedModelError(
            f"quantization: the architecture {model_type!r} is not supported; "
            f"supported are {', '.join(LAYOUTS)}."
        )
    return LAYOUTS[model_type]


def shape_of(config: Any) -> BlockShape:
    """Return the sizes of a decoder block from a transformers configuration."""
    n_heads = config.num_attention_heads
    return BlockShape(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        n_heads=n_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
    )


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks of a causal language model.

    Raises
    ------
    UnsupportedModelError
        If there is no list of blocks where one is expected.
    """
    blocks = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(blocks, nn.ModuleList):
        raise UnsupportedModelError(
            f"quantization: {type(model).__name__} has no decoder blocks under model.layers."
        )
    return blocks


def final_norm_of(model: nn.Module) -> nn.Module:
    """Return the norm between the last block and the output embedding."""
    return model.get_submodule("model.norm")
