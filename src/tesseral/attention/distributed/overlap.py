"""Summing over ranks a tile of rows at a time, while the next tile is computed."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tesseral._errors import DistributedError, ParameterError

Compute = Callable[[int, int, Tensor], None]
"""Takes the first row of a tile, the row behind its last, and where its part is to be written."""


def sum_by_tiles(
    compute: Compute, out: Tensor, tiles: Sequence[int], group: Any, *, what: str
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

    Raises
    ------
    DistributedError
        If a reduction fails or runs out of time, with rank and tile.
    """
    if sum(tiles) != len(out) or any(rows < 1 for rows in tiles):
        raise ParameterError(
            f"{what}: tiles of {tuple(tiles)} rows do not make up {len(out)}; give positive "
            "numbers that add up to it."
        )
    works: list[Any] = []
    with torch.no_grad():
        for start, stop in pairwise(accumulate(tiles, initial=0)):
            part = out[start:stop]
            compute(start, stop, part)
            with _Named(what, len(works), len(tiles), group):
                works.append(dist.all_reduce(part, group=group, async_op=True))
        for number, work in enumerate(works):
            with _Named(what, number, len(tiles), group):
                work.wait()
    return out


class _Named:
    """Turns the failure of a collective into an error that names the rank and the tile."""

    def __init__(self, what: str, tile: int, tiles: int, group: Any) -> None:
        self.where = what, tile, tiles, group

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, RuntimeError):
            return
        what, tile, tiles, group = self.where
        raise DistributedError(
            f"{what}: rank {dist.get_rank(group)} of {dist.get_world_size(group)} could not sum "
            f"tile {tile + 1} of {tiles}; another rank ended, or was slower than the time limit "
            f"of the group: {error}"
        ) from error
