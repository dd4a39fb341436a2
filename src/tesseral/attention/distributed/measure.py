"""Measuring what a layer costs on the ranks of a group."""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tesseral.attention.api import attention
from tesseral.attention.distributed.costs import Line, OverlapCosts
from tesseral.attention.distributed.direct import sum_through_peers
from tesseral.attention.distributed.overlap import Reduce
from tesseral.attention.distributed.peers import Peers
from tesseral.attention.distributed.plans import OverlapPlan
from tesseral.runtime.ranks import check_alike

_REPEATS, _REPEATS_ON_HOST = 5, 3
_LOG = logging.getLogger(__name__)


def measure_costs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    is_causal: bool = False,
    group: Any = None,
    reduce: Reduce | None = None,
    peers: Peers | None = None,
) -> OverlapCosts:
    """Measure what a layer of these shapes costs; all ranks call it, and get the same answer.

    Each line is drawn through the medians of two sizes, the whole and an eighth, and a cost
    is that of the slowest rank.

    Parameters
    ----------
    query, key, value, weight, is_causal, group, reduce, peers
        As for :func:`tesseral.attention.distributed.attention_all_reduce`.

    Raises
    ------
    DistributedError
        If shapes or types differ between ranks.
    """
    check_alike("measure_costs", _described(query, key, value, weight), group)
    q_len, kv_len = query.shape[2], key.shape[2]

    def seen(rows: int) -> int:
        return kv_len - (q_len - rows) if is_causal else kv_len

    def attend(rows: int) -> Any:
        keys = max(1, seen(rows))
        strip = query[:, :, :rows], key[:, :, :keys], value[:, :, :keys]
        return attention(*strip, is_causal=is_causal)

    def pairs(rows: int) -> float:
        if not is_causal:
            return rows * kv_len
        return sum(max(0, last) for last in (seen(1), seen(rows))) * rows / 2

    rows = query.new_empty((q_len, query.shape[0], weight.shape[1])).normal_()
    return _measure(rows, weight, (attend, pairs), group, reduce, peers)


def measure_linear_costs(
    x: Tensor,
    weight: Tensor,
    *,
    group: Any = None,
    reduce: Reduce | None = None,
    peers: Peers | None = None,
) -> OverlapCosts:
    """Measure what a linear layer costs, as :func:`measure_costs` does; plan it with kv_len=0.

    Parameters
    ----------
    x, weight, group, reduce, peers
        As for :func:`tesseral.attention.distributed.linear_all_reduce`.

    Raises
    ------
    DistributedError
        If shapes or types differ between ranks.
    """
    check_alike("measure_linear_costs", _described(x, weight), group)
    return _measure(x.transpose(0, 1), weight, None, group, reduce, peers)


_Attend = tuple[Callable[[int], Any], Callable[[int], float]]
"""Attention of so many queries, and how many pairs that is."""


@torch.no_grad()
def _measure(
    rows: Tensor,
    weight: Tensor,
    attend: _Attend | None,
    group: Any,
    reduce: Reduce | None,
    peers: Peers | None,
) -> OverlapCosts:
    length, batch, _ = rows.shape
    sizes, hidden = (length, max(1, length // 8)), len(weight)
    sums = rows.new_zeros((length * batch, hidden))
    total = reduce or partial(dist.all_reduce, group=group, async_op=True)

    def project(count: int) -> Tensor:
        return torch.mm(rows[:count].flatten(0, 1), weight.mT)

    def beside(_: int) -> None:
        work = total(sums)
        project(length)
        work.wait()

    calls: dict[str, Callable[[int], Any]] = {
        "rows": project,
        "link": lambda count: total(sums[: count * batch]).wait(),
        "beside": beside,
    }
    if attend is not None:
        calls["scores"] = attend[0]
    if peers is not None:
        calls["peers"] = partial(_only_send, batch=batch, hidden=hidden, peers=peers)
    found = _medians(calls, sizes, rows.device, group)
    lines = {name: _line(found[name], sizes) for name in ("rows", "link", "peers") if name in found}
    pairs = (0.0, 0.0) if attend is None else (attend[1](sizes[0]), attend[1](sizes[1]))
    ranks = dist.get_world_size(group)
    return OverlapCosts(
        rows=lines["rows"],
        scores=Line(0.0, 0.0) if attend is None else _line(found["scores"], pairs),
        link=lines["link"],
        slowdown=_slowdown(found["rows"][0], found["link"][0], found["beside"][0]),
        peers=lines.get("peers"),
        ranks=ranks,
        granule=_granule(rows.device, hidden, batch, ranks),
    )


def _medians(
    calls: dict[str, Callable[[int], Any]], sizes: Sequence[int], device: torch.device, group: Any
) -> dict[str, list[float]]:
    """Return the seconds of every call at all sizes, those of the slowest rank, taken in turns."""
    run = {(name, size): partial(call, size) for name, call in calls.items() for size in sizes}
    clock = device_seconds if device.type == "cuda" else host_seconds
    samples: dict[tuple[str, int], list[float]] = {key: [] for key in run}
    graphs = {key: replayed(call, device, group) for key, call in run.items()}
    for _ in range(_REPEATS if device.type == "cuda" else _REPEATS_ON_HOST):
        for key, (call, calls_in_it) in graphs.items():
            dist.barrier(group)
            samples[key].append(clock(call) / calls_in_it)
    medians = [[statistics.median(samples[name, size]) for size in sizes] for name in calls]
    slowest = torch.tensor(medians, dtype=torch.float64).to(device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=group)
    return dict(zip(calls, slowest.tolist(), strict=True))


def fastest(
    candidates: Sequence[OverlapPlan],
    run: Callable[[OverlapPlan], Any],
    device: torch.device,
    *,
    group: Any = None,
    least_gain: float = 0.005,
) -> tuple[OverlapPlan, dict[OverlapPlan, float]]:
    """Return the plan that is fastest when run, and the seconds of each; all ranks call it.

    Parameters
    ----------
    candidates : sequence of OverlapPlan
        The first one is kept unless another gains more than ``least_gain``, as a share.
    run : callable
        Computes the layer by a plan.
    device : torch.device
    group : ProcessGroup, optional
    least_gain : float
    """
    calls: dict[str, Callable[[int], Any]] = {
        str(number): partial(_by_plan, run, plan) for number, plan in enumerate(candidates)
    }
    found = _medians(calls, (0,), device, group)
    seconds = {plan: found[str(number)][0] for number, plan in enumerate(candidates)}
    best = min(candidates, key=seconds.__getitem__)
    first = candidates[0]
    enough = seconds[best] < (1 - least_gain) * seconds[first]
    return best if enough else first, seconds


def _by_plan(run: Callable[[OverlapPlan], Any], plan: OverlapPlan, _: int) -> None:
    run(plan)


def _only_send(rows: int, *, batch: int, hidden: int, peers: Peers) -> Tensor:
    def nothing(start: int, stop: int, part: Tensor, *, add: bool = False) -> None:
        pass

    return sum_through_peers(nothing, (rows, batch, hidden), (rows,), peers, what="measure_costs")


def _slowdown(alone: float, link: float, both: float) -> float:
    """Return the factor of computing beside a sum, from how long both took together.

    While the sum runs, for ``link`` seconds, a share of the computing is done; the rest after.
    """
    shared = min(link, both)
    if both <= shared:  # the sum took longer: all that is known is that it hid the work
        return max(1.0, min(both / alone, 1.5))
    done = alone - (both - shared)
    return min(20.0, max(1.0, shared / max(done, shared / 20.0)))


def _granule(device: torch.device, hidden: int, batch: int, ranks: int) -> int:
    """Return how many queries fill the device once, each rank's share by itself.

    Products take tiles of 128 x 256, one on each multiprocessor at a time.
    """
    if device.type != "cuda":
        return 1
    units = torch.cuda.get_device_properties(device).multi_processor_count
    rows = 128 * max(1, units // -(-hidden // 256))
    return max(1, rows // batch) * ranks


def host_seconds(run: Callable[[], Any], rounds: int = 1) -> float:
    """Return seconds of a call among some, after one that is not timed."""
    run()
    start = time.perf_counter()
    for _ in range(rounds):
        run()
    return (time.perf_counter() - start) / rounds


def device_seconds(run: Callable[[], Any], rounds: int = 2) -> float:
    """Return the device's seconds of a call among some, after one that is not timed."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    run()
    begin.record()
    for _ in range(rounds):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / rounds


def replayed(
    run: Callable[[], Any], device: torch.device, group: Any = None, *, calls: int = 2
) -> tuple[Callable[[], Any], int]:
    """Return what makes a call some times without Python between, and how many times.

    On CUDA that is a graph, where all ranks can record one; elsewhere the call itself. Sums
    through peers' memory take turns between two results, so ``calls`` must be even.

    Parameters
    ----------
    run : callable
        All ranks give the same.
    device : torch.device
    group : ProcessGroup, optional
    calls : int
        Calls in a graph.
    """
    for _ in range(2):
        run()
    if device.type != "cuda":
        return run, 1
    torch.cuda.synchronize()
    graph: Any = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(calls):
                run()
        recorded = 1
    except RuntimeError as error:
        _LOG.warning("a call cannot be recorded: %s", error)
        recorded = 0
    everywhere = torch.tensor([recorded], device=device)
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN, group=group)
    return (graph.replay, calls) if int(everywhere) else (run, 1)


def _line(seconds: Sequence[float], sizes: Sequence[float]) -> Line:
    whole, part = seconds
    if sizes[0] == sizes[1]:
        return Line(0.0, whole / sizes[0])
    each = max(0.0, (whole - part) / (sizes[0] - sizes[1]))
    return Line(max(0.0, whole - each * sizes[0]), each)


def _described(*tensors: Tensor) -> list[tuple[tuple[int, ...], str]]:
    return [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
