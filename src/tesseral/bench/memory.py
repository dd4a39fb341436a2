"""How much memory a call takes at its peak, beyond what it is given and what it returns."""

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_SELF = Path("/proc/self")
_EVERY_BUFFER_FROM_THE_SYSTEM = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def peak_extra_bytes(call: Callable[[], Any]) -> int | None:
    """Return the peak of resident memory during a call, less what was there before and its result.

    Memory that was freed before and not returned to the system hides what is allocated anew, so
    this is to be called in a process of its own; see :func:`run_alone`.

    Parameters
    ----------
    call : callable
        Returns an array, which must have been written in full.

    Returns
    -------
    int or None
        ``None`` where the system does not tell, which is anywhere but on Linux.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (_SELF / "clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
        before = _resident("VmRSS")
        result = call()
        return max(0, _resident("VmHWM") - before - int(result.nbytes))
    except OSError:
        return None


class Peak:
    """The peak of this process's resident memory above what it has now."""

    def __init__(self) -> None:
        self._before: int | None = None
        with suppress(OSError):
            (_SELF / "clear_refs").write_text("5", encoding="ascii")
            self._before = _resident("VmRSS")

    def bytes(self) -> int | None:
        """Return it; ``None`` where the system does not tell."""
        return None if self._before is None else _resident("VmHWM") - self._before


def run_alone(module: str, requests: Sequence[Any], *, threads: int) -> list[Any]:
    """Run ``module`` in another process and return what it answers.

    Parameters
    ----------
    module : str
        Reads one JSON list from stdin and writes another to stdout.
    requests : sequence of plain values
        What it reads.
    threads : int
        Threads of torch and of our kernels there.
    """
    # a process that grows its heap in small steps keeps what it once had
    environment = {**os.environ, **_EVERY_BUFFER_FROM_THE_SYSTEM, "OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(list(requests)),
        env={**environment, "TESSERAL_CPU_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answers: list[Any] = json.loads(result.stdout)
    return answers


def _resident(name: str) -> int:
    """Return a number of bytes that the system keeps of this process."""
    text = (_SELF / "status").read_text(encoding="ascii")
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    if match is None:
        raise OSError(f"{_SELF / 'status'} has no {name}")
    return 1024 * int(match[1])
