"""The layers of a cooperative cache whose keys and values lie in the host's memory."""

from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor

from tesseral.attention import attention
from tesseral.llm.cooperative.conveyor import Conveyor, Strip, copy_rows
from tesseral.llm.cooperative.layers import (
    FEW_ROWS,
    PlacedLayer,
    ranges,
    refuse_window,
    sliced,
)
from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.parts import PartialSum, attend, part_of
from tesseral.llm.cooperative.room import Pair, Room, dense, parts_of
from tesseral.llm.cooperative.shape import DENSE_TOKENS
from tesseral.llm.cooperative.split import Split
from tesseral.quantization.kvcodec import KVCodec


@dataclass(slots=True)
class Shared:
    """What the host's layers of a cache share.

    Attributes
    ----------
    conveyor : Conveyor
        Brings strips to the device.
    split : Split
        Says how many tokens pass to the device while few queries are attended to.
    cooperate : bool
        Whether the CPU attends at all.
    group : int
        Query heads that share a key head.
    cpu : Executor or None
        Who runs the CPU's attention; ``None`` for the calling thread.
    layers : list of HostLayer
        All of them, in order.
    cpu_s, step_began : float
        How long the CPU has attended in this step, and when the step began.
    """

    conveyor: Conveyor
    split: Split
    cooperate: bool
    group: int
    cpu: Executor | None
    layers: "list[HostLayer]"
    cpu_s: float = 0.0
    step_began: float | None = None


class HostLayer(PlacedLayer):
    """A layer in the host's memory.

    Many queries, as of a chunk of a prompt, attend on the device, to which keys and values of
    earlier chunks come strip by strip. Few, as in decoding, go to the CPU, which attends to the
    keys where they lie; what the link could carry in the meantime, the device attends to.
    """

    def __init__(self, room: Room, codec: KVCodec | None, link: Link, shared: Shared) -> None:
        super().__init__(room, codec, link)
        self._shared = shared
        self._own: Pair | None = None  # the tokens of this call, on the device
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._written: Any = None
        self._staged: dict[tuple[Any, ...], Tensor] = {}

    def strips(self, stop: int) -> list[Strip]:
        """Return the strips in which tokens up to ``stop`` come to the device."""
        tokens = self._shared.conveyor.tokens
        return [
            Strip(self.room, start, min(start + tokens, stop), self._written)
            for start in range(0, stop, tokens)
        ]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens."""
        super().crop(tokens_to_remove)
        self._shared.conveyor.forget()

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self._shared.conveyor.forget()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence ``i`` go on from ``beam_idx[i]``."""
        self.link.host_waits(self._written)
        super().reorder_cache(beam_idx)
        self._shared.conveyor.forget()

    def _write(self, states: Pair) -> None:
        start = self._length
        if not self.link.remote:
            self.room.put(states, start)
            return
        self._own, self._pending = states, []
        parts, count = parts_of(states), states[0].shape[2]
        places = [array.narrow(2, start, count) for array in self.room.flat]
        if self._shared.cooperate and count * self._shared.group <= FEW_ROWS:
            # a few numbers: one copy each, and the CPU puts them in place before it attends
            staged = [self._stage(i, part) for i, part in enumerate(parts)]
            self._pending = list(zip(places, staged, strict=True))
            return
        began = self.link.begin_down()
        with self.link.copying(up=False):
            for place, part in zip(places, parts, strict=True):
                source = part.contiguous()
                self.link.keep(part)
                copy_rows(place, source)
                self.link.keep(source)
        self._written = self.link.end(began, "keys and values", up=False)

    def _attend(self, query: Tensor, rules: dict[str, Any]) -> Tensor:
        shared, few = self._shared, self._is_few(query)
        if not self.link.remote:
            near: Any = attention(query, *self.room.states(0, self._length), **rules)
            return cast(Tensor, near)
        refuse_window(rules)
        if few and shared.cooperate:
            output = self._on_both(query, rules)
        else:
            output = self._on_device(query, rules)
        self._own = None
        self.link.between("", begins=True)
        return output

    def _on_device(self, query: Tensor, rules: dict[str, Any]) -> Tensor:
        """Attend on the device: to what comes in strips, then to the tokens of this call."""
        assert self._own is not None
        q_len, conveyor, total = query.shape[2], self._shared.conveyor, PartialSum()
        past = self._length - self._own[0].shape[2]
        mine = self.strips(past)
        coming = [*mine, *self._coming()]
        for index, strip in enumerate(mine):
            states = conveyor.take(strip)
            conveyor.bring(*coming[index + 1 : index + 2])
            with self.link.computing("attention"):
                for start, stop in ranges(strip.start, strip.stop, self._pieces(query), 0):
                    rule = part_of(rules, start, stop, length=self._length, q_len=q_len)
                    first, last = start - strip.start, stop - strip.start
                    total.add(*attend(query, self._ready(query, sliced(states, first, last)), rule))
            conveyor.done()
            conveyor.bring(*coming[index + 2 : index + 3])
        with self.link.computing("attention"):
            rule = part_of(rules, past, self._length, length=self._length, q_len=q_len)
            total.add(*attend(query, self._ready(query, self._own), rule))
        return total.result(query.dtype)

    def _on_both(self, query: Tensor, rules: dict[str, Any]) -> Tensor:
        """Attend on the CPU, and meanwhile on the device to the first tokens."""
        shared, q_len = self._shared, query.shape[2]
        self._step()
        passing = shared.split.tokens(self._length - q_len)
        host_query = self._stage("query", query)
        asked = self.link.device_event()
        rule = part_of(rules, passing, self._length, length=self._length, q_len=q_len)
        rule = {n: x.cpu() if isinstance(x, Tensor) else x for n, x in rule.items()}
        began, total = perf_counter(), PartialSum()
        call = partial(self._on_cpu, asked, host_query, passing, rule)
        # a thread of its own begins at once, while this one is still busy with the device's part
        running = None if shared.cpu is None else shared.cpu.submit(call)
        if passing:
            self._beside(query, rules, passing, total)
        output, lse, ended = call() if running is None else running.result()
        shared.cpu_s += ended - began
        total.add(self._returned("output", output), self._returned("lse", lse))
        return total.result(query.dtype)

    @torch.inference_mode()  # of another thread, perhaps
    def _on_cpu(
        self, asked: Any, query: Tensor, passing: int, rule: dict[str, Any]
    ) -> tuple[Tensor, Tensor, float]:
        """Put the new tokens in their place, attend to all that do not pass; say when it ended."""
        self.link.host_waits(asked)
        self.link.host_waits(self._written)
        with self.link.on_host("attention"):
            for place, part in self._pending:
                place.copy_(part)
            output, lse = attend(query, self.room.states(passing, self._length), rule)
        return output, lse, perf_counter()

    def _beside(
        self, query: Tensor, rules: dict[str, Any], passing: int, total: PartialSum
    ) -> None:
        """Let the device attend to the first tokens, and those of the next layers set out."""
        conveyor = self._shared.conveyor
        own, near, far = (
            Strip(layer.room, 0, passing, layer._written) for layer in (self, *self._next_layers())
        )
        states = conveyor.take(own)
        conveyor.bring(near)
        with self.link.computing("attention"):
            rule = part_of(rules, 0, passing, length=self._length, q_len=query.shape[2])
            total.add(*attend(query, states, rule))
        conveyor.done()
        conveyor.bring(far)

    def _step(self) -> None:
        """At the first of the host's layers: let the split learn from the step before."""
        shared = self._shared
        if self is not shared.layers[0]:
            return
        now, moved = perf_counter(), shared.conveyor.moved
        shared.conveyor.watched = shared.split.watches
        if shared.step_began is not None and shared.split.watches:
            done = [move for move in moved if move[2].query()]
            shared.split.learn(
                length=self._length,
                token_bytes=self.room.token_bytes,
                layers=len(shared.layers),
                step_s=now - shared.step_began,
                cpu_s=shared.cpu_s,
                link_bytes=sum(move[0] for move in done),
                link_s=sum(start.elapsed_time(end) for _, start, end in done) / 1e3,
            )
        moved.clear()
        shared.cpu_s, shared.step_began = 0.0, now

    def _next_layers(self) -> "tuple[HostLayer, HostLayer]":
        """Return the two of the host's layers that come next; after the last, the first."""
        layers = self._shared.layers
        place = layers.index(self)
        return layers[(place + 1) % len(layers)], layers[(place + 2) % len(layers)]

    def _coming(self) -> list[Strip]:
        """Return what the next of the host's layers will take, in this call or the next one."""
        return [s for layer in self._next_layers() for s in layer.strips(layer.get_seq_length())]

    def _pieces(self, query: Tensor) -> int:
        """Return how many tokens of a strip are attended to at once."""
        makes_numbers = self.room.coded and not self._is_few(query)
        return DENSE_TOKENS if makes_numbers else self._shared.conveyor.tokens

    def _ready(self, query: Tensor, states: Pair) -> Pair:
        """Return states as the device's kernels for so many queries take them."""
        return states if self._is_few(query) else dense(states, query.dtype)

    def _stage(self, name: Any, array: Tensor) -> Tensor:
        """Copy a small array of the device to pinned memory that is kept for it."""
        key = name, array.shape, array.dtype
        if key not in self._staged:
            self._staged[key] = self.link.host_array(array.shape, array.dtype)
        self._staged[key].copy_(array, non_blocking=self.link.has_streams)
        return self._staged[key]

    def _returned(self, name: str, array: Tensor) -> Tensor:
        """Copy a small array of the host to the device, through pinned memory."""
        key = name, array.shape, array.dtype
        if key not in self._staged:
            self._staged[key] = self.link.host_array(array.shape, array.dtype)
        self._staged[key].copy_(array)
        return self.link.to_device(self._staged[key])
