"""Starting the ranks of a benchmark, and noticing when one ends."""

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
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
    from tesseral.attention.distributed.launch import joined, launched

    if launched():
        with joined(timeout_s=timeout_s) as device:
            return work(device, watch, **options) or {}
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
    from tesseral.attention.distributed.launch import joined

    watch = messages.put if rank == 0 else _silent
    meeting = f"file://{folder}/meeting"
    with joined(
        rank=rank, size=size, meeting=meeting, local_rank=rank, timeout_s=timeout_s
    ) as device:
        record = work(device, watch, **options)
    if rank == 0:
        (Path(folder) / "record.json").write_text(json.dumps(record), encoding="utf-8")


def _silent(_: str) -> None:
    """Say nothing."""
