"""Which module plays which part, per architecture: a table of names, and how it is read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

from torch import nn

from tesseral._errors import UnsupportedModelError
from tesseral.quantization.experts import take_apart
from tesseral.quantization.placement import EXPERT, BlockLayout, BlockShape

_ATTENTION = {
    "self_attn.q_proj": ("query",),
    "self_attn.k_proj": ("key",),
    "self_attn.v_proj": ("value",),
    "self_attn.o_proj": ("output",),
}
_MLP = {"mlp.gate_proj": ("gate",), "mlp.up_proj": ("up",), "mlp.down_proj": ("down",)}

_LLAMA = BlockLayout(
    attention="self_attn",
    linears=_ATTENTION | _MLP,
    norms={"attention": "input_layernorm", "mlp": "post_attention_layernorm"},
)

_PHI3 = replace(
    _LLAMA,
    linears={
        "self_attn.qkv_proj": ("query", "key", "value"),
        "self_attn.o_proj": ("output",),
        "mlp.gate_up_proj": ("gate", "up"),
        "mlp.down_proj": ("down",),
    },
)
_GEMMA2 = replace(
    _LLAMA,
    norms={
        "attention": "input_layernorm",
        "attention_output": "post_attention_layernorm",
        "mlp": "pre_feedforward_layernorm",
        "mlp_output": "post_feedforward_layernorm",
    },
    norm_offset=1.0,
)
_OLMO2 = replace(
    _LLAMA,
    norms={
        "attention_output": "post_attention_layernorm",
        "mlp_output": "post_feedforward_layernorm",
    },
)
_MIXTRAL = replace(
    _LLAMA,
    linears=_ATTENTION
    | {
        "mlp.experts.*.gate_up_proj": ("gate", "up"),
        "mlp.experts.*.down_proj": ("down",),
    },
    experts="mlp.experts",
    unquantised={"mlp_input": ("mlp.gate",)},
)

LAYOUTS: Mapping[str, tuple[BlockLayout, ...]] = {
    "llama": (_LLAMA,),
    "mistral": (_LLAMA,),
    "qwen2": (_LLAMA,),
    "qwen3": (_LLAMA,),
    "gemma2": (_GEMMA2,),
    "gemma3_text": (_GEMMA2,),
    "gemma3": (_GEMMA2,),
    "phi3": (_PHI3,),
    "olmo2": (_OLMO2,),
    "mixtral": (_MIXTRAL,),
    # some of its blocks may have an ordinary MLP
    "qwen3_moe": (_MIXTRAL, _LLAMA),
}
"""Layouts of decoder blocks by ``config.model_type``: a block has the first that fits it."""

_BLOCKS = ("model.layers", "model.language_model.layers")
"""Where the decoder blocks of a model may be: the second in models that see images, too."""


def check_architecture(model_type: str) -> None:
    """Refuse an architecture that is not in the table.

    Raises
    ------
    UnsupportedModelError
        If it is not known.
    """
    if model_type not in LAYOUTS:
        looked_for = {name: None for layouts in LAYOUTS.values() for name in _names(*layouts)}
        raise UnsupportedModelError(
            f"quantization: the architecture {model_type!r} is not supported; supported are "
            f"{', '.join(LAYOUTS)}, whose blocks hold some of {', '.join(looked_for)}."
        )


def open_block(block: nn.Module, model_type: str) -> tuple[BlockLayout, BlockShape]:
    """Make every linear layer of a decoder block a module of its own, and find them.

    Fused experts are taken apart in place; what the block computes stays the same.

    Returns
    -------
    layout : BlockLayout
        Names of the parts, with those of every expert.
    shape : BlockShape
        Sizes, as the linear layers have them.

    Raises
    ------
    UnsupportedModelError
        If the architecture is not known or the block lacks one of its modules.
    """
    check_architecture(model_type)
    layouts = LAYOUTS[model_type]
    for layout in layouts:
        if not _missing(block, layout):
            count = 0 if layout.experts is None else take_apart(block, layout.experts)
            opened = layout.with_experts(count)
            return opened, _shape(block, opened)
    raise UnsupportedModelError(
        f"quantization: a {type(block).__name__} of architecture {model_type!r} should hold "
        + ", or ".join(", ".join(_names(layout)) for layout in layouts)
        + "; missing are "
        + ", or ".join(", ".join(_missing(block, layout)) for layout in layouts)
        + "."
    )


@contextmanager
def opened_blocks(model: nn.Module, model_type: str) -> Iterator[list[BlockLayout]]:
    """Open every block of a model, and put fused experts back afterwards.

    Raises
    ------
    UnsupportedModelError
        As :func:`open_block` and :func:`blocks_of`.
    """
    check_architecture(model_type)
    blocks, names = blocks_of(model), {layout.experts for layout in LAYOUTS[model_type]}
    fused = [
        (block, name, module)
        for block in blocks
        for name, module in block.named_modules()
        if name in names
    ]
    try:
        yield [open_block(block, model_type)[0] for block in blocks]
    finally:
        for block, name, module in fused:
            block.set_submodule(name, module)


def _names(*layouts: BlockLayout) -> Iterator[str]:
    """Yield the modules that layouts ask for."""
    for layout in layouts:
        yield layout.attention
        yield from (name for name in layout.linears if EXPERT not in name)
        yield from layout.norms.values()
        if layout.experts is not None:
            yield layout.experts
        for names in layout.unquantised.values():
            yield from names


def _missing(block: nn.Module, layout: BlockLayout) -> list[str]:
    """Return the modules that a layout asks for and a block does not have."""
    present = {name for name, _ in block.named_modules()}
    return [name for name in _names(layout) if name not in present]


def _shape(block: nn.Module, layout: BlockLayout) -> BlockShape:
    """Return the sizes of a block: those of its linear layers and of a head."""
    by_role: dict[str, nn.Linear] = {
        role: block.get_submodule(name)  # type: ignore[misc]
        for name, roles in layout.linears.items()
        for role in roles
    }
    head_dim: int = block.get_submodule(layout.attention).head_dim  # type: ignore[assignment]
    query = by_role["output"].in_features
    kv = sum(linear.out_features for linear in {by_role[r] for r in ("query", "key", "value")})
    return BlockShape(
        hidden=by_role["query"].in_features,
        intermediate=by_role["down"].in_features,
        n_heads=query // head_dim,
        n_kv_heads=(kv - query) // (2 * head_dim),
        head_dim=head_dim,
    )


def blocks_name(model: nn.Module) -> str:
    """Return the name of the list of decoder blocks in a causal language model.

    Raises
    ------
    UnsupportedModelError
        If there is no list of blocks where one is expected.
    """
    for name in _BLOCKS:
        with suppress(AttributeError):
            if isinstance(model.get_submodule(name), nn.ModuleList):
                return name
    raise UnsupportedModelError(
        f"quantization: {type(model).__name__} has no decoder blocks under {' or '.join(_BLOCKS)}."
    )


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks of a causal language model.

    Raises
    ------
    UnsupportedModelError
        As :func:`blocks_name`.
    """
    blocks: nn.ModuleList = model.get_submodule(blocks_name(model))  # type: ignore[assignment]
    return blocks


def final_norm_of(model: nn.Module) -> nn.Module:
    """Return the norm between the last block and the output embedding."""
    return model.get_submodule(f"{blocks_name(model).rpartition('.')[0]}.norm")
