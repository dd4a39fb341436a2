import numpy as np
import pytest

from tesseral.cluster._sphere import SphereClustering, unit_rows


@pytest.mark.parametrize("method", ["auto", "medoids", "kmeans"])
def test_rows_are_clustered_by_direction_whatever_their_length(method):
    rng = np.random.default_rng(0)
    angles = np.repeat([0.1, 1.2, 2.5], [4, 9, 6])
    rows = rng.uniform(0.5, 5, 19)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = SphereClustering(method=method, n_init=5).cluster(rows, 3, rng)
    assert len(set(zip(angles.tolist(), labels.tolist(), strict=True))) == 3


@pytest.mark.parametrize("method", ["medoids", "kmeans"])
def test_rows_of_zeros_join_the_largest_cluster(method):
    # the longest row is the first medoid, and not of the cluster with most rows
    rows = np.array([[10.0, 0], [0, 1], [0, 1.2], [0, 0.9], [0, 0], [0, 0]])
    labels = SphereClustering(method=method, n_init=5).cluster(rows, 2, np.random.default_rng(0))
    assert labels[4] == labels[5] == labels[1] != labels[0]


def test_equal_weights_do_not_look_at_lengths():
    angles = np.array([0.0, 0.1, 0.2, 0.35, 1.5, 1.4, 1.45])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rows[3] *= 100
    rng = np.random.default_rng(0)
    even = SphereClustering(method="medoids", n_init=1, power=0).cluster(rows, 2, rng)
    assert len(set(even[:4])) == len(set(even[4:])) == 1
    assert even[0] != even[4]


def test_unit_rows_leave_zeros():
    directions, lengths = unit_rows(np.array([[3.0, 4.0], [0, 0]]))
    np.testing.assert_allclose(directions, [[0.6, 0.8], [0, 0]])
    np.testing.assert_array_equal(lengths, [5, 0])
