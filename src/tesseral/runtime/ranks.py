"""Errors of several ranks: who failed, at which step, and who no longer answers."""

import time
from datetime import timedelta
from typing import Any

from tesseral._errors import DistributedError

_PATIENCE_S = 3.0
"""How long those that failed wait for one another to say so."""


class Step:
    """Turns the failure of a collective into an error that names rank, step and silent ranks.

    Parameters
    ----------
    what : str
        The function or layer.
    step : str
        What could not be done, after "could not".
    group : ProcessGroup or None
        The ranks.
    """

    def __init__(self, what: str, step: str, group: Any = None) -> None:
        self._what, self._step, self._group = what, step, group

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, RuntimeError) or isinstance(error, DistributedError):
            return
        import torch.distributed as dist

        silent = silent_ranks(f"{self._what}/{self._step}", self._group)
        words = f"; no word from rank {', '.join(map(str, silent))}" if silent else ""
        raise DistributedError(
            f"{self._what}: rank {dist.get_rank(self._group)} of "
            f"{dist.get_world_size(self._group)} could not {self._step}{words}; another rank "
            f"ended, or was slower than the time limit of the group: {error}"
        ) from error


def check_alike(what: str, mine: Any, group: Any = None) -> None:
    """Refuse to go on where ranks differ in something, tensors described by shapes and types, say.

    Raises
    ------
    DistributedError
        On all ranks, with the first one that differs from rank 0.
    """
    import torch.distributed as dist

    all_of_them: list[Any] = [None] * dist.get_world_size(group)
    with Step(what, "compare what ranks have", group):
        dist.all_gather_object(all_of_them, mine, group=group)
    for rank, theirs in enumerate(all_of_them):
        if theirs != all_of_them[0]:
            raise DistributedError(
                f"{what}: rank {rank} has {theirs}, rank 0 has {all_of_them[0]}; all ranks need "
                "the same."
            )


def silent_ranks(step: str, group: Any = None, *, patience_s: float = _PATIENCE_S) -> list[int]:
    """Return the ranks that do not say within some seconds that they failed at a step, too.

    Parameters
    ----------
    step : str
        The same on all ranks.
    group : ProcessGroup, optional
    patience_s : float
    """
    import torch.distributed as dist

    size, rank = dist.get_world_size(group), dist.get_rank(group)
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"tesseral/{step}/{rank}", "failed")
    except (RuntimeError, ValueError):
        return []  # the store's host is gone, so nobody can be asked
    until = time.monotonic() + patience_s
    silent = [other for other in range(size) if other != rank]
    while silent:
        left = until - time.monotonic()
        try:
            store.wait([f"tesseral/{step}/{silent[0]}"], timedelta(seconds=max(left, 0.01)))
        except RuntimeError:
            if left <= 0.01:
                return [other for other in silent if not _said(store, step, other)]
            continue
        silent.pop(0)
    return []


def _said(store: Any, step: str, rank: int) -> bool:
    try:
        return bool(store.check([f"tesseral/{step}/{rank}"]))
    except RuntimeError:
        return False
