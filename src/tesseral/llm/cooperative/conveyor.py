"""Two buffers on the device through which tokens of the host's layers pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.room import Pair, Room, parts_of

_ALIGNED = 256  # where an array may begin in a buffer


@dataclass(frozen=True, slots=True)
class Strip:
    """Tokens ``start`` to ``stop`` of the room of a host's layer."""

    room: Room
    start: int
    stop: int
    written: Any
    """Event after which they stand in the host's memory."""


class _Slot:
    """A buffer, and what is in it.

    Parameters
    ----------
    memory : uint8 tensor of shape (bytes,)
    tokens : int
        Most tokens of a strip.
    """

    def __init__(self, memory: Tensor, tokens: int) -> None:
        self._memory, self._tokens, self._used = memory, tokens, 0
        self._rooms: dict[Any, Room] = {}
        self.strip: Strip | None = None
        self.began: Any = None
        self.ready: Any = None
        self.free: Any = None
        self.order = 0

    def room_like(self, room: Room) -> Room:
        """Return the buffer as it holds tokens of another room; layers may differ in widths."""
        if room.kind not in self._rooms:
            self._used = 0
            self._rooms[room.kind] = Room(room.like, self._tokens, self._part)
        return self._rooms[room.kind]

    def _part(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        start, count = self._used, prod(shape) * dtype.itemsize
        self._used = -(-(start + count) // _ALIGNED) * _ALIGNED
        return self._memory[start : start + count].view(dtype).view(tuple(shape))

    def holds(self, strip: Strip) -> bool:
        held = self.strip
        if held is None or held.room is not strip.room or held.start != strip.start:
            return False
        return held.stop >= strip.stop


class Conveyor:
    """Brings strips of the host's layers to the device: one is read while the next one comes.

    Parameters
    ----------
    link : Link
        The way.
    likes : sequence of (States, States)
        Keys and values of no token, of each layer whose tokens pass.
    tokens : int
        Most tokens of a strip.
    """

    def __init__(self, link: Link, likes: Sequence[Pair], tokens: int) -> None:
        self._link, self.tokens = link, tokens
        self.watched = False
        """Whether copies are noted in ``moved``."""
        size = max(_room_bytes(like, tokens) for like in likes)
        self._slots = [_Slot(link.device_array((size,), torch.uint8), tokens) for _ in range(2)]
        self.nbytes = 2 * size
        """Bytes of both buffers."""
        for slot in self._slots:
            slot.free = link.device_event()  # memory that others may have had just now
        self._count = 0
        self._taken: _Slot | None = None
        self.moved: list[tuple[int, Any, Any]] = []
        """Bytes of each copy, and the events around it."""

    def bring(self, *strips: Strip) -> None:
        """Begin to copy strips, unless they are there or on their way."""
        for strip in strips:
            if strip.stop > strip.start and self._holding(strip) is None:
                self._fetch(strip)

    def take(self, strip: Strip) -> Pair:
        """Return a strip on the device, for what the device is given from now on."""
        slot = self._holding(strip) or self._fetch(strip)
        self._link.device_waits(slot.ready)
        self._taken = slot
        return slot.room_like(strip.room).states(0, strip.stop - strip.start)

    def done(self) -> None:
        """Let the buffer taken last be filled again, once the device has read it."""
        assert self._taken is not None
        self._taken.free = self._link.device_event()
        self._taken = None

    def forget(self) -> None:
        """Hold nothing any longer: what stands in the host's memory changed."""
        for slot in self._slots:
            slot.strip = None

    def _holding(self, strip: Strip) -> _Slot | None:
        return next((slot for slot in self._slots if slot.holds(strip)), None)

    def _fetch(self, strip: Strip) -> _Slot:
        slot = min((s for s in self._slots if s is not self._taken), key=lambda s: s.order)
        self._count += 1
        slot.order, slot.strip = self._count, strip
        slot.began = self._link.begin_up([slot.free, strip.written])
        count, room = strip.stop - strip.start, slot.room_like(strip.room)
        with self._link.copying(up=True):
            for target, source in zip(room.flat, strip.room.flat, strict=True):
                copy_rows(target.narrow(2, 0, count), source.narrow(2, strip.start, count))
        slot.ready = self._link.end(slot.began, "keys and values", up=True)
        if self.watched and slot.ready is not None:
            self.moved.append((count * strip.room.token_bytes, slot.began, slot.ready))
        return slot


def _room_bytes(like: Pair, tokens: int) -> int:
    """Return the bytes of a buffer for so many tokens, each array at a place of its own."""
    sizes = (prod((*a.shape[:2], tokens, a.shape[3])) * a.itemsize for a in parts_of(like))
    return sum(-(-size // _ALIGNED) * _ALIGNED for size in sizes)


def copy_rows(target: Any, source: Any) -> None:
    """Copy head by head: each is one piece of memory on both sides, and needs no other copy."""
    for to_batch, from_batch in zip(target, source, strict=True):
        for to_head, from_head in zip(to_batch, from_batch, strict=True):
            to_head.copy_(from_head, non_blocking=True)
