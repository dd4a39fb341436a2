"""The degree-corrected tensor block model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from tesseral._errors import ParameterError
from tesseral.cluster._angles import Assignment, grouped, iterate, nearest_in_angle
from tesseral.cluster._base import TensorBlockClusterer
from tesseral.cluster._blocks import BlockFit, fit_blocks
from tesseral.cluster._problem import COMMON, LABELS, Problem, state_labels
from tesseral.cluster._refine import refine
from tesseral.cluster._select import Task
from tesseral.cluster._source import Floats, Grouping, Rows
from tesseral.cluster._sphere import (
    MEDOIDS_UP_TO,
    SAME_DIRECTION,
    SphereClustering,
    unit_rows,
)
from tesseral.cluster.metrics import clustering_error_rate
from tesseral.core.constraints import BOOLEAN, choice, integer
from tesseral.core.labels import Labels
from tesseral.core.random import Seed


class DegreeCorrectedTensorBlockModel(TensorBlockClusterer):
    r"""Cluster every mode of a tensor whose nodes differ in degree.

    The model is :math:`E\,Y_{i_0 \dots i_{K-1}} = S_{z_0(i_0) \dots z_{K-1}(i_{K-1})}
    \prod_k \theta_k(i_k)`, with degrees :math:`\theta` of mean 1 in each cluster. Nodes of
    a cluster have rows of one direction, whatever their degrees, so clusters are found by
    angles: from a spectral start, each node joins the cluster whose block row has the
    smallest angle to its own, until labels repeat.

    Parameters
    ----------
    n_clusters : int, sequence of int, or "bic"
        Clusters of every mode, or of each; ``"bic"`` takes the smallest Bayesian information
        criterion among ``candidates``.
    symmetric : "auto", bool or sequence of sequence of int
        Modes whose indices are the same nodes, and so share labels and degrees: all, none, or
        groups such as ``[(0, 1)]``. ``"auto"`` ties modes in which the data are exactly
        symmetric. The data need not be symmetric.
    tied : {"pool", "first"}
        Average the data over tied modes, or read the first of them alone, as the R package
        dTBM does; each mode then has degrees of its own.
    family : {"normal", "binomial", "poisson"}
        Distribution of entries, for likelihoods. Labels depend on it only through ``refine``
        and ``"bic"``.
    candidates : sequence of int or of sequences of int, optional
        For ``"bic"``; by default 1 to 8.
    start : {"auto", "medoids", "kmeans"} or sequence of K integer arrays of shape (d_k,)
        How the rows of the spectral start are clustered, or labels to start from.
        ``"medoids"`` and ``"kmeans"`` weigh rows by their squared lengths, as the paper does;
        medoids are deterministic. ``"auto"`` is k-means above 2,000 nodes; up to them it takes
        medoids with these weights and with equal ones, and keeps what ends at the larger mean
        cosine: a few nodes of very large degree cannot then be clusters of their own. With
        ``tied="first"`` it is ``"medoids"``, as in R.
    projection : {"double", "square"}
        How the spectral start is denoised: by the leading directions of every mode, twice, or by
        cutting the square unfolding, with half of the modes along its rows, to low rank, as the
        paper does for sparse binary tensors. Square takes dense arrays only.
    n_init : int
        Restarts of k-means.
    refine : bool
        Go on from the angles' labels by maximising the likelihood of ``family``.
    max_iter : int
        Most iterations.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        For k-means.

    Attributes
    ----------
    labels_ : list of K int arrays of shape (d_k,)
        Clusters, numbered from the largest down; equal for tied modes.
    core_ : array of shape (r_0, ..., r_{K-1})
        The block means S, of the framework of the data.
    degrees_ : list of K arrays of shape (d_k,)
        Mean 1 within each cluster.
    n_clusters_ : tuple of int
    symmetric_ : tuple of tuple of int
        The groups of tied modes.
    start_labels_ : list of K int arrays of shape (d_k,)
        Labels of the start, in a numbering of their own.
    node_names_ : list of K arrays of shape (d_k,)
        Labels of the nodes in a data frame or labelled array; otherwise numbers.
    n_iter_, history_, converged_, reason_
        How the iteration went; the history is the mean cosine between a node's row and its
        cluster's or, with ``refine``, the log-likelihood.
    log_likelihood_, bic_ : float
    bic_path_ : dict from numbers of clusters to BIC
    noise_variance_ : float or None
        Mean squared residual of normal data.

    Notes
    -----
    A node whose entries are all zero has no direction: it joins the largest cluster, with
    degree 0. A cluster that nobody joins is given the node that fits its own worst. Ties of
    angles go to the lower number.

    Memory is that of the tensor and, if modes are tied by hand, one averaged copy. The cost
    is that of one Gram matrix of an unfolding for each group of modes, and of two readings of
    the tensor in each iteration.

    References
    ----------
    Hu and Wang, arXiv:2201.07401, algorithms 1 and 2; IEEE Transactions on Information
    Theory (2023).

    Examples
    --------
    >>> from tesseral.datasets import load_peru
    >>> peru = load_peru()
    >>> model = DegreeCorrectedTensorBlockModel(5).fit(peru.tensor)
    >>> from tesseral.cluster import clustering_error_rate
    >>> round(clustering_error_rate(peru.party, model.labels_[0]), 4)
    0.1156
    """

    _constraints: ClassVar = {
        **COMMON,
        "start": (choice("auto", "medoids", "kmeans"), LABELS),
        "projection": (choice("double", "square"),),
        "refine": (BOOLEAN,),
        "max_iter": (integer(1),),
    }

    def __init__(
        self,
        n_clusters: int | Sequence[int] | str = 2,
        *,
        symmetric: str | bool | Sequence[Sequence[int]] = "auto",
        tied: str = "pool",
        family: str = "normal",
        candidates: Sequence[Any] | None = None,
        start: str | Sequence[Any] = "auto",
        projection: str = "double",
        n_init: int = 10,
        refine: bool = False,
        max_iter: int = 100,
        random_state: Seed = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.symmetric = symmetric
        self.tied = tied
        self.family = family
        self.candidates = candidates
        self.start = start
        self.projection = projection
        self.n_init = n_init
        self.refine = refine
        self.max_iter = max_iter
        self.random_state = random_state

    def _start(
        self, task: Task, counts: tuple[int, ...], rng: np.random.Generator
    ) -> list[Grouping]:
        if not isinstance(self.start, str):
            given = state_labels(task.problem, counts, self.start)
            return [Grouping(labels=z, size=r) for z, r in zip(given, counts, strict=True)]
        if self.projection == "square":
            rows = task.source.square_rows(counts, task.problem.read)
        else:
            rows = task.source.spectral_rows(counts, task.problem.degree_of, task.problem.read)
        for group in task.problem.ties:
            check_directions(task.problem, rows[group[0]], counts[group[0]], min(group))
        method = SphereClustering(method=self.start, n_init=self.n_init)
        start = self._clustered(task, rows, counts, method, rng)
        if (
            self.start != "auto"
            or not task.problem.pooled
            or max(map(len, rows.values())) > MEDOIDS_UP_TO
        ):
            return start
        even = self._clustered(task, rows, counts, replace(method, power=0), rng)
        return self._better(task, start, even)

    def _clustered(
        self,
        task: Task,
        rows: Rows,
        counts: tuple[int, ...],
        method: SphereClustering,
        rng: np.random.Generator,
    ) -> list[Grouping]:
        return grouped(task.problem.ties, counts, lambda k: method.cluster(rows[k], counts[k], rng))

    def _better(self, task: Task, first: list[Grouping], second: list[Grouping]) -> list[Grouping]:
        """Return the labels whose iteration ends at the larger mean cosine."""
        if all(
            clustering_error_rate(a.labels, b.labels) == 0
            for a, b in zip(first, second, strict=True)
        ):
            return first
        ends = [
            iterate(task.source, task.problem.ties, start, self.max_iter).result.history[-1]
            for start in (first, second)
        ]
        return second if ends[1] > ends[0] else first

    def _improve(self, task: Task, start: list[Grouping]) -> Assignment:
        found = iterate(task.source, task.problem.ties, start, self.max_iter)
        if not self.refine:
            return found
        return refine(
            task.source,
            task.family,
            task.problem.ties,
            task.problem.degree_of,
            found,
            self.max_iter,
        )

    def _finish(self, task: Task, assignment: Assignment) -> BlockFit:
        if assignment.fit is not None:
            return assignment.fit
        return fit_blocks(
            task.source, assignment.groupings, task.problem.degree_of, assignment.profiles
        )

    def _nearest(self, nodes: Floats, clusters: Floats) -> Labels:
        return nearest_in_angle(nodes, clusters)


def check_directions(problem: Problem, rows: Floats, n_clusters: int, mode: int) -> None:
    """Raise if every node of a mode has the same direction and several clusters are asked for."""
    directions, lengths = unit_rows(rows)
    directions = directions[lengths > 0]
    if n_clusters == 1 or len(directions) == 0:
        return
    if ((directions - directions[0]) ** 2).sum(axis=1).max() < SAME_DIRECTION:
        raise ParameterError(
            f"{problem.where}: all nodes of mode {mode} are alike but for their degrees, so "
            f"{n_clusters} clusters cannot be told apart; give this mode one cluster."
        )
