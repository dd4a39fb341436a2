"""One token of each sequence through all blocks of a model in one call, and prompts in pieces.

Between blocks, and around their attention, Python takes a tenth of the time. Where every block
has a kernel, the cache is ours and no sequence is padded, all of them are one call; everything else
goes the model's own way.
"""

from collections.abc import Callable
from threading import Lock
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from tesseral.attention.backends.native import decode_call
from tesseral.attention.registry import BACKENDS as ATTENTION
from tesseral.core.decoder_block import DecoderBlock, DecoderBlocks
from tesseral.core.packed import PackedTensor
from tesseral.llm.cache import QuantizedKVCache
from tesseral.llm.cache_argument import CACHE
from tesseral.llm.native_block import NativeBlock, named_backends, parts_of
from tesseral.runtime.threads import threads_beside_torch

MODELS = frozenset(
    f"{name}Model" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Olmo2")
)
"""transformers' models that are an embedding, blocks and a norm."""


PIECE = 512
"""Tokens of a prompt, all sequences together, that are read at a time."""


class NativeModel(nn.Module):
    """Before a class of models: a token through our kernels, a long prompt piece by piece."""

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
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        own: Any = super().forward
        past_key_values = kwargs.pop(CACHE, past_key_values)
        config: Any = self.config
        if (
            isinstance(past_key_values, QuantizedKVCache)
            and use_cache is not False
            and not any(value is not None for value in kwargs.values())
            and not (config.output_hidden_states or config.output_attentions)
        ):
            hidden = self._one_token(past_key_values, **inputs)
            if hidden is None and not _angles_depend_on_length(self.rotary_emb):
                hidden = _in_pieces(own, past_key_values, **inputs)
            if hidden is not None:
                return BaseModelOutputWithPast(last_hidden_state=hidden, **{CACHE: past_key_values})
        return own(**inputs, **{CACHE: past_key_values}, use_cache=use_cache, **kwargs)

    def _one_token(
        self,
        cache: QuantizedKVCache,
        *,
        input_ids: Tensor | None,
        attention_mask: Any,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor | None:
        """Return what comes out behind the last norm, where one call takes a token."""
        if inputs_embeds is not None or not isinstance(input_ids, Tensor):
            return None
        if input_ids.ndim != 2 or input_ids.shape[1] != 1:
            return None
        stack = self.__dict__.get("_stack")
        if stack is None or not stack.is_of(self):
            stack = self.__dict__["_stack"] = Stack(self)
        hidden = stack.token(input_ids, attention_mask, position_ids, cache)
        norm: Any = self.norm
        return None if hidden is None else norm(hidden)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_stack"}


def _angles_depend_on_length(rotary: Any) -> bool:
    """Return whether tokens get other angles when more tokens are read with them."""
    kind = str(getattr(rotary, "rope_type", ""))
    return "dynamic" in kind or kind == "longrope"


def _in_pieces(
    forward: Callable[..., Any],
    cache: QuantizedKVCache,
    *,
    input_ids: Tensor | None,
    attention_mask: Any,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
) -> Tensor | None:
    """Return the hidden states of a long prompt, read piece after piece, or ``None``.

    Hidden states then take little memory, and the same memory again and again: fresh pages for
    those of a whole prompt took a quarter of the time.
    """
    given = inputs_embeds if input_ids is None else input_ids
    whole = attention_mask is None or (
        isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
    )
    if not isinstance(given, Tensor) or not given.is_cpu or not whole or torch.is_grad_enabled():
        return None
    step = max(1, PIECE // max(1, given.shape[0]))
    length, past = given.shape[1], cache.get_seq_length()
    if length <= step:
        return None
    found = []
    for begin in range(0, length, step):
        end = min(begin + step, length)
        part = slice(begin, end)
        output = forward(
            input_ids=None if input_ids is None else input_ids[:, part],
            inputs_embeds=None if inputs_embeds is None else inputs_embeds[:, part],
            attention_mask=None if attention_mask is None else attention_mask[:, : past + end],
            position_ids=None if position_ids is None else position_ids[:, part],
            use_cache=True,
            **{CACHE: cache},
        )
        found.append(output.last_hidden_state)
    return torch.cat(found, dim=1)


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
        self._known: list[Any] = []
        self._lock = Lock()

    def is_of(self, model: Any) -> bool:
        """Return whether the blocks are those that the model has now."""
        now = list(model.layers)[: model.config.num_hidden_layers]
        return len(now) == len(self._blocks) and all(
            a is b for a, b in zip(now, self._blocks, strict=True)
        )

    def token(
        self, tokens: Tensor, mask: Any, position_ids: Tensor | None, cache: QuantizedKVCache
    ) -> Tensor | None:
        """Return the hidden states behind the last block and add to the cache, or ``None``."""
        if not self._may(tokens, mask):
            return None
        with self._lock:  # the kernel is told where one cache lies, and then runs
            return self._token(tokens, position_ids, cache)

    def _token(
        self, tokens: Tensor, position_ids: Tensor | None, cache: QuantizedKVCache
    ) -> Tensor | None:
        model = self._model
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
            self._kernels, self._known = kernels, []
        return self._kernel

    def _has_room(self, kernel: DecoderBlocks, cache: QuantizedKVCache) -> bool:
        """Make room for a token in all layers, and tell the kernel where caches lie."""
        caches = [cache.layers[parts.index].make_room() for parts in self._parts]
        if None in caches:
            return False
        lengths = {cache.layers[parts.index].get_seq_length() for parts in self._parts}
        if len(lengths) != 1:
            return False
        firsts = [side[0] for pair in caches for side in pair]
        known = self._known
        if len(known) != len(firsts) or any(
            known_one() is not x for known_one, x in zip(known, firsts, strict=True)
        ):
            if any(len(side) != 3 for pair in caches for side in pair):
                return False  # not all are codes with scales and offsets
            if len({tuple(map(_lie, (*key, *value))) for key, value in caches}) != 1:
                return False  # attention is described once for all layers
            kernel.set_caches(caches)
            # the kernel has addresses; whoever holds the cache may let it go
            self._known = [ref(x) for x in firsts]
        return True


def _lie(array: Tensor) -> tuple[Any, ...]:
    return array.shape, array.stride()
