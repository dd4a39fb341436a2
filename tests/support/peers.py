"""Ranks that are threads of one process, and write into one another's tensors at once."""

from contextlib import nullcontext
from itertools import product
from queue import Queue
from threading import Thread

import torch

from tesseral.attention.distributed.peers import CHANNELS

PATIENCE_S = 20


class Shared:
    """What all threads see."""

    def __init__(self, size, rows, width):
        self.size = size
        self.results = torch.full((size, 2, rows * width), torch.nan)
        self.inboxes = torch.full((size, size - 1, rows, width), torch.nan)
        ranks = range(size)
        self.signals = {each: Queue() for each in product(ranks, ranks, range(CHANNELS))}


class ThreadPeers:
    """A rank of it; :class:`tesseral.attention.distributed.Peers` says what each method does."""

    def __init__(self, shared, rank):
        self.shared, self.rank, self.size = shared, rank, shared.size
        self.turn = 0
        self.shape = ()

    def begin(self, shape):
        self.turn, self.shape = 1 - self.turn, tuple(shape)
        return self._result(self.rank)

    def result_of(self, peer, start, stop):
        return self._result(peer)[start:stop]

    def inbox_of(self, peer, sender, start, rows):
        inbox = self.shared.inboxes[peer, sender - (sender > peer)]
        return self._rows(inbox, start, rows)

    def arrived(self, start, rows):
        inboxes = self.shared.inboxes[self.rank]
        return torch.stack([self._rows(inbox, start, rows) for inbox in inboxes])

    def _rows(self, inbox, start, rows):
        each = torch.Size(self.shape[1:]).numel()
        places = slice(start * each, (start + rows) * each)
        return inbox.view(-1)[places].view(rows, *self.shape[1:])

    def sending(self, *_):
        return nullcontext()

    def signal(self, peer, channel):
        self.shared.signals[self.rank, peer, channel].put(None)

    def wait(self, peer, channel):
        self.shared.signals[peer, self.rank, channel].get(timeout=PATIENCE_S)

    def sent(self):
        pass

    def _result(self, peer):
        numbers = torch.Size(self.shape).numel()
        return self.shared.results[peer, self.turn, :numbers].view(self.shape)


def run_threads(work, size, *, rows, width):
    """Call ``work(peers)`` on every rank; return the results by rank."""
    shared, results = Shared(size, rows, width), [None] * size

    def run(rank):
        results[rank] = work(ThreadPeers(shared, rank))

    threads = [Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    return results
