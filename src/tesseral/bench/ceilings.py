"""What this machine could do at most, measured: products from registers, and reading memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any, Self

import numpy as np

from tesseral import _native
from tesseral.runtime.cpu import cache_sizes, supported_targets
from tesseral.runtime.machine import machine_record

PRODUCTS = ("fma_fp32", "dot_bf16", "dot_int8")
"""Instructions: multiply and add in float32, ``vdpbf16ps``, ``vpdpbusd``."""

_REPEATS = 7
_MEMORY_PART = 1 / 8  # of main memory: what the buffer to read takes at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The highest rates seen, on all threads together.

    Attributes
    ----------
    threads : int
        Threads used.
    products : dict of str to dict of str to float
        Operations per second, by target and then by one of :data:`PRODUCTS`; a multiplication
        and an addition count one each. A target without the instruction has no entry for it.
    read : float
        Bytes per second of reading, by the fastest target.
    buffer_bytes : int
        Size of what was read.
    """

    threads: int
    products: dict[str, dict[str, float]]
    read: float
    buffer_bytes: int

    def best(self, *kinds: str) -> float:
        """Return the highest rate of these kinds of products on any target."""
        rates = self.products.values()
        return max(rate[kind] for rate in rates for kind in kinds if kind in rate)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Undo :meth:`as_dict`."""
        return cls(**record)


def measure_ceilings(
    threads: int, *, section_s: float = 0.05, buffer_bytes: int | None = None
) -> Ceilings:
    """Measure what all targets that run here could do at most; takes a few seconds.

    Each rate is the best of several, for nothing but the machine can make one too high.

    Parameters
    ----------
    threads : int
        Threads to use.
    section_s : float
        Time that a sample of products takes at least.
    buffer_bytes : int, optional
        What to read; by default four times the largest cache, where memory allows.
    """
    targets = supported_targets()
    products = {target: _products(target, threads, section_s) for target in targets}
    buffer = np.ones(buffer_bytes or _beyond_caches(), dtype=np.uint8)
    return Ceilings(
        threads=threads,
        products=products,
        read=max(_read_rate(buffer, threads, target) for target in targets),
        buffer_bytes=buffer.size,
    )


def make_reader(buffer_bytes: int, threads: int) -> Callable[[], object]:
    """Return a function that reads a buffer of so many bytes once, to be timed beside others."""
    return make_reader_of([[np.ones(buffer_bytes, dtype=np.uint8)]], threads)


def make_reader_of(
    copies: Sequence[Sequence[np.ndarray[Any, Any]]], threads: int
) -> Callable[[], object]:
    """Return a function that reads all arrays of one copy, and of the next with the next call.

    How fast memory is read depends on the pages that hold it, so the arrays of a case are read
    themselves. They are in C order.
    """
    target = supported_targets()[0]
    turns = cycle([[array.reshape(-1).view(np.uint8) for array in copy] for copy in copies])

    def read() -> None:
        for part in next(turns):
            _native.read_rate(part, threads, target)

    return read


def _products(target: str, threads: int, section_s: float) -> dict[str, float]:
    rates = {kind: _product_rate(kind, target, threads, section_s) for kind in PRODUCTS}
    return {kind: rate for kind, rate in rates.items() if rate is not None}


def _product_rate(kind: str, target: str, threads: int, section_s: float) -> float | None:
    rounds, seconds = 1000, 0.0
    while seconds < section_s:
        rounds *= 2
        operations, seconds = _native.product_rate(kind, rounds, threads, target)
        if operations == 0:
            return None
    samples = (_native.product_rate(kind, rounds, threads, target) for _ in range(_REPEATS))
    return max(operations / seconds for operations, seconds in samples)


def _read_rate(buffer: np.ndarray[Any, Any], threads: int, target: str) -> float:
    samples = (_native.read_rate(buffer, threads, target) for _ in range(_REPEATS))
    return max(bytes_read / seconds for bytes_read, seconds in samples)


def _beyond_caches() -> int:
    caches = cache_sizes()
    wanted = 4 * max(caches.l3, caches.l2, 2**26)
    memory = machine_record().memory_bytes
    return wanted if memory is None else min(wanted, int(memory * _MEMORY_PART))
