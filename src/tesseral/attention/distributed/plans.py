"""How a layer is cut into tiles and strips: what may pay, and what is predicted to end first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

from tesseral.attention.distributed.costs import OverlapCosts, Through

_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
_STRIPS = (1, 2, 4)
_TAIL = 3
"""Tiles at the end that may grow smaller, each by as much as summing is faster than computing."""
_LEAST_GAIN = 0.005
"""Predicted gain, as a share, under which tiles are not worth their risk."""


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
    >>> from tesseral.attention.distributed import Line
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
            for shares in _shares(costs, count):
                cuts = (_by_shares(strip, shares, costs.granule) for strip in strips)
                seen.add((tuple(size for cut in cuts for size in cut), strips))
    for count in _COUNTS:
        if count <= q_len:
            tiles = _snapped(cut(count), costs.granule)
            seen.add((tiles, tiles))
    yield from sorted(seen, key=lambda pair: (len(pair[0]), pair))


def _shares(costs: OverlapCosts, count: int) -> Iterator[list[float]]:
    """Yield sizes of tiles beside one another, in which sums start early and end soon.

    The first is half of the others. At the end each tile takes as long to compute as the one
    before it takes to sum, so that the last one is small and nothing waits for the link.
    """
    if count == 1:
        yield [1.0]
        return
    link = costs.link if costs.peers is None else costs.peers
    ratio = min(0.9, max(0.3, link.each / max(costs.rows.each, 1e-12)))
    for tail in range(min(_TAIL, count - 2) + 1):
        yield [0.5, *[1.0] * (count - 1 - tail), *(ratio**n for n in range(1, tail + 1))]


def _by_shares(rows: int, shares: Sequence[float], granule: int) -> tuple[int, ...]:
    """Cut rows into tiles of such shares."""
    if len(shares) > rows:
        return (rows,)
    edges = [round(rows * done / sum(shares)) for done in accumulate(shares, initial=0.0)]
    return _snapped(_sizes(edges), granule)


def _snapped(sizes: Sequence[int], granule: int) -> tuple[int, ...]:
    """Return sizes with edges at multiples of a granule, without those that vanish."""
    edges = [round(edge / granule) * granule for edge in accumulate(sizes, initial=0)]
    edges[-1] = sum(sizes)
    return _sizes(sorted({edge for edge in edges if edge <= edges[-1]}))


def _sizes(edges: Sequence[int]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in pairwise(edges) if stop > start)


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
