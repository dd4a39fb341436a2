"""The layers of a cooperative cache: keys and values on the device, or in the host's memory."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from tesseral._errors import BackendError, ParameterError
from tesseral.attention import attention
from tesseral.core.packed import PackedTensor
from tesseral.llm.cooperative.conveyor import Conveyor, Strip, copy_rows
from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.parts import PartialSum, attend, part_of
from tesseral.llm.cooperative.plan import DENSE_TOKENS
from tesseral.llm.cooperative.room import Pair, Room, dense, encode, parts_of
from tesseral.llm.cooperative.split import Split
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
        self.room.check(key_states.shape, self._length)
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
        whole = self.room.states(0, self._length)
        coded = isinstance(whole[0], PackedTensor)
        if not self.link.remote or not coded or self._is_few(query):
            output: Any = attention(query, *whole, **rules)
            return cast(Tensor, output)
        refuse_window(rules)
        # kernels for many queries take numbers, so codes become numbers some at a time
        total = PartialSum()
        for start, stop in ranges(0, self._length, DENSE_TOKENS, query.shape[2]):
            rule = part_of(rules, start, stop, length=self._length, q_len=query.shape[2])
            total.add(*attend(query, dense(self.room.states(start, stop), query.dtype), rule))
        return total.result(query.dtype)


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
        self._own, self._pending = states, []
        start = self._length
        if not self.link.remote:
            self.room.put(states, start)
            return
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
        coded = isinstance(self.room.states(0, 0)[0], PackedTensor)
        return DENSE_TOKENS if coded and not self._is_few(query) else self._shared.conveyor.tokens

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
