"""Times of calls on a CUDA device, in turns, by its own clock."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from tesseral.bench.timing import Call, Timing

_LEAST_CALLS = 8
"""Calls of a graph, at least: the gap before the first is shared by all."""


def captured(calls: Sequence[Call]) -> tuple[Call, int]:
    """Return the replay of a graph that makes these calls in turn, and how many it makes.

    A call that the processor must start from Python would be timed with Python.
    """
    rounds = -(-_LEAST_CALLS // len(calls))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what compiles or allocates once must not be captured
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph.replay, rounds * len(calls)


def time_in_turns(
    sides: Mapping[str, tuple[Call, int]], repeats: int, section_s: float
) -> dict[str, Timing]:
    """Return how long one call takes on each side.

    Parameters
    ----------
    sides : mapping of str to (callable, int)
        What to start, and how many calls that is.
    repeats : int
        Sections of each side; the side that starts changes from one to the next.
    section_s : float
        Shortest time of a section, as estimated.
    """
    rounds = {name: _rounds(start, section_s) for name, (start, _) in sides.items()}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            start, calls = sides[name]
            samples[name].append(_section(start, rounds[name]) / (rounds[name] * calls))
    return {
        name: Timing(samples_s=tuple(found), calls=rounds[name] * sides[name][1])
        for name, found in samples.items()
    }


def _rounds(start: Callable[[], object], section_s: float) -> int:
    start()
    return max(1, math.ceil(section_s / max(_section(start, 1), 1e-7)))


def _section(start: Callable[[], object], rounds: int) -> float:
    """Return the seconds that the device takes for some rounds, after one that is not timed."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start()
    begin.record()
    for _ in range(rounds):
        start()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
