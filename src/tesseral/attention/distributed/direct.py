"""Summing over ranks that write into one another's memory, while products are computed.

Every row of a tile has an owner. A rank computes the rows of others first and sends them there;
its own rows it computes onto what came from the others, a tile later, so that sending has time,
and sends the result to all. No kernel adds: the product that comes last does, before rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tesseral.attention.distributed.overlap import Compute, spans
from tesseral.attention.distributed.peers import CHANNELS, Peers

_ALL_SENT = CHANNELS - 1


def sum_through_peers(
    compute: Compute,
    shape: Sequence[int],
    tiles: Sequence[int],
    peers: Peers,
    *,
    what: str,
) -> Tensor:
    """Return rows computed in parts on every rank and summed.

    Parts are added in the order of ranks, the owner's last: the same tiles give the same bits
    every time, and on every rank.

    Parameters
    ----------
    compute : callable
        Computes this rank's part of rows ``[start, stop)``.
    shape : sequence of int
        Of the result: (rows, ..., width).
    tiles : sequence of int
        Rows of each tile; they add up to ``rows``.
    peers : Peers
        The ranks and their memory.
    what : str
        Named in errors.

    Returns
    -------
    tensor of the shape asked for
        The same on every rank, in memory that the call after the next one uses again.
    """
    pieces = list(spans(tiles, shape[0], what=what))
    out = peers.begin(shape)
    run = _Run(compute, out, peers, pieces)
    with torch.no_grad():
        for number in range(len(pieces)):
            run.send(number)
            if number:
                run.keep(number - 1)
        run.keep(len(pieces) - 1)
        for peer in run.others:
            peers.wait(peer, _ALL_SENT)
    peers.sent()
    return out


class _Run:
    """One sum under way."""

    def __init__(
        self, compute: Compute, out: Tensor, peers: Peers, pieces: list[tuple[int, int]]
    ) -> None:
        self._compute, self._out, self._peers, self._pieces = compute, out, peers, pieces
        me, size = peers.rank, peers.size
        self.others = [(me + step) % size for step in range(1, size)]
        """Other ranks, each in another order, so that they do not all write to one."""

    def send(self, number: int) -> None:
        """Compute the rows of others and send each its own."""
        peers, (start, stop) = self._peers, self._pieces[number]
        mine = self._share(number, peers.rank)
        for low, high in ((start, mine[0]), (mine[1], stop)):
            if low == high:
                continue
            part = self._out.new_empty((high - low, *self._out.shape[1:]))
            self._compute(low, high, part)
            with peers.sending(part):
                for peer in self.others:
                    first, end = self._share(number, peer)
                    if low <= first < end <= high:
                        self._landing(peer, number).copy_(part[first - low : end - low])
        with peers.sending():
            for peer in self.others:
                peers.signal(peer, number % _ALL_SENT)

    def keep(self, number: int) -> None:
        """Compute the own rows onto what came, and send the result to all."""
        peers, (start, stop) = self._peers, self._share(number, self._peers.rank)
        for peer in self.others:
            peers.wait(peer, number % _ALL_SENT)
        if start < stop:
            part = self._out[start:stop]
            if peers.size > 2:
                torch.sum(self._arrived(number), dim=0, out=part)
            self._compute(start, stop, part, add=True)
            with peers.sending():
                for peer in self.others:
                    peers.result_of(peer, start, stop).copy_(part)
        if number == len(self._pieces) - 1:
            with peers.sending():
                for peer in self.others:
                    peers.signal(peer, _ALL_SENT)

    def _share(self, number: int, rank: int) -> tuple[int, int]:
        start, stop = self._pieces[number]
        low, high = ((stop - start) * edge // self._peers.size for edge in (rank, rank + 1))
        return start + low, start + high

    def _landing(self, peer: int, number: int) -> Tensor:
        """Return where a part of this rank goes: of two ranks, where it is added."""
        start, stop = self._share(number, peer)
        if self._peers.size == 2:
            return self._peers.result_of(peer, start, stop)
        return self._peers.inbox_of(
            peer, self._peers.rank, self._before(peer, number), stop - start
        )

    def _arrived(self, number: int) -> Tensor:
        me, (start, stop) = self._peers.rank, self._share(number, self._peers.rank)
        return self._peers.arrived(self._before(me, number), stop - start)

    def _before(self, rank: int, number: int) -> int:
        """Return how many rows of earlier tiles a rank owns."""
        shares = (self._share(earlier, rank) for earlier in range(number))
        return sum(stop - start for start, stop in shares)
