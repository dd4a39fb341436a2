"""A key-value cache that holds what each layer's codec makes of keys and values."""

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from tesseral._errors import ParameterError
from tesseral.llm.attention_interface import IMPLEMENTATION
from tesseral.llm.paged_rows import States
from tesseral.llm.token_store import TokenStore
from tesseral.quantization.kvcodec import KVCodec


class QuantizedKVCache(Cache):  # type: ignore[misc]  # transformers is untyped to mypy
    """The cache of a model whose attention modules have a ``kv_codec``.

    Only new tokens are encoded; what is stored goes to our attention as it is. Room is set
    aside for the model's longest sequence and taken as tokens come, so nothing is copied while
    the cache grows; where a system cannot do so, it grows by a quarter at a time. Of layers
    with a sliding window only the window is kept. Gradients do not pass.

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
        config: Any = model.config
        text = config.get_text_config(decoder=True)
        expected = getattr(text, "max_position_embeddings", None) or 0
        super().__init__(
            layers=[
                QuantizedKVLayer(codec, window, 0 if window else expected)
                for codec, window in zip(kv_codecs(model), windows_of(text), strict=True)
            ]
        )

    @property
    def nbytes(self) -> int:
        """Bytes taken by codes, scales and offsets; see :attr:`TokenStore.nbytes`."""
        return sum(layer.nbytes for layer in self.layers)


class QuantizedKVLayer(CacheLayerMixin):  # type: ignore[misc]
    """Encoded keys and values of one layer.

    Parameters
    ----------
    codec : KVCodec
        Encodes keys and values of this layer; shared, never copied.
    window : int, optional
        Size of the layer's sliding window, the query's own token included. Only the tokens
        that the next query can see are kept, unless the past is recorded.
    expected : int
        Tokens to have room for from the start; see :class:`TokenStore`.

    Attributes
    ----------
    keys, values : PackedTensor or EncodedTensor of shape (batch, kv_heads, kept, head_dim)
        All that is kept, as views; ``None`` before the first update.
    """

    is_croppable = True

    def __init__(self, codec: KVCodec, window: int | None = None, expected: int = 0) -> None:
        super().__init__()
        self._codec, self._window, self._expected = codec, window, expected
        self.is_sliding = window is not None
        self._sides: tuple[TokenStore, ...] = ()  # keys and values, once initialised
        self._length = 0
        self._records = False

    @property
    def keys(self) -> States | None:
        """See the class."""
        return self._sides[0].states if self._sides else None

    @keys.setter
    def keys(self, _: None) -> None:
        """Do nothing: the base class begins with ``None``."""

    @property
    def values(self) -> States | None:
        """See the class."""
        return self._sides[1].states if self._sides else None

    @values.setter
    def values(self, _: None) -> None:
        """Do nothing, likewise."""

    @property
    def nbytes(self) -> int:
        """Bytes taken; see :attr:`TokenStore.nbytes`."""
        return sum(side.nbytes for side in self._sides)

    @torch.no_grad()
    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Prepare storage for states of this batch, these heads, this type and device."""
        sides = self._codec.encode(key_states[:, :, :0], value_states[:, :, :0])
        self._sides = tuple(TokenStore(nothing, self._expected) for nothing in sides)
        self.is_initialized = True

    @torch.no_grad()
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[States, States]:
        """Encode and append new tokens; return all that queries at their places may see.

        Parameters
        ----------
        key_states, value_states : tensor of shape (batch, kv_heads, new, head_dim)
            Keys after rotary embedding, and values.

        Returns
        -------
        keys, values : PackedTensor or EncodedTensor of shape (batch, kv_heads, length, head_dim)
            Views, good until the next update; as many tokens as :meth:`get_mask_sizes` says.

        Raises
        ------
        ShapeError
            If batch or heads are not those of the tokens stored.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        codec, (keys, values) = self._codec, self._sides
        keep = None if self._records or self._window is None else self._window - 1
        visible = self.get_mask_sizes(key_states.shape[-2])[0]
        stored = (
            keys.append_by(lambda at: codec.encode_key(key_states, at), key_states.shape, keep),
            values.append_by(
                lambda at: codec.encode_value(value_states, at), value_states.shape, keep
            ),
        )
        self._length += key_states.shape[-2]
        return _last(stored[0], visible), _last(stored[1], visible)

    @torch.no_grad()
    def update_by(
        self,
        write: Callable[[list[torch.Tensor], list[torch.Tensor]], Any],
        shape: tuple[int, int, int, int],
        like: torch.Tensor,
    ) -> tuple[States, States]:
        """Append tokens that ``write`` encodes; for layers without a sliding window.

        Parameters
        ----------
        write : callable
            Fills the arrays where keys and values of the new tokens go.
        shape : (batch, kv_heads, new, head_dim)
            What is appended.
        like : tensor
            Of the type and on the device of the states that are encoded.

        Returns
        -------
        keys, values
            As of :meth:`update`.
        """
        if not self.is_initialized:
            nothing = like.new_empty((*shape[:2], 0, shape[3]))
            self.lazy_initialization(nothing, nothing)
        keys, values = self._sides
        stored: list[States] = []

        def write_both(key_places: Any) -> Any:
            stored.append(values.append_by(lambda places: write(key_places, places or []), shape))

        held = keys.append_by(write_both, shape)
        self._length += shape[2]
        return held, stored[0]

    @property
    def sides(self) -> tuple[TokenStore, ...]:
        """Where keys and values are held; empty before the first token."""
        return self._sides

    def make_room(self) -> tuple[list[torch.Tensor], list[torch.Tensor]] | None:
        """Return the arrays of keys and of values, with room for one token more.

        ``None`` before the first token, with a sliding window, and where keys and values are not
        all packed.
        """
        if not self.is_initialized or self.is_sliding:
            return None
        keys, values = (side.make_room() for side in self._sides)
        return None if keys is None or values is None else (keys, values)

    def add_one(self) -> None:
        """Hold one token more, which is written into the arrays of :meth:`make_room`."""
        for side in self._sides:
            side.add_one()
        self._length += 1

    def get_seq_length(self) -> int:
        """Return the number of tokens seen so far."""
        return self._length

    def get_max_length(self) -> int:
        """Return the size of the window, -1 where there is none."""
        return self._window or -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next ``query_length`` queries meet, and the first's position."""
        past = self._length if self._window is None else min(self._length, self._window - 1)
        return past + query_length, self._length - past

    def activate_past_recording(self) -> None:
        """Keep what leaves the window, until :meth:`crop` says which tokens stay."""
        self._records = True

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens; the number is negative or zero.

        Raises
        ------
        ParameterError
            If it is positive, or tokens are gone that would come back into the window.
        """
        if tokens_to_remove > 0:
            raise ParameterError(
                f"QuantizedKVLayer: crop({tokens_to_remove}) must be called with minus the number "
                "of tokens to remove."
            )
        if not self.is_initialized:
            return
        length = max(0, self._length + tokens_to_remove)
        needed = length if self._window is None else min(length, self._window - 1)
        if self._sides[0].length - (self._length - length) < needed:
            raise ParameterError(
                f"QuantizedKVLayer: crop({tokens_to_remove}) would need tokens that have left the "
                f"window of {self._window}; call activate_past_recording() before they are added."
            )
        for side in self._sides:
            side.drop_last(self._length - length)
            side.keep_last(needed)
        self._length = length

    def reset(self) -> None:
        """Forget everything and free the memory."""
        self._sides, self._length, self.is_initialized = (), 0, False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let batch row ``i`` go on from row ``beam_idx[i]``."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only the batch rows ``indices``, in their order."""
        self._change_rows(lambda array: array[indices.to(array.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row ``repeats`` times."""
        self._change_rows(lambda array: array.repeat_interleave(repeats, dim=0))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = type(self)(self._codec, self._window, self._expected)
        memo[id(self)] = clone
        clone._length, clone._records = self._length, self._records
        if self.is_initialized:
            clone._sides, clone.is_initialized = copy.deepcopy(self._sides, memo), True
        return clone

    def _change_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.is_initialized:
            for side in self._sides:
                side.change_rows(change)


def _last(states: States, count: int) -> States:
    length = states.shape[2]
    return states if length == count else states[:, :, length - count :]


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


def windows_of(text: Any) -> list[int | None]:
    """Return the size of each layer's sliding window, None where there is none."""
    size = getattr(text, "sliding_window", None)
    types = getattr(text, "layer_types", None)
    if types is None:  # all layers alike
        return [size] * text.num_hidden_layers
    return [size if kind == "sliding_attention" else None for kind in types]
