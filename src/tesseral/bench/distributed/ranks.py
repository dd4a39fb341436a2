"""Starting the ranks of a benchmark, and noticing when one ends."""

import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from queue import Empty
from typing import Any

from tesseral._errors import DistributedError

Work = Callable[..., dict[str, Any] | None]
"""Runs on every rank, with a group made: ``work(device, watch, **options)``; rank 0's is kept."""

_LOOK_S = 0.2


def run_ranks(
    work: Work,
    size: int,
    options: Mapping[str, Any],
    watch: Callable[[str], None],
    *,
    timeout_s: float = 120.0,
) -> dict[str, Any]:
    """Run work on some ranks of this machine, each a process, on CUDA devices where all have one.

    Under ``torchrun`` this process is a rank already, and nothing is started.

    Parameters
    ----------
    work : callable
        A function of a module.
    size : int
        How many ranks.
    options : mapping
        Passed on.
    watch : callable
        Is told by rank 0 what it does.
    timeout_s : float
        Longest time that a rank waits for another one.

    Returns
    -------
    dict
        What rank 0 returns; an empty one on other ranks under ``torchrun``.

    Raises
    ------
    DistributedError
        If a rank fails, with what it wrote.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return _joined(work, rank, count, "env://", options, watch, timeout_s) or {}
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    with tempfile.TemporaryDirectory(prefix="tesseral-ranks-") as folder:
        processes = [
            context.Process(
                target=_rank,
                args=(work, rank, size, folder, dict(options), messages, timeout_s),
                daemon=True,
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        try:
            _watch(processes, messages, watch)
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()
                process.join()
        found: dict[str, Any] = json.loads((Path(folder) / "record.json").read_text("utf-8"))
        return found


def _watch(processes: list[Any], messages: Any, watch: Callable[[str], None]) -> None:
    while any(process.is_alive() for process in processes):
        _pass_on(messages, watch)
        for rank, process in enumerate(processes):
            if process.exitcode not in (None, 0):
                raise DistributedError(
                    f"rank {rank} of {len(processes)} ended with exit code {process.exitcode}; "
                    "what it met stands above."
                )
    for rank, process in enumerate(processes):
        if process.exitcode:
            raise DistributedError(f"rank {rank} ended with exit code {process.exitcode}.")


def _pass_on(messages: Any, watch: Callable[[str], None]) -> None:
    try:
        watch(messages.get(timeout=_LOOK_S))
    except Empty:
        return


def _rank(
    work: Work,
    rank: int,
    size: int,
    folder: str,
    options: dict[str, Any],
    messages: Any,
    timeout_s: float,
) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    watch = messages.put if rank == 0 else _silent
    meeting = f"file://{folder}/meeting"
    record = _joined(work, rank, size, meeting, options, watch, timeout_s)
    if rank == 0:
        (Path(folder) / "record.json").write_text(json.dumps(record), encoding="utf-8")


def _joined(
    work: Work,
    rank: int,
    size: int,
    meeting: str,
    options: Mapping[str, Any],
    watch: Callable[[str], None],
    timeout_s: float,
) -> dict[str, Any] | None:
    import torch
    import torch.distributed as dist

    on_cuda = torch.cuda.device_count() >= size
    device = torch.device("cuda", rank) if on_cuda else torch.device("cpu")
    if on_cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // size))
        os.environ.setdefault("TESSERAL_CPU_THREADS", str(torch.get_num_threads()))
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        init_method=meeting,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if on_cuda else None,
    )
    try:
        return work(device, watch, **options)
    finally:
        dist.destroy_process_group()


def _silent(_: str) -> None:
    """Say nothing."""
