import numpy as np
import pytest

from tesseral._errors import ShapeError
from tesseral.cluster import clustering_error_rate


def slow_rate(first, second):
    """Count the pairs one by one."""
    n = len(first)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    return sum((first[i] == first[j]) != (second[i] == second[j]) for i, j in pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(5))
def test_the_rate_counts_pairs_that_disagree(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(4, size=23), rng.integers(3, size=23)
    assert clustering_error_rate(first, second) == pytest.approx(slow_rate(first, second))
    assert clustering_error_rate(second, first) == clustering_error_rate(first, second)
    assert clustering_error_rate(first, np.array(list("abcd"))[first]) == 0


def test_fewer_than_two_nodes_agree():
    assert clustering_error_rate([], []) == clustering_error_rate([1], [5]) == 0


def test_labels_of_different_length_are_refused():
    with pytest.raises(ShapeError, match=r"^clustering_error_rate: needs two lists .* \(2,\)"):
        clustering_error_rate([0, 1], [0, 1, 1])
