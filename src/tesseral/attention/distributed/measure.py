"""Measuring what a layer costs on the ranks of a group."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tesseral._errors import DistributedError
from tesseral.attention.api import attention
from tesseral.attention.distributed.costs import Line, OverlapCosts, OverlapPlan
from tesseral.attention.distributed.direct import sum_through_peers
from tesseral.attention.distributed.overlap import Reduce
from tesseral.attention.distributed.peers import Peers

_REPEATS = 5


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
    _check_alike((query, key, value, weight), group)
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
    _check_alike((x, weight), group)
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
    """Return the seconds of every call at both sizes, those of the slowest rank."""
    times = [
        [_median(partial(call, size), device, group) for size in sizes] for call in calls.values()
    ]
    slowest = torch.tensor(times, dtype=torch.float64).to(device)
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


def _median(run: Callable[[], Any], device: torch.device, group: Any) -> float:
    measure = _on_device if device.type == "cuda" else _on_host
    samples = []
    for _ in range(_REPEATS + 1):
        dist.barrier(group)
        samples.append(measure(run))
    return statistics.median(samples[1:])


def _on_host(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _on_device(run: Callable[[], Any]) -> float:
    """Return seconds of a call among others, so that starting it is hidden."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    run()
    begin.record()
    run()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 2e3


def _line(seconds: Sequence[float], sizes: Sequence[float]) -> Line:
    whole, part = seconds
    if sizes[0] == sizes[1]:
        return Line(0.0, whole / sizes[0])
    each = max(0.0, (whole - part) / (sizes[0] - sizes[1]))
    return Line(max(0.0, whole - each * sizes[0]), each)


def _check_alike(tensors: Sequence[Tensor], group: Any) -> None:
    mine = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
    all_of_them: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(all_of_them, mine, group=group)
    for rank, theirs in enumerate(all_of_them):
        if theirs != all_of_them[0]:
            raise DistributedError(
                f"measure_costs: rank {rank} has tensors of {theirs}, rank 0 "
                f"has {all_of_them[0]}; all ranks need the same shapes and types."
            )
