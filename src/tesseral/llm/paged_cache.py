"""The cache of continuous batching: keys and values of all requests, in blocks of one pool.

transformers says which request owns which blocks, moves, shares and frees them. What lies in
a block, and how it is attended to, is ours: full attention reads the pool in place through
block tables, and a model with codecs stores codes and scales in place of numbers.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from tesseral._errors import BackendError, ShapeError
from tesseral.attention import attention_varlen
from tesseral.llm.paged_rows import RowLayout, States, common_width
from tesseral.quantization.kvcodec import KVCodec

PACKED = torch.empty(1, 1, 0, 0, dtype=torch.bool, device="meta")
"""In place of a mask: each token sees those of its own request up to itself.

It has no elements anywhere, so that a model that computes with its mask fails.
"""

_INDICES_TOGETHER = "kwargs" in inspect.signature(PagedAttentionCache.update).parameters
"""Whether this version of transformers takes the places to read and write as one mapping."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layers:
    """What the layers with one block table see in a step.

    Attributes
    ----------
    cu_seqlens : int64 array of shape (n_requests + 1,)
        Where the keys of each request start and, last, end.
    tables : int64 array of shape (n_requests, max_blocks), or None
        Blocks of the pool by request; ``None`` under a sliding window, whose keys are gathered.
    window : (int, int) or None
        Keys before and after its own that a query sees; -1 is all of them.
    """

    cu_seqlens: np.ndarray[Any, Any]
    tables: np.ndarray[Any, Any] | None
    window: tuple[int, int] | None


class PagedKVCache(PagedAttentionCache):  # type: ignore[misc]  # transformers is untyped to mypy
    """Keys and values of all requests of a batch, read in place by our attention.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Whose layers it is for.
    config : transformers.ContinuousBatchingConfig
        Resolved; says how many blocks there are.
    distributed_helper
        As transformers' manager has it.
    codec : KVCodec, optional
        One of those that encode the keys and values of the model's layers, whose encodings
        are all of one format.
    """

    def __init__(
        self, model: Any, config: Any, distributed_helper: Any, codec: KVCodec | None = None
    ) -> None:
        text, dtype = model.config.get_text_config(), model.dtype
        self._head_dim = head_dim_of(text)
        self._rows = (
            None if codec is None else _row_layouts(codec, self._head_dim, dtype, model.device)
        )
        if self._rows is not None:
            # to transformers a row of codes and scales is a head of so many bytes
            text, dtype = copy.deepcopy(text), torch.uint8
            text.head_dim = common_width(self._rows)
        keeps = getattr(model, "_supports_logits_to_keep", None)
        options = {
            "config": text,
            "continuous_batching_config": config,
            "device": model.device,
            "distributed_helper": distributed_helper,
            "tp_plan": getattr(model, "tp_plan", {}),
            "dtype": dtype,
            "model_supports_logits_to_keep": keeps is not None and keeps(),
        }
        super().__init__(**accepted_by(PagedAttentionCache.__init__, options))
        self._queries = np.zeros(1, dtype=np.int64)
        self._groups: list[_Layers] = []

    def begin_step(self, requests: Iterable[Any]) -> None:
        """Take note of the requests of the next forward pass, in the order of their tokens.

        Parameters
        ----------
        requests : iterable of transformers' FutureRequestState
            Already counted as processed: their position is that after the pass.
        """
        spans = [(r.state.request_id, r.query_length, r.state.position_offset) for r in requests]
        self._queries = _edges(length for _, length, _ in spans)
        self._groups = [_layers(allocator, spans) for allocator in self._allocators]

    def extend_read_and_write_indices(
        self,
        request_id: str,
        past_length: int,
        query_length: int,
        read_index: Sequence[list[int]] | None,
        write_index: Sequence[list[int]],
    ) -> None:
        """Append where a request's new tokens go and, under a window only, where its keys are.

        Other layers read the pool through block tables, so no list of all tokens is made.
        """
        for group, allocator in enumerate(self._allocators):
            span = request_id, past_length, query_length
            write_index[group].extend(allocator.get_write_indices(*span))
            if read_index is not None and _window(allocator) is not None:
                read_index[group].extend(allocator.get_read_indices(*span))

    def update(
        self, key_states: States, value_states: States, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[States, States]:
        """Let the attention function have this cache, which it asks to :meth:`attend`.

        Layers call this from transformers 5.24 on, before they attend; until then the cache itself
        was among what the attention function gets.
        """
        del layer_idx
        kwargs["cache"] = self
        return key_states, value_states

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: States,
        value: States,
        indices: Mapping[str, Any],
        *,
        sliding_window: int | None = None,
        **rules: Any,
    ) -> torch.Tensor:
        """Store the new keys and values of a layer, and attend to all of their requests.

        Parameters
        ----------
        layer : int
            Number of the layer.
        query : tensor of shape (1, q_heads, total_q, head_dim)
            The new tokens of all requests of the step, one request after another.
        key, value : tensor or PackedTensor of shape (1, kv_heads, total_q, head_dim)
            As they are to be stored.
        indices : mapping
            What transformers passed to the attention function beside them: the places to
            write to and read from.
        sliding_window : int, optional
            Size of the window, the query's own key included, if the model names one.
        **rules
            ``scale``, ``softcap`` and ``sinks`` of :func:`tesseral.attention.attention`.

        Returns
        -------
        tensor of shape (1, total_q, q_heads, head_dim)

        Raises
        ------
        ShapeError
            If keys or values are not of the shape that the cache was made for.
        BackendError
            If the model means another window than its config says.
        """
        number = self._group_of(layer)
        group = self._groups[number]
        if sliding_window is not None and group.window != (sliding_window - 1, -1):
            raise BackendError(
                f"PagedKVCache: layer {layer} asks for a window of {sliding_window} tokens, but "
                "the config of its model names none or another; use generate() for this model."
            )
        new = [self._write(states, side) for side, states in enumerate((key, value))]
        if group.tables is None:
            stored = self._gather(layer, new, indices)
        else:
            stored = self._pools(layer)
            for pool, rows in zip(stored, new, strict=True):
                pool.flatten(0, 1).index_copy_(0, indices["write_index"][number], rows)
        keys, values = (self._read(array, side) for side, array in enumerate(stored))
        output: Any = attention_varlen(
            query[0].transpose(0, 1),
            keys,
            values,
            cu_seqlens_q=self._queries,
            cu_seqlens_k=group.cu_seqlens,
            block_tables=group.tables,
            is_causal=True,
            window=group.window,
            **rules,
        )
        attended: torch.Tensor = output[None]
        return attended

    @property
    def _allocators(self) -> list[Any]:
        """What owns the block tables, in the order of transformers' indices."""
        by_type = getattr(self, "cache_allocators", None)  # from transformers 5.23 or before it
        return self.group_cache_managers if by_type is None else list(by_type.values())

    def _group_of(self, layer: int) -> int:
        allocators = getattr(self, "layer_to_allocator", None)
        found = (
            self.layer_index_to_group_indices[layer][0]
            if allocators is None
            else allocators[layer].index
        )
        return int(found)

    def _pools(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values as pools of shape (n_blocks, block_size, kv_heads, width)."""
        allocators = getattr(self, "layer_to_allocator", None)
        if allocators is not None:
            key, value = allocators[layer].get_cache_for_block_table(layer)
            return key, value
        index = self.layer_index_to_group_indices[layer][1]
        shape = (-1, self.block_size, *self.cache_shape[1:])
        return self.key_cache[index].view(shape), self.value_cache[index].view(shape)

    def _gather(
        self, layer: int, new: list[torch.Tensor], indices: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store rows, and return all that is seen under a window: (total_k, kv_heads, width).

        The window's keys lie in a ring, which new ones overwrite: they are read before.
        """
        states = [rows.transpose(0, 1)[None] for rows in new]
        if _INDICES_TOGETHER:
            key, value = super().update(*states, layer, dict(indices))
            return key[0].transpose(0, 1), value[0].transpose(0, 1)
        key, value = super().update(*states, layer, indices["read_index"], indices["write_index"])
        return key, value

    def _write(self, states: States, side: int) -> torch.Tensor:
        """Return new keys (side 0) or values as rows (total_q, kv_heads, width) to store."""
        if states.shape[-1] != self._head_dim:
            raise ShapeError(
                f"PagedKVCache: keys and values must be of the model's head_dim={self._head_dim}, "
                f"got {states.shape[-1]}; use generate() for this model."
            )
        if self._rows is not None:
            states = self._rows[side].write(states, common_width(self._rows))
        return cast(torch.Tensor, states)[0].transpose(0, 1)

    def _read(self, stored: torch.Tensor, side: int) -> States:
        return stored if self._rows is None else self._rows[side].read(stored)


def head_dim_of(config: Any) -> int:
    """Return the size of a key of a model with this text config."""
    given = getattr(config, "head_dim", None)
    return int(given or config.hidden_size // config.num_attention_heads)


def accepted_by(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return those of the options that a function of this version of transformers takes."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in names}


def _row_layouts(
    codec: KVCodec, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[RowLayout, RowLayout]:
    """Return how rows hold what a codec makes of keys and values of a type."""
    nothing = torch.empty(1, 1, 0, head_dim, dtype=dtype, device=device)
    with torch.no_grad():
        keys, values = codec.encode(nothing, nothing)
    return RowLayout(keys), RowLayout(values)


def _layers(allocator: Any, spans: list[tuple[str, int, int]]) -> _Layers:
    """Return what the layers of an allocator see, for requests (name, new tokens, length)."""
    window = _window(allocator)
    if window is not None:
        lengths = (new + min(length - new, window - 1) for _, new, length in spans)
        return _Layers(_edges(lengths), None, (window - 1, -1))
    width = max((len(allocator.block_table[name]) for name, _, _ in spans), default=0)
    tables = torch.zeros(len(spans), width, dtype=torch.int64)
    for row, (name, new, length) in zip(tables, spans, strict=True):
        allocator.fill_block_table(name, length - new, new, row)
    return _Layers(_edges(length for _, _, length in spans), tables.numpy(), None)


def _window(allocator: Any) -> int | None:
    size: int | None = getattr(allocator, "sliding_window", None)
    return size


def _edges(lengths: Iterable[int]) -> np.ndarray[Any, Any]:
    return np.cumsum([0, *lengths], dtype=np.int64)
