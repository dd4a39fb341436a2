"""Joining the ranks that ``torchrun`` started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from tesseral._errors import ParameterError

if dist.is_available():
    # Its functions have the group of all ranks as a default, taken when it is imported. Whoever
    # imports it later (transformers does) keeps that group, and gloo's threads, to the end of the
    # interpreter, which one of them may then abort.
    import torch.distributed.nn.functional


def launched() -> bool:
    """Return whether ``torchrun`` started this process as one of several."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def joined(
    *,
    rank: int = -1,
    size: int = -1,
    meeting: str = "env://",
    local_rank: int | None = None,
    timeout_s: float = 120.0,
    kind: str | None = None,
) -> Iterator[torch.device]:
    """Belong to a process group inside: NCCL where every rank has a CUDA device, else gloo.

    Parameters
    ----------
    rank, size : int
        Which rank this is, of how many; ``torchrun`` says so by default.
    meeting : str
        How ranks find one another; see ``torch.distributed.init_process_group``.
    local_rank : int, optional
        Number among the ranks of this machine.
    timeout_s : float
        Longest time that a rank waits for another one.
    kind : {"cpu", "cuda"}, optional
        Where ranks compute; on CUDA devices if there are enough, by default.

    Yields
    ------
    torch.device
        Of this rank.

    Raises
    ------
    ParameterError
        If ``kind`` is another one, or there are fewer CUDA devices than ranks here.
    """
    local = dist.get_node_local_rank() if local_rank is None else local_rank
    here = size if size > 0 else int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    on_cuda = _on_cuda(here, kind)
    device = torch.device("cuda", local) if on_cuda else torch.device("cpu")
    if on_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        init_method=meeting,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if on_cuda else None,
    )
    threads = torch.get_num_threads()
    try:
        # torchrun leaves a rank one thread; on CUDA devices, too, the CPU may have work
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))
        yield device
    finally:
        torch.set_num_threads(threads)
        dist.destroy_process_group()


def _on_cuda(ranks: int, kind: str | None) -> bool:
    """Return whether ranks of this machine compute on CUDA devices, each on its own."""
    if kind not in (None, "cpu", "cuda"):
        raise ParameterError(f"ranks: each has a device of its own; give cpu or cuda, not {kind}.")
    found = torch.cuda.device_count()
    if kind == "cuda" and found < ranks:
        raise ParameterError(f"ranks: {ranks} of them need as many CUDA devices, found {found}.")
    return found >= ranks and kind != "cpu"
