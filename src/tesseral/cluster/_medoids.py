"""Weighted k-medoids: deterministic, on a matrix of distances."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral.cluster._source import Floats
from tesseral.core.labels import Labels

_SMALLEST_GAIN = 1e-12
"""Share of the cost that a swap must save, or rounding could exchange medoids for ever."""


def weighted_medoids(distances: Floats, weights: Floats, n_clusters: int) -> Labels:
    """Cluster nodes around some of them so that the weighted sum of distances is small.

    Medoids are added one by one, each where it saves most, then the best single exchange of
    a medoid for another node is made until none saves anything. Ties go to the lower index.

    Parameters
    ----------
    distances : array of shape (d, d)
        From row to column; none negative, zero on the diagonal.
    weights : array of shape (d,)
        None negative.
    n_clusters : int
        From 1 to d.

    Returns
    -------
    int array of shape (d,)
        Numbered in the order in which the medoids were found.

    References
    ----------
    Kaufman and Rousseeuw (1990), chapter 2; all exchanges are priced at once as by Schubert
    and Rousseeuw (2021), Information Systems 101.

    Examples
    --------
    >>> place = np.array([0.0, 1.0, 10.0, 12.0])
    >>> weighted_medoids(abs(place[:, None] - place), np.ones(4), 2)
    array([0, 0, 1, 1])
    """
    medoids = _build(distances, weights, n_clusters)
    while n_clusters > 1:
        cluster, node, gain, cost = _best_swap(distances, weights, medoids)
        if gain <= _SMALLEST_GAIN * cost:
            break
        medoids[cluster] = node
    return np.asarray(distances[:, medoids].argmin(axis=1), dtype=np.intp)


def _build(distances: Floats, weights: Floats, n_clusters: int) -> NDArray[Any]:
    medoids: list[int] = []
    nearest = np.full(len(distances), np.inf)
    for _ in range(n_clusters):
        costs = weights @ np.minimum(nearest[:, None], distances)
        costs[medoids] = np.inf
        medoids.append(int(costs.argmin()))
        nearest = np.minimum(nearest, distances[:, medoids[-1]])
    return np.array(medoids)


def _best_swap(
    distances: Floats, weights: Floats, medoids: NDArray[Any]
) -> tuple[int, int, float, float]:
    """Return which medoid to exchange for which node, what it saves, and the present cost."""
    to_medoids = distances[:, medoids]
    own = to_medoids.argmin(axis=1)
    nearest, second = np.partition(to_medoids, 1, axis=1)[:, :2].T
    beyond = distances - nearest[:, None]
    # a node that loses its medoid goes to its second or to the new one
    loss = np.clip(beyond, 0.0, (second - nearest)[:, None])
    of_cluster = (np.eye(len(medoids))[own] * weights[:, None]).T @ loss
    change = weights @ np.minimum(beyond, 0.0) + of_cluster
    change[:, medoids] = np.inf
    cluster, node = np.unravel_index(change.argmin(), change.shape)
    return int(cluster), int(node), -float(change[cluster, node]), float(weights @ nearest)
