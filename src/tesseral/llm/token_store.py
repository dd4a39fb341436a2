"""Encoded keys or values of one layer, in arrays that take new tokens at their end."""

from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

import torch

from tesseral._errors import ShapeError
from tesseral.core.packed import PackedTensor
from tesseral.llm.attention_interface import EncodedTensor
from tesseral.llm.paged_rows import States, arrays_of
from tesseral.llm.reserved import reserve

_ROOM = 64
"""Lengths that an array can hold are multiples of this."""


Write: TypeAlias = Callable[[list[torch.Tensor] | None], Any]
"""Writes an encoding to arrays, or makes new ones."""


class TokenStore:
    """Tokens of all batch rows and heads, and the arrays around them that have room for more.

    Parameters
    ----------
    nothing : PackedTensor or tensor of shape (batch, kv_heads, 0, head_dim)
        An encoding of no tokens; says which arrays there are.
    expected : int
        Tokens to have room for from the start, where room that is not used takes no memory, so
        that nothing ever moves. Elsewhere, and past it, what is held is copied now and then to
        arrays that are larger by a quarter.
    """

    def __init__(self, nothing: States, expected: int = 0) -> None:
        self._nothing, self._expected = nothing, expected
        self._arrays, self._lazy = arrays_of(nothing), False
        self._start = self._end = 0

    @property
    def length(self) -> int:
        """Number of tokens held."""
        return self._end - self._start

    @property
    def nbytes(self) -> int:
        """Bytes taken: of the tokens held and, where it is not free, of the room beside them."""
        return sum(array.nbytes for array in (self._held() if self._lazy else self._arrays))

    @property
    def states(self) -> States:
        """All tokens held, as views of shape (batch, kv_heads, length, head_dim)."""
        return self._states(self._held())

    def append(self, encoded: States, keep: int | None = None) -> States:
        """Put new tokens behind those held, and return all of them.

        Parameters
        ----------
        encoded : PackedTensor or tensor of shape (batch, kv_heads, new, head_dim)
            Of the format that the store was made for.
        keep : int, optional
            Tokens to hold on to afterwards; by default all.

        Raises
        ------
        ShapeError
            If batch or heads are not those of the tokens held.
        """
        return self.append_by(lambda places: _put(encoded, places), encoded.shape, keep)

    def append_by(self, write: Write, shape: Sequence[int], keep: int | None = None) -> States:
        """Put what ``write`` makes behind the tokens held, without a copy where there is room.

        Parameters
        ----------
        write : callable
            Fills the arrays of an encoding of ``shape`` that it is given, or gets ``None`` and
            returns the encoding.
        shape : (batch, kv_heads, new, head_dim)
        keep : int, optional
            As for :meth:`append`, which says more.
        """
        given, held = tuple(shape[:2]), tuple(self._nothing.shape[:2])
        if given != held:
            raise ShapeError(
                f"QuantizedKVCache: new tokens for (batch, kv_heads) = {given} do not fit those "
                f"stored for {held}; reset the cache or make another."
            )
        end = self._end + shape[2]
        if end > self._room:
            if keep is not None:
                return self._turn_over(arrays_of(write(None)), keep)
            end -= self._start
            self._move(end + end // 4 if self._end else end)
        write([array.narrow(2, self._end, shape[2]) for array in self._arrays])
        self._end = end
        states = self.states
        if keep is not None:
            self._start = max(self._start, end - keep)
        return states

    def make_room(self) -> list[torch.Tensor] | None:
        """Return the arrays, with room for another token; ``None`` if tokens were dropped in front.

        Whoever writes the token into them then calls :meth:`add_one`.
        """
        if self._start:
            return None
        if self._end + 1 > self._room:
            self._move(self._end + 1 + self._end // 4)
        return self._arrays

    def add_one(self) -> None:
        """Hold one token more, which was written into the arrays of :meth:`make_room`."""
        self._end += 1

    @property
    def states_with_one_more(self) -> States:
        """All tokens held and the one that is about to be written, as views."""
        return self._states(
            [array.narrow(2, self._start, self.length + 1) for array in self._arrays]
        )

    def drop_last(self, count: int) -> None:
        """Forget the last ``count`` tokens."""
        self._end = max(self._start, self._end - count)

    def keep_last(self, count: int) -> None:
        """Forget all but the last ``count`` tokens."""
        self._start = max(self._start, self._end - count)

    def change_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Put in place of the arrays held what ``change`` makes of them along the batch."""
        changed = [change(array) for array in self._held()]
        if changed[0].shape[0] != self._arrays[0].shape[0]:
            nothing = [array[:, :, :0] for array in changed]
            self._nothing, self._arrays = self._states(nothing), nothing
            self._start, self._end = 0, changed[0].shape[2]
            self._arrays = self._empty(self._end)
        for array, part in zip(self._held(), changed, strict=True):
            array.copy_(part)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = type(self)(self._nothing, self._expected)
        memo[id(self)] = clone
        clone.append(self.states)
        return clone

    @property
    def _room(self) -> int:
        return int(self._arrays[0].shape[2])

    def _held(self) -> list[torch.Tensor]:
        return [array.narrow(2, self._start, self.length) for array in self._arrays]

    def _states(self, arrays: list[torch.Tensor]) -> States:
        if not isinstance(self._nothing, PackedTensor):
            return arrays[0].as_subclass(EncodedTensor)
        like = self._nothing
        offset = arrays[2] if len(arrays) > 2 else None
        return PackedTensor(
            data=arrays[0], scale=arrays[1], offset=offset, bits=like.bits, length=like.length
        )

    def _empty(self, length: int) -> list[torch.Tensor]:
        """Return arrays for so many tokens or more."""
        pairs = [((*array.shape[:2], array.shape[3]), array) for array in self._arrays]
        if length <= self._expected:
            room = self._expected
            lazy = [reserve((b, h, room, w), like) for (b, h, w), like in pairs]
            found = [array for array in lazy if array is not None]
            if len(found) == len(pairs):
                self._lazy = True
                return found
        room, self._lazy = _multiple(length), False
        return [like.new_empty((b, h, room, w)) for (b, h, w), like in pairs]

    def _move(self, length: int) -> None:
        """Let there be room for so many tokens; what is held goes to other arrays."""
        held = self._held()
        self._arrays = self._empty(length)
        self._start, self._end = 0, held[0].shape[2]
        for array, part in zip(self._held(), held, strict=True):
            array.copy_(part)

    def _turn_over(self, new: list[torch.Tensor], keep: int) -> States:
        """Return what is held and what is new in arrays of their own; start again with the end."""
        joined = [torch.cat(pair, dim=2) for pair in zip(self._held(), new, strict=True)]
        length = joined[0].shape[2]
        room = _multiple(2 * keep + 1)
        if self._room != room:
            self._arrays = self._empty(room)
        self._start, self._end = 0, min(keep, length)
        for array, part in zip(self._held(), joined, strict=True):
            array.copy_(part[:, :, length - self._end :])
        return self._states(joined)


def _multiple(length: int) -> int:
    return -(-length // _ROOM) * _ROOM


def _put(encoded: States, places: list[torch.Tensor] | None) -> States:
    for place, part in zip(places or [], arrays_of(encoded), strict=places is not None):
        place.copy_(part)
    return encoded
