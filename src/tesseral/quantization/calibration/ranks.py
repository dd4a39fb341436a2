"""Steps that several ranks take together, each on its part of the sequences."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tesseral.runtime.ranks import Step

_NAME = "calibration"


class Ranks:
    """The ranks of a process group, as steps of calibration need them.

    Parameters
    ----------
    group : ProcessGroup, optional
        All ranks by default.

    Raises
    ------
    DistributedError
        By every method, if another rank ended or did not come in time.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def share(self, rows: Tensor) -> Tensor:
        """Return this rank's part of some rows, an empty one where there are fewer than ranks."""
        low, high = (len(rows) * edge // self.size for edge in (self.rank, self.rank + 1))
        return rows[low:high]

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors of one type over the ranks, in place and in one message."""
        held = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in held])
        with Step(_NAME, "sum the slopes of a step", self._group):
            dist.all_reduce(flat, group=self._group)
        for tensor, part in zip(held, flat.split([t.numel() for t in held]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def follow_first(self, tensors: Iterable[Tensor]) -> None:
        """Take the values that the first rank has."""
        with Step(_NAME, "take what the first rank starts from", self._group):
            for tensor in tensors:
                dist.broadcast(tensor, group=self._group, group_src=0)

    def wait(self) -> None:
        """Wait for all ranks."""
        with Step(_NAME, "wait for the others", self._group):
            dist.barrier(self._group)
