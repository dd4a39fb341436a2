"""Two buffers on the device through which tokens of the host's layers pass."""

from dataclasses import dataclass
from typing import Any

from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.room import Pair, Room


@dataclass(frozen=True, slots=True)
class Strip:
    """Tokens ``start`` to ``stop`` of the room of a host's layer."""

    room: Room
    start: int
    stop: int
    written: Any
    """Event after which they stand in the host's memory."""


class _Slot:
    """A buffer, and what is in it."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.strip: Strip | None = None
        self.began: Any = None
        self.ready: Any = None
        self.free: Any = None
        self.order = 0

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
    like : (States, States)
        Keys and values of no token.
    tokens : int
        Most tokens of a strip.
    """

    def __init__(self, link: Link, like: Pair, tokens: int) -> None:
        self._link, self.tokens = link, tokens
        self._slots = [_Slot(Room(like, tokens, link.device_array)) for _ in range(2)]
        for slot in self._slots:
            slot.free = link.device_event()  # memory that others may have had just now
        self._count = 0
        self._taken: _Slot | None = None
        self.moved: list[tuple[int, Any, Any]] = []
        """Bytes of each copy, and the events around it."""

    @property
    def nbytes(self) -> int:
        """Bytes of both buffers."""
        return sum(slot.room.nbytes for slot in self._slots)

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
        return slot.room.states(0, strip.stop - strip.start)

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
        count = strip.stop - strip.start
        with self._link.copying(up=True):
            for target, source in zip(slot.room.flat, strip.room.flat, strict=True):
                copy_rows(target.narrow(2, 0, count), source.narrow(2, strip.start, count))
        slot.ready = self._link.end(slot.began, "keys and values", up=True)
        if slot.ready is not None:
            self.moved.append((count * strip.room.token_bytes, slot.began, slot.ready))
        return slot


def copy_rows(target: Any, source: Any) -> None:
    """Copy head by head: each is one piece of memory on both sides, and needs no other copy."""
    for to_batch, from_batch in zip(target, source, strict=True):
        for to_head, from_head in zip(to_batch, from_batch, strict=True):
            to_head.copy_(from_head, non_blocking=True)
