"""The way between a device and the host: pinned memory, a stream each way, events."""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor

from tesseral.llm.cooperative.timeline import Timeline

DEVICE, UP, DOWN, HOST = "device", "host to device", "device to host", "CPU"
"""Rows of a timeline."""


class Link:
    """Copies between a device and the host's memory, behind what the device computes.

    Where the device is the CPU itself there is nothing to overlap: the same calls copy at once.

    Parameters
    ----------
    device : torch.device
        The device.
    remote : bool, optional
        Whether the host's memory is another than the device's; by default where the device is
        not the CPU.

    Attributes
    ----------
    has_streams : bool
        Whether copies run beside what the device computes.
    timeline : Timeline or None
        Where to record what is done.
    """

    def __init__(self, device: torch.device, remote: bool | None = None) -> None:
        self.device = device
        self.has_streams = device.type == "cuda"
        self.remote = device.type != "cpu" if remote is None else remote
        self.timeline: Timeline | None = None
        self._up: Any = torch.cuda.Stream(device) if self.has_streams else None
        self._down: Any = torch.cuda.Stream(device) if self.has_streams else None
        self._mark: Any = None

    def host_array(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory of the host, filled with zeros, that the device copies from and to."""
        if not self.has_streams:
            return torch.zeros(tuple(shape), dtype=dtype)
        return pinned(tuple(shape), dtype)

    def device_array(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory of the device."""
        return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    def begin_up(self, after: Sequence[Any]) -> Any:
        """Let the stream to the device wait for events; return an event of its own."""
        if not self.has_streams:
            return None
        for event in after:
            if event is not None:
                self._up.wait_event(event)
        return self._record(self._up, timed=True)

    def begin_down(self) -> Any:
        """Let the stream to the host wait for what the device was given; return an event."""
        if not self.has_streams:
            return None
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        return self._record(self._down, timed=True)

    @contextmanager
    def copying(self, *, up: bool) -> Iterator[None]:
        """Make a stream the current one, for many copies."""
        with (
            torch.cuda.stream(self._up if up else self._down) if self.has_streams else nullcontext()
        ):
            yield

    def keep(self, array: Tensor) -> None:
        """Keep a device's array until the copies to the host that read it are done."""
        if self.has_streams:
            array.record_stream(self._down)

    def end(self, start: Any, kind: str, *, up: bool) -> Any:
        """Return the event after what was copied since ``start``."""
        if not self.has_streams:
            return None
        event = self._record(self._up if up else self._down, timed=True)
        if self.timeline is not None:
            self.timeline.add(UP if up else DOWN, kind, start, event)
        return event

    def device_waits(self, event: Any) -> None:
        """Let what the device is given from now on wait for an event."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def host_waits(self, event: Any) -> None:
        """Wait for an event."""
        if event is not None:
            event.synchronize()

    def device_event(self) -> Any:
        """Return the event after all that the device was given so far."""
        if not self.has_streams:
            return None
        return self._record(torch.cuda.current_stream(self.device), timed=False)

    def to_device(self, array: Tensor) -> Tensor:
        """Copy a small array of pinned memory to the device, in order with its work."""
        return array.to(self.device, non_blocking=self.has_streams)

    @contextmanager
    def computing(self, kind: str) -> Iterator[None]:
        """Record what the device is given inside, if there is a timeline."""
        if self.timeline is None:
            yield
            return
        stream = torch.cuda.current_stream(self.device) if self.has_streams else None
        with self.timeline.on_stream(DEVICE, kind, stream):
            yield

    @contextmanager
    def on_host(self, kind: str) -> Iterator[None]:
        """Record what the CPU does inside, if there is a timeline."""
        if self.timeline is None:
            yield
            return
        with self.timeline.on_cpu(HOST, kind):
            yield

    @contextmanager
    def recorded(self) -> Iterator[Timeline]:
        """Record what is done inside."""
        self.timeline, self._mark = Timeline(self.device), None
        try:
            yield self.timeline
        finally:
            self.timeline = None

    def between(self, kind: str, *, begins: bool) -> None:
        """Record what the device is given between two attentions: the rest of the model."""
        if self.timeline is None or not self.has_streams:
            return
        event = self._record(torch.cuda.current_stream(self.device), timed=True)
        if begins:
            self._mark = event
        elif self._mark is not None:
            self.timeline.add(DEVICE, kind, self._mark, event)
            self._mark = None

    def _record(self, stream: Any, *, timed: bool) -> Any:
        event = torch.cuda.Event(enable_timing=timed)
        event.record(stream)
        return event


def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeroed memory that a CUDA device copies from and to by itself.

    torch rounds pinned memory up to a power of two, which of half a host's memory is too much.
    So it is taken from the system in huge pages and then registered; torch's own serves where
    that is refused.
    """
    n_bytes = prod(shape) * dtype.itemsize
    if n_bytes < 1 << 20:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)
    memory = _Pinned(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    flat.zero_()  # on all threads: who registers takes pages one after the other
    address = flat.data_ptr()
    runtime: Any = torch.cuda.cudart()
    if int(runtime.cudaHostRegister(address, n_bytes, 0)) != 0:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)
    memory.address = address  # the array keeps it
    return flat.view(dtype).view(shape)


class _Pinned(mmap.mmap):
    """Memory that is no longer registered when it goes back to the system."""

    address: int | None = None

    def __del__(self) -> None:  # a finalizer by weak reference would run after that
        if self.address is not None and torch.cuda.is_initialized():
            runtime: Any = torch.cuda.cudart()
            runtime.cudaHostUnregister(self.address)
