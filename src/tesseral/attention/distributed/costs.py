"""What computing and sending cost; how many tiles pay, predicted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Literal

_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
_STRIPS = (1, 2, 4)
_LAST = (1.0, 0.5, 0.25)
"""Shares of a tile that the last one may be."""
_LEAST_GAIN = 0.005
"""Predicted gain, as a share, under which tiles are not worth their risk."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapPlan:
    """How a layer is cut, and what that is predicted to take.

    Attributes
    ----------
    tiles : tuple of int
        Queries of each tile that is projected and summed.
    strips : tuple of int
        Queries that attention takes at a time.
    through : {"group", "peers"}
        How sums go.
    seconds : float
        Predicted.
    """

    tiles: tuple[int, ...]
    strips: tuple[int, ...]
    through: Through
    seconds: float

    @property
    def overlaps(self) -> bool:
        """Whether this is another thing than to compute all, and then to sum."""
        return len(self.tiles) > 1 or self.through != "group"


def plans(
    costs: OverlapCosts, q_len: int, *, kv_len: int | None = None, is_causal: bool = False
) -> list[OverlapPlan]:
    """Return plans, best first by what is predicted; the plain one is among them.

    Parameters
    ----------
    costs, q_len, kv_len, is_causal
        As for :func:`choose_plan`.
    """
    keys = q_len if kv_len is None else kv_len
    ways: tuple[Through, ...] = ("group",) if costs.peers is None else ("group", "peers")
    found = [
        OverlapPlan(
            tiles=tiles,
            strips=strips,
            through=through,
            seconds=costs.predict(
                tiles, kv_len=keys, is_causal=is_causal, strips=strips, through=through
            ),
        )
        for tiles, strips in _cuts(costs, q_len, kv_len=keys, is_causal=is_causal)
        for through in ways
    ]
    return sorted(found, key=lambda plan: (plan.seconds, len(plan.tiles)))


def choose_plan(
    costs: OverlapCosts, q_len: int, *, kv_len: int | None = None, is_causal: bool = False
) -> OverlapPlan:
    """Return the plan that is predicted to end first; the plain one if overlapping does not pay.

    Parameters
    ----------
    costs : OverlapCosts
        The same on every rank, as :func:`measure_costs` returns them.
    q_len : int
        Queries.
    kv_len : int, optional
        Keys; ``q_len`` by default. 0 for a linear layer.
    is_causal : bool
        Whether later queries see more keys.

    Examples
    --------
    >>> costs = OverlapCosts(rows=Line(0, 1e-6), scores=Line(0, 1e-10), link=Line(1e-5, 1e-6))
    >>> choose_plan(costs, 4096).overlaps
    True
    """
    ordered = plans(costs, q_len, kv_len=kv_len, is_causal=is_causal)
    plain = next(plan for plan in ordered if not plan.overlaps)
    best = ordered[0]
    return best if best.seconds < (1 - _LEAST_GAIN) * plain.seconds else plain


def _cuts(
    costs: OverlapCosts, q_len: int, *, kv_len: int, is_causal: bool
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield tiles and strips, each pair once."""
    cut = partial(_equal_work, costs, q_len=q_len, kv_len=kv_len, is_causal=is_causal)
    seen = set()
    for n_strips in _STRIPS:
        if n_strips > q_len:
            continue
        strips = _snapped(cut(n_strips), costs.granule)
        for count in _COUNTS:
            for last in _LAST:
                cuts = (_tapered(strip, count, last, costs.granule) for strip in strips)
                seen.add((tuple(size for cut in cuts for size in cut), strips))
    for count in _COUNTS:
        if count <= q_len:
            tiles = _snapped(cut(count), costs.granule)
            seen.add((tiles, tiles))
    yield from sorted(seen, key=lambda pair: (len(pair[0]), pair))


def _tapered(rows: int, count: int, last: float, granule: int) -> tuple[int, ...]:
    """Cut rows into tiles of which the first is half of the others and the last a share of one.

    Sums start early, and little is left to sum at the end.
    """
    if count < 2 or count > rows:
        return (rows,)
    shares = [0.5, *[1.0] * (count - 2), last]
    edges = [round(rows * done / sum(shares)) for done in accumulate(shares, initial=0.0)]
    return _snapped(_sizes(edges), granule)


def _snapped(sizes: Sequence[int], granule: int) -> tuple[int, ...]:
    """Return sizes with edges at multiples of a granule, without those that vanish."""
    edges = [round(edge / granule) * granule for edge in accumulate(sizes, initial=0)]
    edges[-1] = sum(sizes)
    return _sizes(sorted({edge for edge in edges if edge <= edges[-1]}))


def _sizes(edges: Sequence[int]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in pairwise(edges) if stop > start)


def choose_tiles(
    costs: OverlapCosts, q_len: int, *, kv_len: int | None = None, is_causal: bool = False
) -> tuple[int, ...]:
    """Return the tiles that are predicted to end first; one if overlapping does not pay.

    Tiles take about equal time to compute, but for the first, which takes half of that, so
    that sums begin early.

    Parameters
    ----------
    costs : OverlapCosts
        The same on every rank, as :func:`measure_costs` returns them.
    q_len : int
        Queries.
    kv_len : int, optional
        Keys; ``q_len`` by default. 0 for a linear layer.
    is_causal : bool
        Whether later queries see more keys.

    Examples
    --------
    >>> slow_link = OverlapCosts(rows=Line(0, 1e-6), scores=Line(0, 0), link=Line(1e-5, 1e-6))
    >>> len(choose_tiles(slow_link, 4096)) > 1
    True
    >>> choose_tiles(replace(slow_link, link=Line(1e-2, 0)), 4096)
    (4096,)
    """
    keys = q_len if kv_len is None else kv_len
    options = {
        _equal_work(costs, count, q_len=q_len, kv_len=keys, is_causal=is_causal)
        for count in _COUNTS
        if count <= q_len
    }

    def seconds(tiles: Sequence[int]) -> float:
        return costs.predict(tiles, kv_len=keys, is_causal=is_causal)

    best = min(sorted(options, key=len), key=seconds)
    plain = (q_len,)
    return best if seconds(best) < (1 - _LEAST_GAIN) * seconds(plain) else plain


def _equal_work(
    costs: OverlapCosts, count: int, *, q_len: int, kv_len: int, is_causal: bool
) -> tuple[int, ...]:
    """Return tiles whose work is as 1 : 2 : 2 : ..., each of a row at least."""
    if count == 1:
        return (q_len,)

    def done(row: int) -> float:
        fixed = costs.rows.fixed + costs.scores.fixed
        shape = {"kv_len": kv_len, "q_len": q_len}
        return costs.compute(0, row, is_causal=is_causal, **shape) - fixed

    ends = [0]
    for number in range(1, count):
        target = done(q_len) * (2 * number - 1) / (2 * count - 1)
        low, high = ends[-1] + 1, q_len - (count - number)
        while low < high:  # the first row at which so much is done
            middle = (low + high) // 2
            low, high = (low, middle) if done(middle) >= target else (middle + 1, high)
        ends.append(low)
    return tuple(stop - start for start, stop in pairwise([*ends, q_len]))
