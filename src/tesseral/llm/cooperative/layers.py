"""The layers of caches that attend by themselves, and those that do so on the device."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from tesseral._errors import BackendError, ParameterError
from tesseral.attention import attention
from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.parts import PartialSum, attend, part_of
from tesseral.llm.cooperative.room import Pair, Room, dense, encode
from tesseral.llm.cooperative.shape import DENSE_TOKENS
from tesseral.llm.placed import PlacedStates
from tesseral.quantization.kvcodec import KVCodec

FEW_ROWS = 32
"""Query rows of a group up to which a read of the keys is shared: here the CPU attends."""


class PlacedLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer that knows how to attend to them.

    Parameters
    ----------
    room : Room
        Where they lie.
    codec : KVCodec or None
        Encodes them; ``None`` keeps them as they are.
    link : Link
        The way between device and host.
    """

    is_croppable = True
    is_sliding = False

    def __init__(self, room: Room, codec: KVCodec | None, link: Link) -> None:
        super().__init__()
        self.room, self.link = room, link
        self._codec, self._length = codec, 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: all memory was taken with the cache."""

    @torch.no_grad()
    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[PlacedStates, PlacedStates]:
        """Encode and store new tokens; return what attends to all of them.

        Parameters
        ----------
        key_states, value_states : tensor of shape (batch, kv_heads, new, head_dim)
            Keys after rotary embedding, and values.

        Raises
        ------
        ShapeError, ParameterError
            If they are of another batch than was planned, or too many.
        """
        self._check(key_states.shape)
        self.link.between("rest of the model", begins=False)
        self._write(encode(self._codec, key_states, value_states))
        self._length += key_states.shape[2]
        given = key_states.shape
        placed = PlacedStates(torch.Size((*given[:2], self._length, given[3])), self._attend)
        return placed, placed

    def get_seq_length(self) -> int:
        """Return the number of tokens held."""
        return self._length

    def get_max_length(self) -> int:
        """Return how many tokens fit."""
        return self.room.room

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys the next queries meet, and the first's position."""
        return self._length + query_length, 0

    def activate_past_recording(self) -> None:
        """Do nothing: everything is kept."""

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens; the number is negative or zero.

        Raises
        ------
        ParameterError
            If it is positive.
        """
        if tokens_to_remove > 0:
            raise ParameterError(
                f"CooperativeCache: crop({tokens_to_remove}) must be called with minus the number "
                "of tokens to remove."
            )
        self._length = max(0, self._length + tokens_to_remove)

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        self._length = 0

    def assume(self, length: int) -> None:
        """Take the first ``length`` places of the room for tokens that were stored there."""
        self._length = length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence ``i`` go on from ``beam_idx[i]``."""
        self.room.reorder(beam_idx, self._length)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refuse: the plan is for one number of sequences.

        Raises
        ------
        ParameterError
            If others than all sequences are asked for.
        """
        if len(indices) != self.room.rows[0]:
            raise ParameterError(
                f"CooperativeCache: a plan for {self.room.rows[0]} sequences cannot go on with "
                f"{len(indices)}; make another cache."
            )
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refuse more sequences than were planned.

        Raises
        ------
        ParameterError
            If ``repeats`` is not 1.
        """
        if repeats != 1:
            raise ParameterError(
                f"CooperativeCache: {repeats} times as many sequences were not planned for; call "
                f"plan_memory with batch={self.room.rows[0] * repeats}."
            )

    def offload(self) -> None:
        """Do nothing: what lies where is planned."""

    def prefetch(self) -> None:
        """Do nothing: strips come by themselves."""

    def _check(self, shape: Sequence[int]) -> None:
        self.room.check(shape, self._length)

    def _write(self, states: Pair) -> None:
        raise NotImplementedError

    def _attend(self, query: Tensor, rules: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def _is_few(self, query: Tensor) -> bool:
        """Whether queries are so few that reading the keys is all that takes time."""
        return query.shape[2] * query.shape[1] // self.room.rows[1] <= FEW_ROWS


class DeviceLayer(PlacedLayer):
    """A layer on the device."""

    def _write(self, states: Pair) -> None:
        self.room.put(states, self._length)

    def _attend(self, query: Tensor, rules: dict[str, Any]) -> Tensor:
        with self.link.computing("attention"):
            output = self._attended(query, rules)
        self.link.between("", begins=True)
        return output

    def _attended(self, query: Tensor, rules: dict[str, Any]) -> Tensor:
        if not self.link.remote or not self.room.coded or self._is_few(query):
            output: Any = attention(query, *self.room.states(0, self._length), **rules)
            return cast(Tensor, output)
        refuse_window(rules)
        # kernels for many queries take numbers, so codes become numbers some at a time
        total = PartialSum()
        for start, stop in ranges(0, self._length, DENSE_TOKENS, query.shape[2]):
            rule = part_of(rules, start, stop, length=self._length, q_len=query.shape[2])
            total.add(*attend(query, dense(self.room.states(start, stop), query.dtype), rule))
        return total.result(query.dtype)


def ranges(start: int, stop: int, size: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of ``size`` tokens that cover a range; the last is of ``last`` or more."""
    while start < stop:
        end = min(start + size, stop)
        if stop - end < last:
            end = stop - last if stop - last > start else stop
        yield start, end
        start = end


def sliced(states: Pair, start: int, stop: int) -> Pair:
    """Return a range of tokens of keys and values."""
    key, value = (x[:, :, start:stop] for x in states)
    return key, value


def refuse_window(rules: dict[str, Any]) -> None:
    """Refuse a window: layers that have one stay on the device.

    Raises
    ------
    BackendError
        If there is one.
    """
    if rules.get("window") is not None:
        raise BackendError(
            "CooperativeCache: a layer without sliding window was given a window; use "
            "transformers' DynamicCache for this model."
        )
