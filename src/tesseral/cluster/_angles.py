"""The angle iteration: every node joins the cluster whose block row has its direction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np

from tesseral.cluster._blocks import BlockFit, ModeProfile, mode_profiles, node_degrees
from tesseral.cluster._source import Floats, Grouping, Source
from tesseral.cluster._sphere import unit_rows
from tesseral.core.labels import Labels
from tesseral.core.stopping import Reason, Result, StoppingRule
from tesseral.core.ties import Ties

T = TypeVar("T")

Assign: TypeAlias = Callable[[ModeProfile, Grouping], tuple[Grouping, float, int]]

MISSING_TOLERANCE = 1e-7
"""Relative change of the mean cosine at which to stop where entries are missing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assignment:
    """Labels of every mode, and how they were reached.

    Attributes
    ----------
    groupings : list of Grouping
        One for each mode; tied modes share one.
    result : Result
        Its history says how well nodes fit their clusters; for angles, the mean cosine between
        a node's row and its cluster's.
    refilled : tuple of int
        For each mode, how many clusters were empty after the last assignment and were given
        a node.
    profiles : mapping from mode to ModeProfile
        Of complete data under these labels, for the modes that were read, if known.
    fit : BlockFit, optional
        Degrees and block means under these labels, if known.
    """

    groupings: list[Grouping]
    result: Result
    refilled: tuple[int, ...]
    profiles: Mapping[int, ModeProfile] = field(default_factory=dict)
    fit: BlockFit | None = None


def iterate(
    source: Source,
    ties: Ties,
    groupings: Sequence[Grouping],
    max_iter: int,
    assign: Assign | None = None,
) -> Assignment:
    """Improve labels until they repeat.

    Parameters
    ----------
    source : Source
        Of shape (d_0, ..., d_{K-1}).
    ties : groups of modes
        The first mode of each is read, for all of them.
    groupings : sequence of K Grouping
        The start, without weights.
    max_iter : int
        Most iterations.
    assign : callable, optional
        Returns new clusters of one mode, how well they fit, and how many were refilled; by
        default :func:`by_angle`.

    References
    ----------
    Hu and Wang, arXiv:2201.07401, algorithm 2. All modes are assigned at once, from the
    labels of the last iteration.
    """
    assign = assign or by_angle
    modes = [group[0] for group in ties]
    current = list(groupings)
    degrees: list[Floats] | None = None
    rule = StoppingRule(max_iter=max_iter, tol=None if source.complete else MISSING_TOLERANCE)
    progress = rule.start(labels=[g.labels for g in current])
    refilled = (0,) * len(current)
    while not progress.done:
        profiles = mode_profiles(source, current, degrees, modes)
        found = {mode: assign(profiles[mode], current[mode]) for mode in modes}
        current = shared(ties, {mode: found[mode][0] for mode in modes})
        refilled = tuple(found[group[0]][2] for group in _by_mode(ties))
        mean_cosine = float(np.mean([found[mode][1] for mode in modes]))
        if source.complete:
            # what comes next depends on the labels alone
            progress = progress.update(mean_cosine, [g.labels for g in current])
        else:
            degrees = shared(ties, {m: node_degrees(profiles[m].nodes, current[m]) for m in modes})
            progress = progress.update(mean_cosine)
    result = progress.result
    # labels that repeat are those that the last profiles were made from
    known = profiles if source.complete and result.reason is Reason.SAME_LABELS else {}
    return Assignment(groupings=current, result=result, refilled=refilled, profiles=known)


def by_angle(profile: ModeProfile, grouping: Grouping) -> tuple[Grouping, float, int]:
    """Return the clusters nearest in angle, the mean cosine, and how many were refilled.

    Ties go to the lower number. A row of zeros joins the cluster with most nodes. A cluster
    that nobody joins is given the node with the smallest cosine to its own, of those that
    are not alone.
    """
    directions, lengths = unit_rows(profile.nodes)
    cosines = directions @ unit_rows(profile.clusters)[0].T
    labels = cosines.argmax(axis=1).astype(np.intp)
    labels[lengths == 0] = np.bincount(labels[lengths > 0], minlength=1).argmax()
    own = cosines[np.arange(len(labels)), labels]
    refilled = refill(labels, own, grouping.size)
    mean_cosine = float(own[lengths > 0].mean()) if (lengths > 0).any() else 0.0
    return Grouping(labels=labels, size=grouping.size), mean_cosine, refilled


def refill(labels: Labels, fit: Floats, size: int) -> int:
    """Give each empty cluster, in place, the node that fits its own least; return how many."""
    counts = np.bincount(labels, minlength=size)
    empty = np.flatnonzero(counts == 0)
    for cluster in empty:
        candidates = np.flatnonzero(counts[labels] > 1)
        node = candidates[fit[candidates].argmin()]
        counts[labels[node]] -= 1
        counts[cluster] += 1
        labels[node] = cluster
    return len(empty)


def shared(ties: Ties, values: Mapping[int, T]) -> list[T]:
    """Return one value for each mode, that of the first mode of its group."""
    return [values[group[0]] for group in _by_mode(ties)]


def grouped(
    ties: Ties, counts: Sequence[int], labels_of: Callable[[int], Labels]
) -> list[Grouping]:
    """Return the clusters of every mode, from labels of the first mode of each group."""
    found = {k: Grouping(labels=labels_of(k), size=counts[k]) for k in (g[0] for g in ties)}
    return shared(ties, found)


def nearest_in_angle(nodes: Floats, clusters: Floats) -> Labels:
    """Return, for each row, the cluster whose row has the largest cosine with it."""
    cosines = unit_rows(nodes)[0] @ unit_rows(clusters)[0].T
    return np.asarray(cosines.argmax(axis=1), dtype=np.intp)


def _by_mode(ties: Ties) -> list[tuple[int, ...]]:
    """Return the group of each mode."""
    return [next(g for g in ties if mode in g) for mode in range(sum(map(len, ties)))]
