"""A link that is as slow as one likes: gloo's sums, and the time that they would take on it."""

import queue
import threading
import time
from typing import Any

import torch.distributed as dist
from torch import Tensor


class SlowLink:
    """Sums one tensor after the other in a thread, each in the time that a slow link takes.

    A sum over ``n`` ranks sends ``2 (n - 1) / n`` of its bytes. Where the real sum takes longer
    than that, nothing is added.

    Parameters
    ----------
    bytes_per_s : float
        What the link sends.
    group : ProcessGroup, optional
        The ranks.

    Attributes
    ----------
    log : list of (float, float, float)
        When each sum was asked for, began and ended, by ``time.perf_counter``.
    """

    def __init__(self, bytes_per_s: float, group: Any = None) -> None:
        size = dist.get_world_size(group)
        self.bytes_per_s = bytes_per_s
        self.log: list[tuple[float, float, float]] = []
        self._rate, self._group = bytes_per_s * size / (2 * (size - 1)), group
        self._queue: queue.SimpleQueue[tuple[Tensor, _Sum] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __call__(self, tensor: Tensor) -> "_Sum":
        """Begin to sum a tensor in place."""
        pending = _Sum()
        self._queue.put((tensor, pending))
        return pending

    def close(self) -> None:
        """Wait for all sums, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            tensor, pending = entry
            begin = time.perf_counter()
            end = begin + tensor.nbytes / self._rate
            try:
                dist.all_reduce(tensor, group=self._group)
            except RuntimeError as error:
                pending.error = error
            time.sleep(max(0.0, end - time.perf_counter()))
            self.log.append((pending.asked, begin, time.perf_counter()))
            pending.done.set()


class _Sum:
    """A sum under way."""

    def __init__(self) -> None:
        self.asked = time.perf_counter()
        self.done = threading.Event()
        self.error: RuntimeError | None = None

    def wait(self) -> None:
        """Wait until it is done; raise what it met."""
        self.done.wait()
        if self.error is not None:
            raise self.error
