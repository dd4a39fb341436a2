"""Memory of other ranks on the same machine, written to by copy engines."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from tesseral._errors import DistributedError, ParameterError
from tesseral.runtime.ranks import check_alike

CHANNELS = 16
"""Signals of a rank to another one that may be under way at once; the last says "all sent"."""


class Peers(Protocol):
    """Ranks that write into one another's memory."""

    rank: int
    size: int

    def begin(self, shape: Sequence[int]) -> Tensor:
        """Return memory for the next result; it is used again in the call after the next one."""

    def result_of(self, peer: int, start: int, stop: int) -> Tensor:
        """Return rows of another rank's present result."""

    def inbox_of(self, peer: int, sender: int, start: int, rows: int) -> Tensor:
        """Return rows of what a rank keeps for the parts that a sender brings."""

    def arrived(self, start: int, rows: int) -> Tensor:
        """Return rows of the own inbox, of all senders by rank: (size - 1, rows, ...)."""

    def sending(self, *parts: Tensor) -> AbstractContextManager[None]:
        """Let copies inside begin once all work before is done, beside the work that follows."""

    def signal(self, peer: int, channel: int) -> None:
        """Tell a rank, behind the copies so far."""

    def wait(self, peer: int, channel: int) -> None:
        """Let the work that follows begin once a rank has told."""

    def sent(self) -> None:
        """Let the work that follows begin once all copies of this rank are done."""


def peers_refused(device: torch.device, group: Any = None) -> str | None:
    """Return why ranks cannot write into one another's memory, None if they can.

    All ranks get the same answer.
    """
    mine = _refused(device, dist.get_world_size(group))
    all_of_them: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(all_of_them, (mine, _host()), group=group)
    if len({host for _, host in all_of_them}) > 1:
        return "ranks are on several machines"
    return next((reason for reason, _ in all_of_them if reason), None)


def _refused(device: torch.device, size: int) -> str | None:
    if device.type != "cuda":
        return f"needs CUDA devices, got {device}"
    if size < 2:
        return "there is one rank only"
    for other in range(torch.cuda.device_count()):
        if other != device.index and not torch.cuda.can_device_access_peer(device, other):
            return f"{device} cannot reach the memory of cuda:{other}"
    return None


def _host() -> str:
    import socket

    return socket.gethostname()


class PeerMemory:
    """Two results, in turns, in memory that the ranks of one machine share over NVLink.

    Of calls that are recorded in a CUDA graph, an even number belongs into it. Data go by copy
    engines, signals as copies of one word, so that no multiprocessor is taken
    from computing; a wait is a kernel of one warp.

    Parameters
    ----------
    rows, width : int
        Most rows of a result (queries times sequences), and numbers in each.
    dtype, device
        Of results.
    group : ProcessGroup, optional
        The ranks; all by default. All of them make it together.
    timeout_s : float
        A wait that takes longer ends the program.

    Raises
    ------
    DistributedError
        If memory cannot be shared, or ranks ask for different ones.
    """

    def __init__(
        self,
        rows: int,
        width: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        group: Any = None,
        timeout_s: float = 60.0,
    ) -> None:
        import torch.distributed._symmetric_memory as symmetric

        group = dist.group.WORLD if group is None else group
        check_alike("PeerMemory", (rows, width, str(dtype)), group)
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._capacity, self._width, self._dtype = rows * width, width, dtype
        # behind the two results an inbox: of two ranks, parts arrive where they are added
        self._inbox = rows // self.size + rows // 16 + 64 if self.size > 2 else 0
        total = 2 * self._capacity + self._inbox * width * (self.size - 1)
        try:
            self._memory = symmetric.empty(total, dtype=dtype, device=device)
            self._handle: Any = symmetric.rendezvous(self._memory, group)
        except RuntimeError as error:
            raise DistributedError(f"PeerMemory: memory cannot be shared: {error}") from error
        pads = {
            (peer, channel): self._handle.get_signal_pad(
                peer, [1], torch.int32, channel * self.size + self.rank
            )
            for peer in range(self.size)
            for channel in range(CHANNELS)
        }
        self._pads: dict[tuple[int, int], Tensor] = pads
        self._one = torch.ones(1, dtype=torch.int32, device=device)
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._timeout_ms = int(1000 * timeout_s)
        self._turn, self._shape = 0, torch.Size()
        torch.cuda.synchronize(device)
        dist.barrier(group)

    def begin(self, shape: Sequence[int]) -> Tensor:
        """See :class:`Peers`."""
        self._shape = torch.Size(shape)
        if self._shape.numel() > self._capacity or self._shape[-1] != self._width:
            raise ParameterError(
                f"PeerMemory: has room for {self._capacity // self._width} rows of {self._width}, "
                f"a result of shape {tuple(shape)} is asked for."
            )
        self._turn = 1 - self._turn
        return self._view(self.rank, self._turn * self._capacity, self._shape)

    def result_of(self, peer: int, start: int, stop: int) -> Tensor:
        """See :class:`Peers`."""
        each = self._shape[1:].numel()
        offset = self._turn * self._capacity + start * each
        return self._view(peer, offset, (stop - start, *self._shape[1:]))

    def inbox_of(self, peer: int, sender: int, start: int, rows: int) -> Tensor:
        """See :class:`Peers`."""
        slot = sender - (sender > peer)
        offset = self._places(start, rows)[0] + slot * self._inbox * self._width
        return self._view(peer, 2 * self._capacity + offset, (rows, *self._shape[1:]))

    def arrived(self, start: int, rows: int) -> Tensor:
        """See :class:`Peers`."""
        low, high = self._places(start, rows)
        slots = self._memory[2 * self._capacity :].view(self.size - 1, -1)
        return slots[:, low:high].view(self.size - 1, rows, *self._shape[1:])

    def _places(self, start: int, rows: int) -> tuple[int, int]:
        each = self._shape[1:].numel()
        if (start + rows) * each > self._inbox * self._width:
            raise ParameterError("PeerMemory: too many tiles that ranks do not divide.")
        return start * each, (start + rows) * each

    def sending(self, *parts: Tensor) -> AbstractContextManager[None]:
        """See :class:`Peers`."""
        self._stream.wait_stream(torch.cuda.current_stream())
        for part in parts:
            part.record_stream(self._stream)
        return torch.cuda.stream(self._stream)

    def signal(self, peer: int, channel: int) -> None:
        """See :class:`Peers`."""
        self._pads[peer, channel].copy_(self._one)

    def wait(self, peer: int, channel: int) -> None:
        """See :class:`Peers`."""
        self._handle.wait_signal(peer, channel, self._timeout_ms)

    def sent(self) -> None:
        """See :class:`Peers`."""
        torch.cuda.current_stream().wait_stream(self._stream)

    def _view(self, peer: int, offset: int, shape: Sequence[int]) -> Tensor:
        view: Tensor = self._handle.get_buffer(peer, list(shape), self._dtype, offset)
        return view
