"""What the device's streams, the links and the CPU do when: recorded where somebody asks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A piece of work.

    Attributes
    ----------
    row : str
        Who does it.
    kind : str
        What it is.
    start_s, end_s : float
        When, in seconds since the recording began.
    """

    row: str
    kind: str
    start_s: float
    end_s: float


class Timeline:
    """Records pieces of work on a CPU and on a device's streams."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, str, Any, Any]] = []
        if self._cuda:
            torch.cuda.synchronize(device)
        self._begin: Any = self._event(None)
        if self._cuda:
            torch.cuda.synchronize(device)
        self._zero = perf_counter()

    @contextmanager
    def on_cpu(self, row: str, kind: str) -> Iterator[None]:
        """Record what the calling thread does inside."""
        start = perf_counter()
        yield
        self._spans.append((row, kind, start, perf_counter()))

    @contextmanager
    def on_stream(self, row: str, kind: str, stream: Any) -> Iterator[None]:
        """Record what a stream is given inside."""
        start = self._event(stream)
        yield
        self._spans.append((row, kind, start, self._event(stream)))

    def add(self, row: str, kind: str, start: Any, end: Any) -> None:
        """Record what lies between two events of a stream."""
        self._spans.append((row, kind, start, end))

    def works(self) -> list[Work]:
        """Return all that was recorded; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        return [
            Work(row=row, kind=kind, start_s=self._seconds(start), end_s=self._seconds(end))
            for row, kind, start, end in self._spans
        ]

    def _event(self, stream: Any) -> Any:
        if not self._cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream or torch.cuda.current_stream())
        return event

    def _seconds(self, moment: Any) -> float:
        if isinstance(moment, float):
            return moment - self._zero
        elapsed: float = self._begin.elapsed_time(moment)
        return elapsed / 1e3
