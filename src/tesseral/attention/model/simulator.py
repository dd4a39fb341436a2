"""A discrete-event simulation: operations that take units, one after another or at once."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something that a core does.

    Attributes
    ----------
    name : str
        What it is, for pictures.
    seconds : mapping of str to float
        How long it takes each unit; it starts on all of them at once and ends with the last.
    after : mapping of int to float
        Numbers of the operations that must have ended, which come earlier in the program, and
        seconds from their end to its start: the way from one unit to another.
    """

    name: str
    seconds: Mapping[str, float]
    after: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """When each operation of a program started and ended, in seconds.

    Attributes
    ----------
    operations : sequence of Operation
        The program.
    starts, ends : sequence of float
        Of each operation.
    """

    operations: Sequence[Operation]
    starts: Sequence[float]
    ends: Sequence[float]

    @property
    def seconds(self) -> float:
        """When the last operation ended."""
        return max(self.ends, default=0.0)

    def busy(self) -> dict[str, float]:
        """Return how long each unit worked."""
        total: dict[str, float] = {}
        for operation in self.operations:
            for unit, seconds in operation.seconds.items():
                total[unit] = total.get(unit, 0.0) + seconds
        return total


def simulate(operations: Sequence[Operation]) -> Timeline:
    """Run a program: a unit serves operations in the order in which they become ready.

    Of those that become ready at once, the one that comes first in the program goes first.

    Parameters
    ----------
    operations : sequence of Operation
        Each waits only for earlier ones.
    """
    waiting = [len(operation.after) for operation in operations]
    followers: list[list[tuple[int, float]]] = [[] for _ in operations]
    for number, operation in enumerate(operations):
        for earlier, delay in operation.after.items():
            followers[earlier].append((number, delay))
    ready_at = [0.0] * len(operations)
    ready = [(0.0, number) for number, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    free: dict[str, float] = {}
    starts, ends = [0.0] * len(operations), [0.0] * len(operations)
    while ready:
        moment, number = heapq.heappop(ready)
        seconds = operations[number].seconds
        start = max([moment, *(free.get(unit, 0.0) for unit in seconds)])
        starts[number] = start
        ends[number] = end = start + max(seconds.values(), default=0.0)
        for unit, length in seconds.items():
            free[unit] = start + length
        for later, delay in followers[number]:
            ready_at[later] = max(ready_at[later], end + delay)
            waiting[later] -= 1
            if waiting[later] == 0:
                heapq.heappush(ready, (ready_at[later], later))
    return Timeline(operations=operations, starts=starts, ends=ends)
