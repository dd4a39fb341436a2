"""One token of each sequence through all blocks of a model in one call.

Between blocks, and around their attention, Python takes a tenth of the time. Where every block
has a kernel, the cache is ours and no sequence is padded, all of them are one call; everything else
goes the model's own way.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from tesseral.attention.backends.native import decode_call
from tesseral.attention.registry import BACKENDS as ATTENTION
from tesseral.core.decoder_block import DecoderBlock, DecoderBlocks
from tesseral.core.packed import PackedTensor
from tesseral.llm.cache import QuantizedKVCache
from tesseral.llm.native_block import NativeBlock, named_backends, parts_of
from tesseral.runtime.threads import threads_beside_torch

MODELS = frozenset({"LlamaModel", "MistralModel", "Qwen2Model"})
"""transformers' models that are an embedding, blocks that we know and a norm."""


class NativeModel(nn.Module):
    """Before a class of models: one token of each sequence through our kernels."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return what the model's own ``forward`` returns."""
        if (
            inputs_embeds is None
            and isinstance(input_ids, Tensor)
            and input_ids.ndim == 2
            and input_ids.shape[1] == 1
            and isinstance(past_key_values, QuantizedKVCache)
            and use_cache is not False
            and not any(value is not None for value in kwargs.values())
        ):
            stack = self.__dict__.get("_stack")
            if stack is None:
                stack = self.__dict__["_stack"] = Stack(self)
            hidden = stack.token(input_ids, attention_mask, position_ids, past_key_values)
            if hidden is not None:
                return BaseModelOutputWithPast(
                    last_hidden_state=self.norm(hidden), past_key_values=past_key_values
                )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_stack"}


class Stack:
    """The blocks of a model, and the kernel made of theirs."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._blocks = list(model.layers)[: model.config.num_hidden_layers]
        self._fits = bool(self._blocks) and all(isinstance(b, NativeBlock) for b in self._blocks)
        self._parts = [parts_of(block) for block in self._blocks] if self._fits else []
        self._hooks = [
            hooks
            for module in self._blocks
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self._kernels: list[DecoderBlock] = []
        self._kernel: DecoderBlocks | None = None
        self._arrays: list[Any] = []

    def token(
        self, tokens: Tensor, mask: Any, position_ids: Tensor | None, cache: QuantizedKVCache
    ) -> Tensor | None:
        """Return the hidden states behind the last block and add to the cache, or ``None``."""
        model = self._model
        if not self._may(tokens, mask):
            return None
        x = model.embed_tokens(tokens)
        kernel = self._made(x.dtype)
        if kernel is None or not self._has_room(kernel, cache):
            return None
        position = cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.tensor([[position]])
        rotary = model.rotary_emb(x, position_ids=position_ids)
        layer = cache.layers[self._parts[0].index]
        query = x.new_empty(x.shape[0], kernel.heads[0], 1, kernel.head_dim)
        keys, values = (side.states_with_one_more for side in layer.sides)
        if not isinstance(keys, PackedTensor) or not isinstance(values, PackedTensor):
            return None
        call = decode_call(query, keys, values, self._parts[0].scaling)
        if call is None:
            return None
        out = torch.empty_like(x)
        angles = rotary[0].contiguous(), rotary[1].contiguous()
        kernel.token(x, angles, position, call[0], out, threads=threads_beside_torch())
        for parts in self._parts:
            cache.layers[parts.index].add_one()
        return out

    def _may(self, tokens: Tensor, mask: Any) -> bool:
        """Whether blocks may be left out of sight, and no sequence is padded."""
        if not self._fits or torch.is_grad_enabled() or not tokens.is_cpu or self._model.training:
            return False
        if any(self._hooks) or named_backends() or ATTENTION.asked is not None:
            return False
        return mask is None or (isinstance(mask, Tensor) and mask.ndim == 2 and bool(mask.all()))

    def _made(self, dtype: torch.dtype) -> DecoderBlocks | None:
        """Return the kernel of all blocks as they lie now, if each has one."""
        kernels: list[Any] = [parts.kernel(dtype) for parts in self._parts]
        if kernels != self._kernels:
            alike = all(kernels) and len({parts.scaling for parts in self._parts}) == 1
            self._kernel = DecoderBlocks(kernels) if alike else None
            self._kernels, self._arrays = kernels, []
        return self._kernel

    def _has_room(self, kernel: DecoderBlocks, cache: QuantizedKVCache) -> bool:
        """Make room for a token in all layers, and tell the kernel where caches lie."""
        caches = [cache.layers[parts.index].make_room() for parts in self._parts]
        if None in caches:
            return False
        lengths = {cache.layers[parts.index].get_seq_length() for parts in self._parts}
        if len(lengths) != 1:
            return False
        same = len(caches) == len(self._arrays) and all(
            new[0] is old[0] and new[1] is old[1]
            for new, old in zip(caches, self._arrays, strict=True)
        )
        if not same:
            if any(len(side) != 3 for pair in caches for side in pair):
                return False  # not all are codes with scales and offsets
            kernel.set_caches(caches)
            self._arrays = caches
        return True
