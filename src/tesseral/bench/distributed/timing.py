"""Times of calls that all ranks make together, in turns."""

import math
import time
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist

Call = Callable[[], object]


def time_ranks(
    calls: Mapping[str, Call], repeats: int, section_s: float, device: torch.device
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
    """
    section = _device_section if device.type == "cuda" else _host_section
    names = list(calls)
    first = [_largest([section(calls[name], 1)], device)[0] for name in names]
    rounds = {n: max(1, math.ceil(section_s / t)) for n, t in zip(names, first, strict=True)}
    samples: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            dist.barrier()
            samples[name].append(section(calls[name], rounds[name]) / rounds[name])
    return {name: _largest(found, device) for name, found in samples.items()}


def _largest(seconds: list[float], device: torch.device) -> list[float]:
    found = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return list(map(float, found.tolist()))


def _device_section(call: Call, rounds: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    call()
    begin.record()
    for _ in range(rounds):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _host_section(call: Call, rounds: int) -> float:
    call()
    begin = time.perf_counter()
    for _ in range(rounds):
        call()
    return time.perf_counter() - begin
