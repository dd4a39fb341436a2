"""How many clusters: the smallest Bayesian information criterion among candidates."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tesseral._errors import EvidenceWarning, ParameterError
from tesseral.cluster._angles import Assignment
from tesseral.cluster._blocks import BlockFit
from tesseral.cluster._likelihood import Evaluation, Family
from tesseral.cluster._problem import Problem, state_counts
from tesseral.cluster._source import Grouping, Source

DEFAULT_RANGE = range(1, 9)
"""Numbers of clusters tried if none are named."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """What is to be clustered: the statement, the data, and their distribution."""

    problem: Problem
    source: Source
    family: Family


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """A fit with given numbers of clusters.

    Attributes
    ----------
    start : list of Grouping
        The labels before they were improved, in the numbering they were found in.
    assignment : Assignment
    fit : BlockFit
    evaluation : Evaluation
    criterion : float
        Its BIC.
    """

    start: list[Grouping]
    assignment: Assignment
    fit: BlockFit
    evaluation: Evaluation
    criterion: float


Run = Callable[[tuple[int, ...]], Outcome]


def select(
    problem: Problem, candidates: Sequence[Any] | None, run: Run
) -> tuple[Outcome, dict[tuple[int, ...], float]]:
    """Return the best outcome and the criterion of everything tried.

    Candidates that are integers stand for that number on every mode, and on one of fewer nodes for
    as many as it has. If modes are not all
    tied and no candidate names each mode's number, the numbers are then changed mode by mode,
    within the range of the candidates, until that improves nothing.
    """
    given = list(DEFAULT_RANGE) if candidates is None else list(candidates)
    outcomes: dict[tuple[int, ...], Outcome] = {}

    def best() -> tuple[int, ...]:
        return min(outcomes, key=lambda counts: outcomes[counts].criterion)

    def attempt(counts: tuple[int, ...]) -> None:
        if counts not in outcomes:
            outcomes[counts] = run(counts)

    for candidate in given:
        try:
            attempt(_counts(problem, candidate))
        except ParameterError:
            if candidates is not None:
                raise
    numbers = [r for r in given if not hasattr(r, "__len__")]
    if len(numbers) == len(given) and len(problem.ties) > 1:
        before = None
        while before != best():
            before = best()
            for group in problem.ties:
                for counts in _changed(problem, best(), group, numbers):
                    attempt(counts)
    chosen = best()
    _report_edge(problem, chosen, list(outcomes))
    return outcomes[chosen], {counts: o.criterion for counts, o in outcomes.items()}


def _counts(problem: Problem, candidate: Any) -> tuple[int, ...]:
    """Return the numbers that a candidate stands for."""
    if not hasattr(candidate, "__len__") and candidate > min(problem.shape):
        candidate = tuple(min(candidate, size) for size in problem.shape)
    return state_counts(problem, candidate)


def _changed(
    problem: Problem, counts: tuple[int, ...], group: tuple[int, ...], numbers: list[int]
) -> list[tuple[int, ...]]:
    """Return the counts with each other number for one group of modes, where that can be."""
    found = []
    for number in numbers:
        changed = tuple(int(number) if k in group else r for k, r in enumerate(counts))
        try:
            found.append(state_counts(problem, changed))
        except ParameterError:  # more clusters than nodes, or nothing to compare nodes by
            continue
    return found


def at_edge(chosen: tuple[int, ...], tried: Sequence[tuple[int, ...]]) -> list[int]:
    """Return the modes on which the chosen number is the largest of several that were tried."""
    edges = []
    for mode, count in enumerate(chosen):
        numbers = {counts[mode] for counts in tried}
        if len(numbers) > 1 and count == max(numbers):
            edges.append(mode)
    return edges


def _report_edge(problem: Problem, chosen: tuple[int, ...], tried: list[tuple[int, ...]]) -> None:
    edges = [mode for mode in at_edge(chosen, tried) if chosen[mode] < problem.shape[mode]]
    if edges:
        warnings.warn(
            f"{problem.where}: the smallest BIC lies at the edge of the candidates, "
            f"{chosen[edges[0]]} clusters on mode {edges[0]}; offer larger numbers.",
            EvidenceWarning,
            stacklevel=5,
        )
