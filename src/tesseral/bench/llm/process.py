"""The processes of the sides, and asking them in turns."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from tesseral._errors import BackendError


class SideProcess:
    """A side of a benchmark in a process of its own; a context manager.

    Parameters
    ----------
    description : dict
        As :func:`tesseral.bench.llm.sides.make` takes it.
    threads : int
        Threads of everything in it.
    """

    def __init__(self, description: Mapping[str, Any], threads: int) -> None:
        self._name = description["name"]
        count = {"OMP_NUM_THREADS": str(threads), "TESSERAL_CPU_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tesseral.bench.llm.sides", json.dumps(description)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | count,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for what was measured.

        Raises
        ------
        BackendError
            If the process has ended.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BackendError(
                f"bench llm: the side {self._name!r} ended with status {process.wait()}."
            )
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def started(sides: list[dict[str, Any]], threads: int) -> Iterator[dict[str, SideProcess]]:
    """Give the processes of several sides, by name."""
    with ExitStack() as stack:
        processes = {}
        for side in sides:
            processes[side["name"]] = SideProcess(side, threads)
            stack.callback(processes[side["name"]].close)
        yield processes
