"""Times of calls that are to be compared: measured in turns, each from a quiet machine."""

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any, Self

from tesseral.runtime.cpu import cpu_threads

Call = Callable[[], object]

_STEP_S = 0.005  # how long the process is watched for work going on
_QUIET = 0.1  # of a step: less processor time than this means that nothing spins
_PATIENCE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How often and how long is measured.

    Attributes
    ----------
    repeats : int
        Timed sections of each side.
    section_s : float
        Shortest time of a section; a call that takes less is made several times in it.
    patience_s : float
        Longest time for all sections of a side, about; one that would take more takes part in
        fewer of the repeats.
    """

    repeats: int
    section_s: float
    patience_s: float = math.inf

    def turns(self, seconds: float) -> int:
        """Return in how many repeats a side takes part, one call of which takes ``seconds``."""
        return int(min(self.repeats, max(1, self.patience_s / max(seconds, self.section_s))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long one call takes.

    Attributes
    ----------
    samples_s : tuple of float
        Seconds for one call, from each section.
    calls : int
        Calls in a section.
    """

    samples_s: tuple[float, ...]
    calls: int

    @property
    def median_s(self) -> float:
        """Seconds that stand for all samples."""
        return median(self.samples_s)

    @property
    def spread(self) -> float:
        """Distance of the quartiles, as a share of the median."""
        if len(self.samples_s) < 2:
            return 0.0
        low, _, high = quantiles(self.samples_s, n=4, method="inclusive")
        return (high - low) / self.median_s

    def as_dict(self) -> dict[str, Any]:
        """Return the samples and what is computed from them."""
        return {
            **asdict(self),
            "repeats": len(self.samples_s),
            "median_s": self.median_s,
            "spread": self.spread,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Undo :meth:`as_dict`."""
        return cls(samples_s=tuple(record["samples_s"]), calls=record["calls"])


def ratio(theirs: Timing, ours: Timing) -> float:
    """Return how many times slower they are: the median over the repeats, each by itself.

    What slows a machine down for seconds slows both sides of a repeat down. Where a side took part
    in some repeats only, those count.
    """
    repeats = max(len(theirs.samples_s), len(ours.samples_s))
    of_theirs, of_ours = _by_repeat(theirs, repeats), _by_repeat(ours, repeats)
    return median(of_theirs[i] / of_ours[i] for i in of_theirs.keys() & of_ours.keys())


def _by_repeat(timing: Timing, repeats: int) -> dict[int, float]:
    return dict(zip(_turns(len(timing.samples_s), repeats), timing.samples_s, strict=True))


def _turns(turns: int, repeats: int) -> list[int]:
    """Return the repeats, far from each other, in which a side with so many turns takes part."""
    return [i * repeats // turns for i in range(turns)]


def interleave(
    sides: Mapping[str, Call],
    method: Method,
    *,
    seconds: Mapping[str, float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time all sides in turns, so that what changes on the machine meets all of them.

    Every section starts when this process does nothing else: a library whose threads spin after
    its last call would otherwise slow down whoever comes next. What costs to wake them again is
    not timed either: where a section has several calls, one more comes before them. The side
    that starts changes with every repeat. A side that needs more than the method's patience for one
    call is called once, beforehand, and that is its only sample.

    Parameters
    ----------
    sides : mapping of str to callable
        What to call, by name.
    method : Method
        How often and how long.
    seconds : mapping of str to float, optional
        About what a call takes, where that is known and every side was called before.
    clock : callable
        Returns seconds.

    Returns
    -------
    dict of str to Timing
    """
    if seconds is None:
        seconds = {
            name: estimate(call, long_s=method.patience_s / method.repeats, clock=clock)
            for name, call in sides.items()
        }
    turns = {name: _turns(method.turns(seconds[name]), method.repeats) for name in sides}
    calls = {name: max(1, math.ceil(method.section_s / seconds[name])) for name in sides}
    long = {name for name in sides if seconds[name] > method.patience_s}
    samples = {name: [seconds[name]] if name in long else [] for name in sides}
    names = list(sides)
    with _no_collector():
        for repeat in range(method.repeats):
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                if name in long or repeat not in turns[name]:
                    continue
                settle()
                samples[name].append(_section(sides[name], calls[name], clock))
    return {n: Timing(samples_s=tuple(s), calls=calls[n]) for n, s in samples.items()}


def estimate(
    call: Call, *, long_s: float = math.inf, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return about how many seconds a call takes, after one that is not timed.

    Where that one takes longer than ``long_s``, it is all that is called.
    """
    first = _section(call, 1, clock)
    if first > long_s:
        return first
    settle()
    once = _section(call, 1, clock)
    short = once < _PATIENCE_S
    return max(min(once, _section(call, 3, clock)) if short else once, 1e-7)


def settle() -> None:
    """Wait until this process does nothing, for a fifth of a second at most."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        before = time.process_time()
        time.sleep(_STEP_S)
        if time.process_time() - before < _QUIET * _STEP_S:
            return


@contextmanager
def using_threads(count: int | None) -> Iterator[int]:
    """Let our kernels and torch use ``count`` threads inside; give the number that they use.

    Raises
    ------
    ParameterError
        If it is not a positive number.
    """
    import torch

    count = cpu_threads(count)
    ours, torchs = os.environ.get("TESSERAL_CPU_THREADS"), torch.get_num_threads()
    try:
        os.environ["TESSERAL_CPU_THREADS"] = str(count)
        torch.set_num_threads(count)
        yield count
    finally:
        torch.set_num_threads(torchs)
        os.environ.pop("TESSERAL_CPU_THREADS")
        if ours is not None:
            os.environ["TESSERAL_CPU_THREADS"] = ours


def _section(call: Call, calls: int, clock: Callable[[], float]) -> float:
    if calls > 1:
        call()
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
