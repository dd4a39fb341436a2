"""Summing over ranks a tile of rows at a time, while the next tile is computed."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from tesseral._errors import ParameterError
from tesseral.runtime.ranks import Step


class Compute(Protocol):
    """Computes this rank's part of some rows."""

    def __call__(self, start: int, stop: int, part: Tensor, *, add: bool = False) -> None:
        """Write rows ``[start, stop)`` to ``part``, or add them to what is there."""


Reduce = Callable[[Tensor], Any]
"""Begins to sum a tensor over the ranks, in place; returns what has ``wait()``."""


def sum_by_tiles(
    compute: Compute,
    out: Tensor,
    tiles: Sequence[int],
    group: Any,
    *,
    what: str,
    reduce: Reduce | None = None,
) -> Tensor:
    """Fill ``out`` tile by tile and sum every tile over the ranks as soon as it is there.

    On a CUDA device the reductions run on NCCL's own stream, and what follows on the current
    stream waits for all of them. Terms are added in the order of the backend's algorithm for
    a message of that size: the same tiles give the same bits every time.

    Parameters
    ----------
    compute : callable
        Writes this rank's part of rows ``[start, stop)``.
    out : tensor of shape (rows, ...)
        Contiguous.
    tiles : sequence of int
        Rows of each tile; they add up to ``rows``.
    group : ProcessGroup or None
        The ranks to sum over; None for all.
    what : str
        Named in errors.
    reduce : callable, optional
        Begins a sum; ``dist.all_reduce`` of the group by default.

    Raises
    ------
    DistributedError
        If a reduction fails or runs out of time, with rank and tile.
    """
    works: list[Any] = []
    with torch.no_grad():
        for start, stop in spans(tiles, len(out), what=what):
            part = out[start:stop]
            compute(start, stop, part)
            with Step(what, f"sum tile {len(works) + 1} of {len(tiles)}", group):
                if reduce is None:
                    works.append(dist.all_reduce(part, group=group, async_op=True))
                else:
                    works.append(reduce(part))
        for number, work in enumerate(works):
            with Step(what, f"sum tile {number + 1} of {len(tiles)}", group):
                work.wait()
    return out


def spans(tiles: Sequence[int], rows: int, *, what: str) -> Iterator[tuple[int, int]]:
    """Return first row and end of every tile.

    Raises
    ------
    ParameterError
        If tiles are not positive or do not add up to ``rows``.
    """
    if sum(tiles) != rows or any(size < 1 for size in tiles):
        raise ParameterError(
            f"{what}: tiles of {tuple(tiles)} rows do not make up {rows}; give positive "
            "numbers that add up to it."
        )
    return pairwise(accumulate(tiles, initial=0))
