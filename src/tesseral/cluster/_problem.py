"""What a fit is asked for: which modes are tied, how many clusters, from which labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tesseral._errors import ParameterError, ShapeError
from tesseral.core.constraints import NONE, SEED, Constraint, choice, integer, sequence_of
from tesseral.core.labels import Labels, check_mode_labels
from tesseral.core.ties import Ties, check_tied, per_mode, tie_modes

N_CLUSTERS = (integer(1), sequence_of(integer(1)), choice("bic"))
CANDIDATES = Constraint(
    "a sequence of numbers of clusters, each an integer at least 1 or one integer per mode",
    lambda value: (
        isinstance(value, Sequence | np.ndarray)
        and not isinstance(value, str)
        and len(value) > 0
        and all(integer(1).accepts(v) or sequence_of(integer(1)).accepts(v) for v in value)
    ),
)
SYMMETRIC = (
    choice("auto"),
    Constraint("a boolean", lambda value: isinstance(value, bool | np.bool_)),
    sequence_of(sequence_of(integer(0))),
)
LABELS = Constraint(
    "labels: one integer array for each mode",
    lambda value: isinstance(value, Sequence | np.ndarray) and not isinstance(value, str),
)
COMMON: dict[str, tuple[Constraint, ...]] = {
    "n_clusters": N_CLUSTERS,
    "symmetric": SYMMETRIC,
    "tied": (choice("pool", "first"),),
    "family": (choice("normal", "binomial", "poisson"),),
    "candidates": (NONE, CANDIDATES),
    "n_init": (integer(1),),
    "random_state": (SEED,),
}
"""What the parameters that all estimators have may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A fit stated without its data.

    Attributes
    ----------
    where : str
        The estimator, for messages.
    shape : tuple of int
    ties : groups of modes
    pooled : bool
        Whether tied modes are averaged; otherwise the first of each group is read.
    """

    where: str
    shape: tuple[int, ...]
    ties: Ties
    pooled: bool

    @property
    def read(self) -> list[int]:
        """The first mode of each group as it stands in ``ties``, whose nodes are clustered."""
        return [group[0] for group in self.ties]

    @property
    def first_of(self) -> list[int]:
        """For each mode the first of its group."""
        return [next(g[0] for g in self.ties if mode in g) for mode in range(len(self.shape))]

    @property
    def degree_of(self) -> list[int]:
        """For each mode the one whose rows give its degrees: its own unless averaged."""
        return self.first_of if self.pooled else list(range(len(self.shape)))


def state_ties(
    where: str, symmetric: str | bool | Sequence[Sequence[int]], shape: tuple[int, ...], found: Any
) -> Ties:
    """Return the groups of tied modes; ``found`` finds those of the data, for ``"auto"``."""
    if isinstance(symmetric, str):
        ties: Ties = found()
        return ties
    if isinstance(symmetric, np.bool_):
        symmetric = bool(symmetric)
    ties = tie_modes(where, symmetric, len(shape))
    check_tied(where, "sizes", shape, ties)
    return ties


def state_counts(problem: Problem, n_clusters: int | Sequence[int]) -> tuple[int, ...]:
    """Return the number of clusters of each mode, or say why it cannot be."""
    where, shape = problem.where, problem.shape
    counts = tuple(int(r) for r in per_mode(where, "n_clusters", n_clusters, len(shape)))
    check_tied(where, "n_clusters", counts, problem.ties)
    for mode, (count, size) in enumerate(zip(counts, shape, strict=True)):
        if count > size:
            raise ParameterError(
                f"{where}: mode {mode} has {size} nodes, which cannot form {count} clusters; "
                f"n_clusters={list(counts)} does not fit a tensor of shape {shape}."
            )
        if count > 1 and prod(counts) == count:
            raise ParameterError(
                f"{where}: the nodes of mode {mode} are compared by their means over blocks of "
                f"the other modes, and n_clusters={list(counts)} leaves one block only; give "
                "another mode at least 2 clusters."
            )
    return counts


def state_labels(problem: Problem, counts: Sequence[int], start: Any) -> list[Labels]:
    """Return given labels, one array for each mode, or say what is wrong with them."""
    where, shape = problem.where, problem.shape
    given = list(start)
    if len(problem.ties) == 1 and len(given) != len(shape):
        given = [np.asarray(start)] * len(shape)  # one array for tied modes
    if len(given) != len(shape):
        raise ShapeError(
            f"{where}: start needs one label array for each of {len(shape)} modes, "
            f"got {len(given)}."
        )
    labels: list[Labels] = []
    for mode, (values, size, count) in enumerate(zip(given, shape, counts, strict=True)):
        checked = check_mode_labels(f"{where}: start", mode, np.asarray(values), count)
        if len(checked) != size:
            raise ShapeError(
                f"{where}: start needs {size} labels for mode {mode}, got {len(checked)}."
            )
        labels.append(checked)
    for group in problem.ties:
        for mode in group[1:]:
            if not np.array_equal(labels[mode], labels[group[0]]):
                raise ParameterError(
                    f"{where}: start gives modes {min(mode, group[0])} and "
                    f"{max(mode, group[0])} different labels, but they are tied."
                )
    return labels
