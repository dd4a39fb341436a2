"""Clustering rows by their direction: normalised, and weighted by their squared length."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral.cluster._medoids import weighted_medoids
from tesseral.cluster._source import Floats
from tesseral.core.labels import Labels

MEDOIDS_UP_TO = 2000
"""Nodes up to which medoids are the default: their distances take 32 MB."""

SAME_DIRECTION = 1e-10
"""Unit rows whose squared distance is below this count as pointing the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SphereClustering:
    """How rows are clustered by direction.

    Attributes
    ----------
    method : {"auto", "medoids", "kmeans"}
    n_init : int
        Restarts of k-means.
    power : int
        Weight of a row as a power of its length; 2 is the paper's. A smaller one keeps a few
        very long rows from being clusters of their own.
    """

    method: str
    n_init: int
    power: int = 2

    def cluster(self, rows: Floats, n_clusters: int, rng: np.random.Generator) -> Labels:
        """Return the cluster of each row.

        A row of zeros has no direction; it joins the cluster with most rows. Its weight is
        zero, so it moves no other.
        """
        directions, lengths = unit_rows(rows)
        solid = lengths > 0
        labels = np.zeros(len(rows), dtype=np.intp)
        if n_clusters > 1 and np.count_nonzero(solid) > n_clusters:
            labels[solid] = self._cluster(
                directions[solid], lengths[solid] ** self.power, n_clusters, rng
            )
        elif n_clusters > 1:
            labels[solid] = np.arange(np.count_nonzero(solid)) % n_clusters
        labels[~solid] = np.bincount(labels[solid], minlength=1).argmax()
        return labels

    def _cluster(
        self, directions: Floats, weights: Floats, n_clusters: int, rng: np.random.Generator
    ) -> Labels:
        few = len(directions) <= MEDOIDS_UP_TO
        if self.method == "medoids" or (self.method == "auto" and few):
            return weighted_medoids(squared_distances(directions), weights, n_clusters)
        return weighted_means(directions, weights, n_clusters, self.n_init, rng)


def unit_rows(rows: Floats) -> tuple[Floats, Floats]:
    """Return rows scaled to length 1, and their lengths; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1)
    return rows / np.where(lengths > 0, lengths, 1.0)[:, None], lengths


def squared_distances(rows: Floats) -> Floats:
    """Return the squared distance of every two rows of length 1."""
    return np.maximum(2.0 - 2.0 * (rows @ rows.T), 0.0)


def plain_means(rows: Floats, n_clusters: int, n_init: int, rng: np.random.Generator) -> Labels:
    """Cluster rows by k-means, each counted once."""
    return weighted_means(rows, np.ones(len(rows)), n_clusters, n_init, rng)


def weighted_means(
    directions: Floats, weights: Floats, n_clusters: int, n_init: int, rng: np.random.Generator
) -> Labels:
    """Cluster unit rows by weighted k-means, the best of several starts."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(n_clusters, n_init=n_init, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        # fewer distinct rows than clusters: the caller reports it in its own words
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(directions, sample_weight=weights / weights.mean())
    labels: NDArray[Any] = model.labels_
    return labels.astype(np.intp)
