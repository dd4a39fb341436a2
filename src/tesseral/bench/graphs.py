"""Times of work on a CUDA device: recorded as graphs, replayed in turns, timed by events."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tesseral.bench.timing import Timing

Call = Callable[[], object]


def record(calls: Sequence[Call]) -> Any:
    """Return a CUDA graph of calls one after another; what it allocates stays its own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def interleave_graphs(sides: Mapping[str, Sequence[Call]], repeats: int) -> dict[str, Timing]:
    """Time sides in turns; one that has several calls makes all of them in each repeat.

    Parameters
    ----------
    sides : mapping of str to sequence of callables
        Calls that launch work, all of equal cost: over copies of data that together are larger
        than the cache, say.
    repeats : int
        Samples of each side.

    Returns
    -------
    dict of str to Timing
        Seconds of one call.
    """
    graphs = {name: record(calls) for name, calls in sides.items()}
    replays = {name: graph.replay for name, graph in graphs.items()}
    samples = interleave_events(replays, repeats)
    return {
        name: Timing(
            samples_s=tuple(s / len(sides[name]) for s in timing.samples_s), calls=len(sides[name])
        )
        for name, timing in samples.items()
    }


def interleave_events(calls: Mapping[str, Call], repeats: int) -> dict[str, Timing]:
    """Time calls in turns, each between two events."""
    for call in calls.values():
        call()
    torch.cuda.synchronize()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            calls[name]()
            end.record()
            end.synchronize()
            samples[name].append(start.elapsed_time(end) / 1e3)
    return {name: Timing(samples_s=tuple(found), calls=1) for name, found in samples.items()}


_WARMING = 400
"""Copies before those that are timed: a tenth of a second."""


def copy_bytes_per_s(repeats: int = 10) -> float:
    """Return bytes read and written by a copy of 256 MB among others, in a second."""
    room = torch.empty((2, 2**28), dtype=torch.uint8, device="cuda").random_(0, 256)
    target, source = room[0], room[1]
    for _ in range(_WARMING):  # a device that did nothing has a lower clock
        target.copy_(source)
    calls = [lambda: target.copy_(source)] * 8
    timing = interleave_graphs({"copy": calls}, repeats)["copy"]
    return 2 * source.nbytes / timing.median_s
