"""Which tiles of keys a tile of queries visits, and how tasks fall to cores."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from tesseral.attention.mask import make_band
from tesseral.attention.problem import AttentionProblem
from tesseral.attention.tiling import count_row, key_range


@dataclass(frozen=True, slots=True)
class Visits:
    """How many tiles of keys a tile of queries visits without a mask, and with one."""

    full: int
    masked: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.full + self.masked


def visits(problem: AttentionProblem, rows: int, keys: int, *, tiling_mask: bool) -> list[Visits]:
    """Return the visits of every tile of queries of one head, the first queries first.

    Without the tiling-mask every tile is visited, and where a rule holds all read a mask.
    """
    band = make_band(problem.q_len, problem.kv_len, is_causal=problem.causal, window=problem.window)
    columns = -(-problem.kv_len // keys)
    found = []
    for start in range(0, problem.q_len, rows):
        stop = min(start + rows, problem.q_len)
        if tiling_mask:
            full, seen = count_row(
                key_range(band, start, stop, problem.kv_len), keys, problem.kv_len
            )
            found.append(Visits(full, seen - full))
        elif problem.causal or problem.window:
            found.append(Visits(0, columns))
        else:
            found.append(Visits(columns, 0))
    return found


def visible_pairs(problem: AttentionProblem) -> int:
    """Return how many pairs of a query and a key one head has that are not hidden."""
    return sum(each.total for each in visits(problem, 1, 1, tiling_mask=True))


def fullest_core(costs: Sequence[float], cores: int, slots: int) -> list[list[int]]:
    """Return the tasks of each slot of the core that ends last, as tasks go to who is free.

    Parameters
    ----------
    costs : sequence of float
        Of each task, in the order in which they are handed out.
    cores, slots : int
        Cores, and tasks that each runs at a time.
    """
    taken: list[list[int]] = [[] for _ in range(cores * slots)]
    free = [(0.0, number) for number in range(cores * slots)]
    for task, cost in enumerate(costs):
        load, slot = free[0]
        heapq.heapreplace(free, (load + cost, slot))
        taken[slot].append(task)
    loads = {slot: load for load, slot in free}
    last = max(range(cores), key=lambda core: sum(loads[core + cores * s] for s in range(slots)))
    return [taken[last + cores * slot] for slot in range(slots)]
