"""Times of calls that all ranks make together, in turns."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

from tesseral.attention.distributed.measure import device_seconds, host_seconds, replayed

Call = Callable[[], object]


def time_ranks(
    calls: Mapping[str, Call],
    repeats: int,
    section_s: float,
    device: torch.device,
    *,
    graphs: bool = False,
) -> dict[str, list[float]]:
    """Return seconds of one call of each side in every repeat, those of the slowest rank.

    A sample is a row of calls after one that is not timed, which brings ranks together; the side
    that starts changes from one repeat to the next. On CUDA the device's events are the clock.

    Parameters
    ----------
    calls : mapping of str to callable
        The same on all ranks.
    repeats : int
        Samples of each side.
    section_s : float
        Shortest time of a sample.
    device : torch.device
    graphs : bool
        Whether all sides are recorded and replayed, where the device can: short calls take
        longer to start from Python than to run.
    """
    clock = device_seconds if device.type == "cuda" else host_seconds
    sides = {n: replayed(call, device) if graphs else (call, 1) for n, call in calls.items()}
    names = list(sides)
    first = [_largest([clock(sides[n][0], 1)], device)[0] for n in names]
    rounds = {n: max(1, math.ceil(section_s / t)) for n, t in zip(names, first, strict=True)}
    samples: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            call, count = sides[name]
            dist.barrier()
            samples[name].append(clock(call, rounds[name]) / count)
    return {name: _largest(found, device) for name, found in samples.items()}


def _largest(seconds: list[float], device: torch.device) -> list[float]:
    found = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return list(map(float, found.tolist()))
