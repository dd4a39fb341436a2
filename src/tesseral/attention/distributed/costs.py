"""What computing and sending cost, and how long tiles take at such costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal

Through = Literal["group", "peers"]
"""How sums go: by the process group's own algorithm, or by copies into peers' memory."""


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds as a function of a size: ``fixed + size * each``."""

    fixed: float
    each: float

    def __call__(self, size: float) -> float:
        """Return the seconds of a size."""
        return self.fixed + size * self.each


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapCosts:
    """What a tile costs.

    Attributes
    ----------
    rows : Line
        Seconds to project so many rows.
    scores : Line
        Seconds of attention over so many visible pairs of query and key.
    link : Line
        Seconds to sum so many rows over the ranks.
    slowdown : float
        Factor of computing while a sum is under way.
    peers : Line, optional
        Seconds to sum so many rows through peers' memory, nothing computed; None where ranks
        have no such memory. Computing is not slowed down by that.
    ranks : int
        How many there are.
    granule : int
        Tiles of a multiple of so many rows fill the device well.
    """

    rows: Line
    scores: Line
    link: Line
    slowdown: float = 1.0
    peers: Line | None = None
    ranks: int = 2
    granule: int = 1

    def on(self, ranks: int) -> "OverlapCosts":
        """Return what the same layer would cost on another number of ranks, by proportion.

        Each rank then has another share of the heads and of the projection's columns. To sum over
        ``n`` ranks a row's bytes pass ``2 (n - 1) / n`` times; what a sum costs however small it is
        grows with the ``n - 1`` steps of a ring.
        """
        share = self.ranks / ranks
        bytes_ = (ranks - 1) / ranks * self.ranks / (self.ranks - 1)
        steps = (ranks - 1) / (self.ranks - 1)

        def sent(line: Line) -> Line:
            return Line(line.fixed * steps, line.each * bytes_)

        return replace(
            self,
            rows=Line(self.rows.fixed, self.rows.each * share),
            scores=Line(self.scores.fixed, self.scores.each * share),
            link=sent(self.link),
            peers=None if self.peers is None else sent(self.peers),
            ranks=ranks,
            granule=max(1, self.granule // self.ranks) * ranks,
        )

    def compute(self, start: int, stop: int, *, kv_len: int, q_len: int, is_causal: bool) -> float:
        """Return the seconds of computing queries ``[start, stop)``, no sum under way."""
        pairs = (stop - start) * kv_len
        if is_causal:
            first, last = (max(0, kv_len - q_len + row + 1) for row in (start, stop - 1))
            pairs = (stop - start) * (first + last) // 2
        return self.rows(stop - start) + self.scores(pairs)

    def predict(
        self,
        tiles: Sequence[int],
        *,
        kv_len: int | None = None,
        is_causal: bool = False,
        strips: Sequence[int] | None = None,
        through: Through = "group",
    ) -> float:
        """Return the seconds until the last tile is summed.

        Computing and summing are two lines, each of which takes its tiles in turn; a tile is
        summed once it is computed. While a sum runs, computing is slower by ``slowdown``.

        Parameters
        ----------
        tiles : sequence of int
            Queries of each tile.
        kv_len, is_causal
            As for :func:`choose_plan`.
        strips : sequence of int, optional
            Queries that attention takes at a time; as ``tiles`` by default.
        through : {"group", "peers"}
            How sums go.
        """
        q_len = sum(tiles)
        keys = q_len if kv_len is None else kv_len
        begin = tuple(accumulate(strips or tiles, initial=0))
        attended = {
            start: self._attention(start, stop, kv_len=keys, q_len=q_len, is_causal=is_causal)
            for start, stop in pairwise(begin)
        }
        if through == "peers":
            return self._through_peers(tiles, attended)
        now = link_free = 0.0
        for start, stop in pairwise(accumulate(tiles, initial=0)):
            work = self.rows(stop - start) + _due(attended, stop)
            slow = min(work * self.slowdown, max(0.0, link_free - now))
            now += slow + (work - slow / self.slowdown)
            link_free = max(now, link_free) + self.link(stop - start)
        return link_free

    def _attention(
        self, start: int, stop: int, *, kv_len: int, q_len: int, is_causal: bool
    ) -> float:
        rows = self.rows(stop - start)
        shape = {"kv_len": kv_len, "q_len": q_len}
        return self.compute(start, stop, is_causal=is_causal, **shape) - rows

    def _through_peers(self, tiles: Sequence[int], attended: dict[int, float]) -> float:
        """Return the seconds where a tile's own rows are computed after the next one's others."""
        assert self.peers is not None
        now = link_free = 0.0
        arrived: list[float] = []
        for number, (start, stop) in enumerate(pairwise(accumulate(tiles, initial=0))):
            now += _due(attended, stop) + self.rows((stop - start) * (1 - 1 / self.ranks))
            link_free = max(now, link_free) + self.peers(stop - start) / 2
            arrived.append(link_free)
            for kept in (number - 1, number) if number == len(tiles) - 1 else (number - 1,):
                if kept >= 0:
                    now = max(now, arrived[kept]) + self.rows(tiles[kept] / self.ranks)
                    link_free = max(now, link_free) + self.peers(tiles[kept]) / 2
        return link_free


def _due(attended: dict[int, float], stop: int) -> float:
    """Return, and take out, the seconds of strips that begin before a row."""
    return sum(attended.pop(start) for start in [start for start in attended if start < stop])
