"""What computing and sending cost, measured; how many tiles pay, predicted."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tesseral._errors import DistributedError
from tesseral.attention.api import attention

_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
_LEAST_GAIN = 0.02
"""Predicted gain, as a share, under which tiles are not worth their risk."""
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds as a function of a size: ``fixed + size * each``."""

    fixed: float
    each: float

    def __call__(self, size: float) -> float:
        """Return the seconds of a size."""
        return self.fixed + size * self.each


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapCosts:
    """What a tile costs.

    Attributes
    ----------
    rows : Line
        Seconds to project so many rows.
    scores : Line
        Seconds of attention over so many visible pairs of query and key.
    link : Line
        Seconds to sum so many rows over the ranks.
    slowdown : float
        Factor of computing while a sum is under way.
    """

    rows: Line
    scores: Line
    link: Line
    slowdown: float = 1.0

    def compute(self, start: int, stop: int, *, kv_len: int, q_len: int, is_causal: bool) -> float:
        """Return the seconds of computing queries ``[start, stop)``, no sum under way."""
        pairs = (stop - start) * kv_len
        if is_causal:
            first, last = (max(0, kv_len - q_len + row + 1) for row in (start, stop - 1))
            pairs = (stop - start) * (first + last) // 2
        return self.rows(stop - start) + self.scores(pairs)

    def predict(
        self, tiles: Sequence[int], *, kv_len: int | None = None, is_causal: bool = False
    ) -> float:
        """Return the seconds until the last tile is summed.

        Computing and summing are two lines, each of which takes its tiles in turn; a tile is
        summed once it is computed. While a sum runs, computing is slower by ``slowdown``.
        """
        q_len = sum(tiles)
        keys = q_len if kv_len is None else kv_len
        now = link_free = 0.0
        for start, stop in pairwise(accumulate(tiles, initial=0)):
            work = self.compute(start, stop, kv_len=keys, q_len=q_len, is_causal=is_causal)
            slow = min(work * self.slowdown, max(0.0, link_free - now))
            now += slow + (work - slow / self.slowdown)
            link_free = max(now, link_free) + self.link(stop - start)
        return link_free


def choose_tiles(
    costs: OverlapCosts, q_len: int, *, kv_len: int | None = None, is_causal: bool = False
) -> tuple[int, ...]:
    """Return the tiles that are predicted to end first; one if overlapping does not pay.

    Tiles take about equal time to compute, but for the first, which takes half of that, so
    that sums begin early.

    Parameters
    ----------
    costs : OverlapCosts
        The same on every rank, as :func:`measure_costs` returns them.
    q_len : int
        Queries.
    kv_len : int, optional
        Keys; ``q_len`` by default. 0 for a linear layer.
    is_causal : bool
        Whether later queries see more keys.

    Examples
    --------
    >>> slow_link = OverlapCosts(rows=Line(0, 1e-6), scores=Line(0, 0), link=Line(1e-5, 1e-6))
    >>> len(choose_tiles(slow_link, 4096)) > 1
    True
    >>> choose_tiles(replace(slow_link, link=Line(1e-2, 0)), 4096)
    (4096,)
    """
    keys = q_len if kv_len is None else kv_len
    options = {
        _equal_work(costs, count, q_len=q_len, kv_len=keys, is_causal=is_causal)
        for count in _COUNTS
        if count <= q_len
    }

    def seconds(tiles: Sequence[int]) -> float:
        return costs.predict(tiles, kv_len=keys, is_causal=is_causal)

    best = min(sorted(options, key=len), key=seconds)
    plain = (q_len,)
    return best if seconds(best) < (1 - _LEAST_GAIN) * seconds(plain) else plain


def _equal_work(
    costs: OverlapCosts, count: int, *, q_len: int, kv_len: int, is_causal: bool
) -> tuple[int, ...]:
    """Return tiles whose work is as 1 : 2 : 2 : ..., each of a row at least."""
    if count == 1:
        return (q_len,)

    def done(row: int) -> float:
        fixed = costs.rows.fixed + costs.scores.fixed
        shape = {"kv_len": kv_len, "q_len": q_len}
        return costs.compute(0, row, is_causal=is_causal, **shape) - fixed

    ends = [0]
    for number in range(1, count):
        target = done(q_len) * (2 * number - 1) / (2 * count - 1)
        low, high = ends[-1] + 1, q_len - (count - number)
        while low < high:  # the first row at which so much is done
            middle = (low + high) // 2
            low, high = (low, middle) if done(middle) >= target else (middle + 1, high)
        ends.append(low)
    return tuple(stop - start for start, stop in pairwise([*ends, q_len]))


def measure_costs(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, *, group: Any = None
) -> OverlapCosts:
    """Measure what a layer of these shapes costs; all ranks call it, and get the same answer.

    Each line is drawn through the medians of two sizes, the whole and an eighth, and a cost
    is that of the slowest rank.

    Parameters
    ----------
    query, key, value, weight
        As for :func:`tesseral.attention.distributed.attention_all_reduce`.
    group : ProcessGroup, optional
        The ranks; all by default.

    Raises
    ------
    DistributedError
        If shapes or types differ between ranks.
    """
    _check_alike((query, key, value, weight), group)
    sizes = query.shape[2], max(1, query.shape[2] // 8)
    batch, heads = query.shape[:2]
    rows = query.new_zeros((sizes[0] * batch, heads * value.shape[-1]))
    sums = query.new_zeros((sizes[0] * batch, len(weight)))

    def seconds(run: Callable[[int], Any]) -> tuple[float, float]:
        whole, part = (_median(partial(run, size), query.device, group) for size in sizes)
        return whole, part

    with torch.no_grad():
        times = [
            seconds(lambda n: torch.mm(rows[: n * batch], weight.mT)),
            seconds(lambda n: attention(query[:, :, :n], key, value)),
            seconds(lambda n: dist.all_reduce(sums[: n * batch], group=group)),
        ]
    slowest = torch.tensor(times, dtype=torch.float64)
    slowest = slowest.to(query.device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=group)
    project, attend, link = (_line(pair, sizes) for pair in slowest.tolist())
    kv_len = max(1, key.shape[2])
    return OverlapCosts(rows=project, scores=replace(attend, each=attend.each / kv_len), link=link)


def _median(run: Callable[[], Any], device: torch.device, group: Any) -> float:
    samples = []
    for _ in range(_REPEATS + 1):
        dist.barrier(group)
        _finish(device)
        start = time.perf_counter()
        run()
        _finish(device)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples[1:])


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _line(seconds: Sequence[float], sizes: tuple[int, int]) -> Line:
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
                f"measure_costs: rank {rank} has query, key, value and weight {theirs}, rank 0 "
                f"has {all_of_them[0]}; all ranks need the same shapes and types."
            )
