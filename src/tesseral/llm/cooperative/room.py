"""Keys and values of one layer, in arrays with room for a known number of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tesseral._errors import ParameterError, ShapeError
from tesseral.core.packed import PackedTensor
from tesseral.llm.paged_rows import States, arrays_of
from tesseral.quantization.config import OFF
from tesseral.quantization.kvcodec import KVCodec
from tesseral.runtime import triton as runtime_triton

Pair = tuple[States, States]
"""Keys and values."""

Allocate = Callable[[Sequence[int], torch.dtype], Tensor]


class Room:
    """Arrays (batch, kv_heads, room, ...) of the numbers or codes of keys and of values.

    Parameters
    ----------
    like : (States, States)
        Keys and values of no token, as they are stored: (batch, kv_heads, 0, head_dim).
    room : int
        Tokens that fit.
    allocate : callable
        Returns an array of a shape and a type.

    Attributes
    ----------
    like, room
        As given.
    kind : tuple
        Equal for rooms that hold tokens in the same form.
    """

    def __init__(self, like: Pair, room: int, allocate: Allocate) -> None:
        self.like, self.room = like, room
        self.kind = tuple((a.dtype, *a.shape[:2], a.shape[3]) for a in parts_of(like))
        with torch.inference_mode(False):  # to be written to in any mode
            self.arrays = [
                [allocate((*a.shape[:2], room, a.shape[3]), a.dtype) for a in arrays_of(side)]
                for side in like
            ]

    @property
    def rows(self) -> tuple[int, int]:
        """Number of sequences and of key heads."""
        batch, heads = self.like[0].shape[:2]
        return int(batch), int(heads)

    @property
    def coded(self) -> bool:
        """Whether keys or values are codes."""
        return any(isinstance(side, PackedTensor) for side in self.like)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, room included."""
        return sum(array.nbytes for array in self.flat)

    @property
    def flat(self) -> list[Tensor]:
        """All arrays, those of keys first."""
        return [array for side in self.arrays for array in side]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token of all sequences."""
        return self.nbytes // max(1, self.room)

    def states(self, start: int, stop: int) -> Pair:
        """Return keys and values of a range of tokens, as views."""
        key, value = (
            stored(like, [array.narrow(2, start, stop - start) for array in side])
            for like, side in zip(self.like, self.arrays, strict=True)
        )
        return key, value

    def check(self, shape: Sequence[int], start: int, what: str = "CooperativeCache") -> None:
        """Refuse tokens that do not fit.

        Parameters
        ----------
        shape : (batch, kv_heads, new, head_dim)
        start : int
            Tokens there are.
        what : str
            Named in errors.

        Raises
        ------
        ShapeError
            If batch, heads or their size are others.
        ParameterError
            If there is no room.
        """
        if tuple(shape[:2]) != self.rows:
            raise ShapeError(
                f"{what}: new tokens for (batch, kv_heads) = {tuple(shape[:2])} do not "
                f"fit the plan, which is for {self.rows}."
            )
        if shape[3] != self.like[0].shape[3]:
            raise ShapeError(
                f"{what}: keys of {shape[3]} numbers a head do not fit the plan, which "
                f"is for {self.like[0].shape[3]}; use transformers' DynamicCache for this model."
            )
        if start + shape[2] > self.room:
            raise ParameterError(
                f"{what}: {start + shape[2]} tokens do not fit a plan for {self.room}; "
                "plan for a longer context."
            )

    def put(self, states: Pair, start: int) -> None:
        """Copy tokens to their place; arrays on the same device."""
        for array, part in zip(self.flat, parts_of(states), strict=True):
            array.narrow(2, start, part.shape[2]).copy_(part)

    def reorder(self, rows: Tensor, length: int) -> None:
        """Let sequence ``i`` go on from ``rows[i]``."""
        for array in self.flat:
            order = rows.to(array.device)
            for head in array.narrow(2, 0, length).unbind(
                1
            ):  # so that a copy takes one head's room
                head.copy_(head[order])


def stored(like: States, arrays: list[Tensor]) -> States:
    """Return arrays as states of the kind of ``like``."""
    if not isinstance(like, PackedTensor):
        return arrays[0]
    offset = arrays[2] if len(arrays) > 2 else None
    return replace(like, data=arrays[0], scale=arrays[1], offset=offset)


def parts_of(states: Pair) -> list[Tensor]:
    """Return all arrays of keys and values."""
    return [*arrays_of(states[0]), *arrays_of(states[1])]


def encode(codec: KVCodec | None, key: Tensor, value: Tensor) -> Pair:
    """Return keys and values as they are stored."""
    return (key, value) if codec is None else codec.encode(key, value)


def plain_codec(key_bits: int, value_bits: int, device: torch.device) -> KVCodec | None:
    """Return a codec without transforms, for a model that has none; ``None`` for 16 bits."""
    if key_bits == value_bits == OFF:
        return None
    return KVCodec(None, key_bits=key_bits, value_bits=value_bits).to(device)


def dense(states: Pair, dtype: torch.dtype) -> Pair:
    """Return keys and values as numbers."""
    key, value = (_dense(x, dtype) if isinstance(x, PackedTensor) else x for x in states)
    return key, value


def _dense(states: PackedTensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers that codes stand for; in one pass where there is a kernel for that."""
    if states.data.is_cuda and runtime_triton.ready("cuda").ok:
        from tesseral.quantization.kernels.triton.dequantize import dequantize_heads, takes

        if takes(states):
            return dequantize_heads(states, dtype)
    numbers: Tensor = states.dequantize(torch.promote_types(dtype, torch.float32)).to(dtype)
    return numbers
