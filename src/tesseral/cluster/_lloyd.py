"""Higher-order Lloyd: clustering by block means, for nodes that do not differ in degree."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tesseral.cluster._angles import Assignment, grouped, iterate, refill
from tesseral.cluster._base import TensorBlockClusterer
from tesseral.cluster._blocks import BlockFit, ModeProfile, fit_means
from tesseral.cluster._problem import COMMON
from tesseral.cluster._select import Task
from tesseral.cluster._source import Floats, Grouping
from tesseral.cluster._sphere import plain_means
from tesseral.core.constraints import integer
from tesseral.core.labels import Labels
from tesseral.core.random import Seed


class HigherOrderLloyd(TensorBlockClusterer):
    r"""Cluster every mode of a tensor by its means over blocks.

    The model is :math:`E\,Y_{i_0 \dots} = S_{z_0(i_0) \dots}`, without degrees. From k-means on
    the rows of the spectral start, each node joins the cluster whose block row is nearest,
    until labels repeat. Here to be compared with
    :class:`DegreeCorrectedTensorBlockModel`.

    Parameters
    ----------
    n_clusters, symmetric, tied, family, candidates, n_init, max_iter, random_state
        As for :class:`DegreeCorrectedTensorBlockModel`.

    Attributes
    ----------
    labels_, core_, n_clusters_, symmetric_, start_labels_, n_iter_, converged_, reason_
        As for :class:`DegreeCorrectedTensorBlockModel`, and so are the likelihoods.
    degrees_ : list of K arrays of shape (d_k,)
        All 1.
    history_ : tuple of float
        Mean squared distance of a node's row to its cluster's, after each iteration.
    log_likelihood_, bic_, bic_path_, noise_variance_
        As for :class:`DegreeCorrectedTensorBlockModel`.

    References
    ----------
    Han, Luo, Wang and Zhang (2022), "Exact clustering in tensor block model: statistical
    optimality and computational limit", Journal of the Royal Statistical Society B 84.

    Examples
    --------
    >>> from tesseral.datasets import make_block_tensor
    >>> planted = make_block_tensor((20, 20, 20), 2, degrees="equal", random_state=0)
    >>> HigherOrderLloyd(2, symmetric=False, random_state=0).fit(planted.tensor).n_clusters_
    (2, 2, 2)
    """

    _constraints: ClassVar = {**COMMON, "max_iter": (integer(1),)}

    def __init__(
        self,
        n_clusters: int | Sequence[int] | str = 2,
        *,
        symmetric: str | bool | Sequence[Sequence[int]] = "auto",
        tied: str = "pool",
        family: str = "normal",
        candidates: Sequence[Any] | None = None,
        n_init: int = 10,
        max_iter: int = 100,
        random_state: Seed = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.symmetric = symmetric
        self.tied = tied
        self.family = family
        self.candidates = candidates
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state

    def _start(
        self, task: Task, counts: tuple[int, ...], rng: np.random.Generator
    ) -> list[Grouping]:
        rows = task.source.spectral_rows(counts, task.problem.degree_of, task.problem.read)
        return grouped(
            task.problem.ties, counts, lambda k: plain_means(rows[k], counts[k], self.n_init, rng)
        )

    def _improve(self, task: Task, start: list[Grouping]) -> Assignment:
        return iterate(task.source, task.problem.ties, start, self.max_iter, by_distance)

    def _finish(self, task: Task, assignment: Assignment) -> BlockFit:
        return fit_means(task.source, assignment.groupings)

    def _nearest(self, nodes: Floats, clusters: Floats) -> Labels:
        return nearest_in_distance(nodes, clusters)


def by_distance(profile: ModeProfile, grouping: Grouping) -> tuple[Grouping, float, int]:
    """Return the nearest clusters, the mean squared distance, and how many were refilled."""
    distances = squared_distances(profile.nodes, profile.clusters)
    labels = distances.argmin(axis=1).astype(np.intp)
    own = distances[np.arange(len(labels)), labels]
    refilled = refill(labels, -own, grouping.size)
    return Grouping(labels=labels, size=grouping.size), float(own.mean()), refilled


def nearest_in_distance(nodes: Floats, clusters: Floats) -> Labels:
    """Return, for each row, the cluster whose row is nearest."""
    return np.asarray(squared_distances(nodes, clusters).argmin(axis=1), dtype=np.intp)


def squared_distances(nodes: Floats, clusters: Floats) -> Floats:
    """Return the squared distance of every row to every cluster's row."""
    squares = (nodes**2).sum(axis=1)[:, None] + (clusters**2).sum(axis=1)
    return np.asarray(np.maximum(squares - 2 * nodes @ clusters.T, 0.0))
