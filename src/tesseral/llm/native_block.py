"""Decoder blocks that take one token of each sequence in two calls of a kernel.

At one token, most of a block's time would go into asking Python for a hundred small things. The
block of a Llama, in our format, on the CPU, with our cache, is two calls and the attention between
them. Everything else goes the model's own way.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tesseral.attention import attention
from tesseral.core.decoder_block import ROTATED_MULTIPLE, DecoderBlock
from tesseral.core.quantized_linears import QuantizedLinears
from tesseral.llm.cache import QuantizedKVCache
from tesseral.llm.cache_argument import CACHE
from tesseral.llm.rule_mask import BandMask
from tesseral.quantization.config import OFF
from tesseral.quantization.kernels.heads import HEADS
from tesseral.quantization.kernels.registry import BACKENDS, ROWS
from tesseral.quantization.kvcodec import KVCodec
from tesseral.quantization.linear import QuantizedLinear
from tesseral.runtime.threads import threads_beside_torch

BLOCKS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"})
"""transformers' blocks that are of this kind."""

_LAYERS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_NORMS = ("input_layernorm", "post_attention_layernorm")
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class NativeBlock(nn.Module):
    """Before a class of blocks: one token of each sequence through our kernels."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the hidden states after the block."""
        x, past_key_values = hidden_states, kwargs.pop(CACHE, past_key_values)
        if x.ndim == 3 and x.shape[1] == 1 and x.is_cpu and not kwargs.get("output_attentions"):
            token = Token(x, attention_mask, past_key_values, position_embeddings)
            parts = parts_of(self)
            if parts.take(token):
                return parts.run(token)
        original: Tensor = super().forward(
            x,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **{CACHE: past_key_values},
            **kwargs,
        )
        return original

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_parts"}


def named_backends() -> bool:
    """Whether someone asked for a backend by name, which is then to be called."""
    return (ROWS.asked, BACKENDS.asked, HEADS.asked) != (None, None, None)


def parts_of(block: Any) -> "Parts":
    """Return the parts of a block, found once."""
    parts: Parts | None = block.__dict__.get("_parts")
    if parts is None:
        parts = block.__dict__["_parts"] = Parts(block)
    return parts


class Token:
    """What a block is called with."""

    __slots__ = ("cache", "hidden", "mask", "rotary")

    def __init__(self, hidden: Tensor, mask: Any, cache: Any, rotary: Any) -> None:
        self.hidden, self.mask, self.cache, self.rotary = hidden, mask, cache, rotary


class Parts:
    """The parts of a block, and the kernel made for where they lie."""

    def __init__(self, block: Any) -> None:
        self._block = block
        attention_module = block.self_attn
        self._layers = [[block.get_submodule(name) for name in names] for names in _LAYERS]
        self._norms = [block.get_submodule(name) for name in _NORMS]
        self._codec: Any = getattr(attention_module, "kv_codec", None)
        self.scaling: float = getattr(attention_module, "scaling", 0.0)
        self.index: int = attention_module.layer_idx
        self._fits = self._are_known()
        self._kernel: DecoderBlock | None = None
        self._dtype: torch.dtype | None = None
        self._buffers: list[tuple[Any, str, Tensor]] = []
        self._parameters: list[tuple[Any, int]] = []
        self._alive: list[Any] = []
        parts = [m for m in block.modules() if m is not block]
        self._hooks = [h for m in parts for h in (m._forward_hooks, m._forward_pre_hooks)]

    def _are_known(self) -> bool:
        """Whether the parts are of the kinds that the kernel knows."""
        attention_module, mlp = self._block.self_attn, self._block.mlp
        layers = [layer for group in self._layers for layer in group]
        codec = self._codec
        return (
            all(isinstance(layer, QuantizedLinear) and layer.bits != OFF for layer in layers)
            and all(group[0]._source[0].layers == group for group in self._layers)
            and all(group[0]._source[0].bits != OFF for group in self._layers)
            and all(hasattr(norm, "variance_epsilon") for norm in self._norms)
            and isinstance(codec, KVCodec)
            and OFF not in (codec.key_bits, codec.value_bits)
            and attention_module.head_dim % ROTATED_MULTIPLE == 0
            and getattr(attention_module, "sliding_window", None) is None
            and type(mlp.act_fn).__name__ in ("SiLUActivation", "SiLU")
        )

    def take(self, token: Token) -> bool:
        """Whether this token goes through the kernel; makes it where it is missing."""
        x, cache, mask = token.hidden, token.cache, token.mask
        if not self._fits or token.rotary is None or not isinstance(cache, QuantizedKVCache):
            return False
        layer = cache.layers[self.index]
        keys = layer.get_seq_length() + 1
        plain = not layer.is_sliding and (
            mask is None
            or (isinstance(mask, BandMask) and mask.sizes == (1, keys) and mask.n_keys == keys)
        )
        if not plain or named_backends() or x.dtype not in _TYPES:
            return False
        if (torch.is_grad_enabled() and x.requires_grad) or self._block.training:
            return False
        return self.kernel(x.dtype) is not None

    def kernel(self, dtype: torch.dtype) -> DecoderBlock | None:
        """Return the kernel for the parts as they lie now, if there is one and nobody watches."""
        # of a token's time this is not nothing: objects have left the caches since the last one
        if not self._fits or any(self._hooks) or dtype not in _TYPES:
            return None
        if dtype != self._dtype or not self._lie_still():
            self._kernel, self._dtype = self._made(dtype), dtype
            self._remember()
        return self._kernel

    def _lie_still(self) -> bool:
        """Whether all arrays are where the kernel was told that they are.

        A buffer that moves is another tensor; a parameter may stay and get other data.
        """
        for held, name, array in self._buffers:
            if held[name] is not array:
                return False
        for parameters, address in self._parameters:
            if parameters["weight"].data_ptr() != address:
                return False
        return True

    def _remember(self) -> None:
        """Note which arrays the kernel has."""
        sources: list[Any] = [group[0]._source[0] for group in self._layers]
        owners: list[Any] = [layer for group in self._layers for layer in group]
        owners += sources + [source.transform for source in sources]
        owners += [self._codec, self._codec.query_transform, self._codec.key_transform]
        self._buffers = [
            (owner._buffers, name, array)
            for owner in owners
            for name, array in owner._buffers.items()
            if name != "weight"  # which is empty
        ]
        self._parameters = [
            (norm._parameters, norm._parameters["weight"].data_ptr()) for norm in self._norms
        ]
        # the kernel has addresses, which stay good whatever a tensor's data is set to
        self._alive = [
            array.untyped_storage() for _, _, array in self._buffers if array is not None
        ]

    def _factors(self) -> tuple[Tensor | None, Tensor | None]:
        codec: Any = self._codec
        return codec.query_transform.factors[0], codec.key_transform.factors[0]

    def _made(self, dtype: torch.dtype) -> DecoderBlock | None:
        """Return the kernel for the parts as they lie now, if it takes them."""
        sources: list[Any] = [group[0]._source[0] for group in self._layers]
        stored = [[layer.stored for layer in group] for group in self._layers]
        arrays = [array for group in stored for weight in group for array in weight[:3]]
        arrays += [source._buffers["clip"] for source in sources]
        arrays += [factor for source in sources for factor in source.transform.factors]
        weights = [norm.weight for norm in self._norms]
        on_cpu = all(a is None or a.is_cpu for a in (*arrays, *weights))
        floats = all(a is None or a.dtype in (torch.float32, torch.uint8) for a in arrays)
        four = all(weight.bits == 4 for group in stored for weight in group)
        if not (on_cpu and floats and four and all(w.dtype == dtype for w in weights)):
            return None
        if any(BACKENDS.choose(group[0]._problem()).name != "cpu" for group in self._layers):
            return None
        layers = [
            QuantizedLinears(
                source.transform.factors,
                source.clip,
                source.bits,
                [weight.packed for weight in group],
                [weight.bias for weight in group],
            )
            for source, group in zip(sources, stored, strict=True)
        ]
        codec: Any = self._codec
        query_factor, key_factor = self._factors()
        return DecoderBlock(
            _TYPES[dtype],
            self._block.self_attn.head_dim,
            [(norm.weight.detach(), norm.variance_epsilon) for norm in self._norms],
            layers,
            query_factor,
            (key_factor, codec.key_clip, codec.key_bits),
            (None, codec.value_clip, codec.value_bits),
        )

    def run(self, token: Token) -> Tensor:
        """Return the hidden states after the block, and add to the cache."""
        kernel, x = self._kernel, token.hidden
        assert kernel is not None
        x = x if x.is_contiguous() else x.contiguous()
        batch, threads = x.shape[0], threads_beside_torch()
        (heads, kv_heads), dim = kernel.heads, kernel.head_dim
        cosine, sine = token.rotary
        rotary = cosine.contiguous(), sine.contiguous()
        query = torch.empty(batch, heads, 1, dim, dtype=x.dtype)
        keys, values = token.cache.layers[self.index].update_by(
            lambda key, value: kernel.before(x, rotary, query, key, value, threads=threads),
            (batch, kv_heads, 1, dim),
            x,
        )
        rule = {"is_causal": True} if token.mask is None else token.mask.rule
        attended: Any = attention(query, keys, values, scale=self.scaling, **rule)
        out = torch.empty(x.shape, dtype=x.dtype)
        kernel.after(attended.contiguous(), x, out, threads=threads)
        return out
