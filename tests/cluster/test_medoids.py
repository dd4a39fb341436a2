from itertools import combinations

import numpy as np
import pytest

from tesseral.cluster._medoids import _best_swap, weighted_medoids


def cost(distances, weights, medoids):
    return weights @ distances[:, list(medoids)].min(axis=1)


def reached(distances, weights, labels):
    """Return the cost of labels, each cluster around its best medoid."""
    return sum(
        (weights[labels == a] @ distances[np.ix_(labels == a, labels == a)]).min()
        for a in np.unique(labels)
    )


def no_swap_saves(distances, weights, labels):
    """Say, trying every exchange one by one, whether labels are where exchanges end."""
    members = [np.flatnonzero(labels == a) for a in np.unique(labels)]
    medoids = [m[(weights[m] @ distances[np.ix_(m, m)]).argmin()] for m in members]
    present = cost(distances, weights, medoids)
    others = set(range(len(distances))) - set(medoids)
    return all(
        cost(distances, weights, [*medoids[:a], node, *medoids[a + 1 :]]) >= present - 1e-9
        for a in range(len(medoids))
        for node in others
    )


@pytest.mark.parametrize("n_clusters", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_the_labels_are_a_local_and_mostly_the_global_optimum(seed, n_clusters):
    rng = np.random.default_rng(seed)
    points, weights = rng.standard_normal((11, 2)), rng.random(11)
    distances = ((points[:, None] - points) ** 2).sum(axis=2)
    labels = weighted_medoids(distances, weights, n_clusters)
    assert no_swap_saves(distances, weights, labels)
    best = min(cost(distances, weights, m) for m in combinations(range(11), n_clusters))
    assert reached(distances, weights, labels) <= 1.2 * best + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_every_exchange_is_priced_right(seed):
    rng = np.random.default_rng(seed)
    distances, weights = rng.random((9, 9)), rng.random(9)
    np.fill_diagonal(distances, 0)
    medoids = np.array([2, 5, 7])
    cluster, node, gain, present = _best_swap(distances, weights, medoids)
    after = {
        (a, i): cost(distances, weights, [*medoids[:a], i, *medoids[a + 1 :]])
        for a in range(3)
        for i in set(range(9)) - set(medoids.tolist())
    }
    assert present == pytest.approx(cost(distances, weights, medoids))
    assert after[cluster, node] == min(after.values()) == pytest.approx(present - gain)


def test_a_node_without_weight_moves_nothing():
    place = np.array([0.0, 1.0, 10.0, 11.0, 500.0])
    labels = weighted_medoids(abs(place[:, None] - place), np.array([1.0, 1, 1, 1, 0]), 2)
    assert labels[0] == labels[1] != labels[2] == labels[3] == labels[4]


def test_equal_nodes_end_and_are_clustered_the_same_each_time():
    labels = weighted_medoids(np.zeros((6, 6)), np.ones(6), 3)
    np.testing.assert_array_equal(labels, weighted_medoids(np.zeros((6, 6)), np.ones(6), 3))
