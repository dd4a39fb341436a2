"""k-means on singular vectors of the unfoldings, in three ways of treating degrees."""

from collections.abc import Sequence
from math import log
from typing import Any, ClassVar

import numpy as np

from tesseral.cluster._angles import Assignment, grouped, nearest_in_angle
from tesseral.cluster._base import TensorBlockClusterer
from tesseral.cluster._blocks import BlockFit, fit_blocks, fit_means
from tesseral.cluster._lloyd import nearest_in_distance
from tesseral.cluster._problem import COMMON
from tesseral.cluster._select import Task
from tesseral.cluster._source import Floats, Grouping
from tesseral.cluster._sphere import plain_means, unit_rows
from tesseral.core.constraints import choice
from tesseral.core.labels import Labels
from tesseral.core.random import Seed
from tesseral.core.stopping import Reason, Result


class SpectralTensorClustering(TensorBlockClusterer):
    """Cluster every mode of a tensor by k-means on singular vectors of its unfolding.

    There is no iteration. Here to be compared with :class:`DegreeCorrectedTensorBlockModel`.

    Parameters
    ----------
    n_clusters, symmetric, tied, family, candidates, n_init, random_state
        As for :class:`DegreeCorrectedTensorBlockModel`.
    rows : {"unit", "plain", "ratio"}
        What is clustered: rows of the singular vectors scaled to length 1 (HOSVD+), as they are
        (HOSVD), or divided by their entry in the first vector (SCORE), with ratios cut at
        plus and minus the logarithm of the number of nodes.

    Attributes
    ----------
    labels_, core_, degrees_, n_clusters_, symmetric_, start_labels_, n_iter_, history_, \
converged_, reason_, log_likelihood_, bic_, bic_path_, noise_variance_
        As for :class:`DegreeCorrectedTensorBlockModel`; with ``rows="plain"`` all degrees are 1.

    References
    ----------
    Jin (2015), "Fast community detection by SCORE", Annals of Statistics 43; Ke, Shi and Xia,
    arXiv:1909.06503, for hypergraphs.

    Examples
    --------
    >>> from tesseral.datasets import load_peru
    >>> model = SpectralTensorClustering(5, rows="ratio", random_state=0)
    >>> model.fit(load_peru().tensor).n_iter_
    0
    """

    _constraints: ClassVar = {**COMMON, "rows": (choice("unit", "plain", "ratio"),)}

    def __init__(
        self,
        n_clusters: int | Sequence[int] | str = 2,
        *,
        rows: str = "unit",
        symmetric: str | bool | Sequence[Sequence[int]] = "auto",
        tied: str = "pool",
        family: str = "normal",
        candidates: Sequence[Any] | None = None,
        n_init: int = 10,
        random_state: Seed = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.rows = rows
        self.symmetric = symmetric
        self.tied = tied
        self.family = family
        self.candidates = candidates
        self.n_init = n_init
        self.random_state = random_state

    def _start(
        self, task: Task, counts: tuple[int, ...], rng: np.random.Generator
    ) -> list[Grouping]:
        vectors = task.source.directions(counts, task.problem.read)
        return grouped(
            task.problem.ties,
            counts,
            lambda k: plain_means(self._scaled(vectors[k]), counts[k], self.n_init, rng),
        )

    def _scaled(self, vectors: Floats) -> Floats:
        if self.rows == "plain" or vectors.shape[1] == 1:
            return vectors
        if self.rows == "unit":
            return unit_rows(vectors)[0]
        first = vectors[:, :1]
        ratios = vectors[:, 1:] / np.where(first == 0, np.finfo(np.float64).tiny, first)
        most = log(max(len(vectors), 2))
        return np.clip(ratios, -most, most)

    def _improve(self, task: Task, start: list[Grouping]) -> Assignment:  # noqa: ARG002
        result = Result(reason=Reason.SAME_LABELS, n_iter=0, history=())
        return Assignment(groupings=start, result=result, refilled=(0,) * len(start))

    def _finish(self, task: Task, assignment: Assignment) -> BlockFit:
        if self.rows == "plain":
            return fit_means(task.source, assignment.groupings)
        return fit_blocks(task.source, assignment.groupings, task.problem.degree_of)

    def _nearest(self, nodes: Floats, clusters: Floats) -> Labels:
        if self.rows == "plain":
            return nearest_in_distance(nodes, clusters)
        return nearest_in_angle(nodes, clusters)
