"""A key-value cache that holds what each layer's codec makes of keys and values."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from tesseral._errors import ParameterError, ShapeError
from tesseral.core.packed import PackedTensor
from tesseral.llm.attention_interface import IMPLEMENTATION, EncodedTensor
from tesseral.llm.paged_rows import States
from tesseral.quantization.kvcodec import KVCodec

_ROOM = 64
"""Lengths that a buffer can hold are multiples of this."""


class QuantizedKVCache(Cache):  # type: ignore[misc]  # transformers is untyped to mypy
    """The cache of a model whose attention modules have a ``kv_codec``.

    Only new tokens are encoded; what is stored goes to our attention as it is. Growing costs
    amortised constant time for a token and leaves at most a quarter of the room unused. Every
    token is kept, also where a sliding window no longer reaches, and gradients do not pass.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A quantised model with ``attn_implementation="tesseral"``.

    Raises
    ------
    ParameterError
        If the model has layers without codec or another attention implementation.

    Examples
    --------
    >>> cache = QuantizedKVCache(model)  # doctest: +SKIP
    >>> model.generate(**inputs, past_key_values=cache)  # doctest: +SKIP
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(layers=[QuantizedKVLayer(codec) for codec in kv_codecs(model)])

    @property
    def nbytes(self) -> int:
        """Bytes allocated for codes, scales and offsets, unused room included."""
        return sum(layer.nbytes for layer in self.layers)


class QuantizedKVLayer(CacheLayerMixin):  # type: ignore[misc]
    """Encoded keys and values of one layer.

    Parameters
    ----------
    codec : KVCodec
        Encodes keys and values of this layer; shared, never copied.

    Attributes
    ----------
    keys, values : PackedTensor or EncodedTensor of shape (batch, kv_heads, length, head_dim)
        All that is stored, as views; ``None`` before the first update.
    """

    is_sliding = False
    is_croppable = True
    keys: States | None
    values: States | None

    def __init__(self, codec: KVCodec) -> None:
        super().__init__()
        self._codec = codec
        self._sides: tuple[_Side, ...] = ()  # keys and values, once initialised
        self._length = 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated, unused room included."""
        return sum(side.nbytes for side in self._sides)

    @torch.no_grad()
    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Prepare storage for states of this batch, these heads, this type and device."""
        none_of_keys, none_of_values = key_states[:, :, :0], value_states[:, :, :0]
        keys, values = self._codec.encode(none_of_keys, none_of_values)
        self._sides = _Side(keys), _Side(values)
        self.is_initialized = True
        self._refresh()

    @torch.no_grad()
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[States, States]:
        """Encode and append new tokens; return all of them.

        Parameters
        ----------
        key_states, value_states : tensor of shape (batch, kv_heads, new, head_dim)
            Keys after rotary embedding, and values.

        Returns
        -------
        keys, values : PackedTensor or EncodedTensor of shape (batch, kv_heads, length, head_dim)
            Views, good until the next update.

        Raises
        ------
        ShapeError
            If batch or heads are not those of the tokens stored.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        encoded = self._codec.encode(key_states, value_states)
        for side, new in zip(self._sides, encoded, strict=True):
            side.write(new, self._length)
        self._length += key_states.shape[-2]
        return self._refresh()

    def get_seq_length(self) -> int:
        """Return the number of tokens stored."""
        return self._length

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next ``query_length`` queries meet, and the first's position."""
        return self._length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens; the number is negative or zero.

        Raises
        ------
        ParameterError
            If it is positive.
        """
        if tokens_to_remove > 0:
            raise ParameterError(
                f"QuantizedKVLayer: crop({tokens_to_remove}) must be called with minus the number "
                "of tokens to remove."
            )
        self._length = max(0, self._length + tokens_to_remove)
        if self.is_initialized:
            self._refresh()

    def reset(self) -> None:
        """Forget everything and free the memory."""
        self._sides, self._length, self.is_initialized = (), 0, False
        self.keys = self.values = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let batch row ``i`` go on from row ``beam_idx[i]``."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only the batch rows ``indices``, in their order."""
        self._map(lambda array: array[indices.to(array.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row ``repeats`` times."""
        self._map(lambda array: array.repeat_interleave(repeats, dim=0))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = type(self)(self._codec)
        memo[id(self)] = clone
        if self.is_initialized:
            clone._sides, clone._length = copy.deepcopy(self._sides, memo), self._length
            clone.is_initialized = True
            clone._refresh()
        return clone

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.is_initialized:
            for side in self._sides:
                side.arrays = [change(array) for array in side.arrays]
            self._refresh()

    def _refresh(self) -> tuple[States, States]:
        """Let ``keys`` and ``values`` be what is stored now, and return them."""
        keys, values = (side.view(self._length) for side in self._sides)
        self.keys, self.values = keys, values
        return keys, values


class _Side:
    """The keys or the values of one layer, in arrays that grow along the token axis.

    Parameters
    ----------
    encoded : PackedTensor or tensor of shape (batch, kv_heads, 0, head_dim)
        An encoding of no tokens; says which arrays there are.
    """

    def __init__(self, encoded: States) -> None:
        self._empty = encoded
        self.arrays = _arrays(encoded)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def write(self, encoded: States, start: int) -> None:
        """Put new tokens at position ``start``, the end of those stored."""
        self.arrays = [
            _write(array, new, start)
            for array, new in zip(self.arrays, _arrays(encoded), strict=True)
        ]

    def view(self, length: int) -> States:
        """Return the first ``length`` tokens without a copy."""
        parts = [array[:, :, :length] for array in self.arrays]
        if not isinstance(self._empty, PackedTensor):
            return parts[0].as_subclass(EncodedTensor)
        data, scale, *offset = parts
        return replace(self._empty, data=data, scale=scale, offset=offset[0] if offset else None)


def _arrays(encoded: States) -> list[torch.Tensor]:
    if not isinstance(encoded, PackedTensor):
        return [encoded]
    arrays = (encoded.data, encoded.scale, encoded.offset)
    return [array for array in arrays if array is not None]


def _write(array: torch.Tensor, new: torch.Tensor, start: int) -> torch.Tensor:
    """Write ``new`` at token ``start`` of ``array``, or of a longer copy where it does not fit."""
    (batch, heads, room, width), end = array.shape, start + new.shape[2]
    if new.shape[:2] != (batch, heads):
        raise ShapeError(
            f"QuantizedKVCache: new tokens for (batch, kv_heads) = {tuple(new.shape[:2])} do not "
            f"fit those stored for {(batch, heads)}; reset the cache or make another."
        )
    if end > room:
        room = -(-max(end, room + room // 4) // _ROOM) * _ROOM
        longer = array.new_empty((batch, heads, room, width))
        longer[:, :, :start] = array[:, :, :start]
        array = longer
    array[:, :, start:end] = new
    return array


def kv_codecs(model: Any) -> list[KVCodec]:
    """Return the codecs of a model's attention modules by layer.

    Raises
    ------
    ParameterError
        If some layer has none, or attention cannot read what they encode.
    """
    where = f"QuantizedKVCache: {type(model).__name__}"
    modules = [m for m in model.modules() if getattr(m, "kv_codec", None) is not None]
    if not modules:
        raise ParameterError(
            f"{where} has no kv_codec on any attention module; quantise the model first, or use "
            "transformers' DynamicCache."
        )
    by_layer = {module.layer_idx: module.kv_codec for module in modules}
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    missing = sorted(set(range(n_layers)) - by_layer.keys())
    if missing:
        raise ParameterError(f"{where} has no kv_codec in layers {missing} of {n_layers}.")
    implementation = model.config._attn_implementation
    if implementation != IMPLEMENTATION:
        raise ParameterError(
            f"{where} uses attn_implementation={implementation!r}, which cannot read encoded keys; "
            f"call model.set_attn_implementation({IMPLEMENTATION!r}) first."
        )
    return [by_layer[index] for index in range(n_layers)]
