"""How far two clusterings of the same nodes are apart."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tesseral._errors import ShapeError


def clustering_error_rate(truth: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of pairs of nodes on which two clusterings disagree.

    A pair disagrees if one clustering puts it in one cluster and the other does not. This is
    one minus the Rand index: 0 for equal clusterings, however they are numbered.

    Parameters
    ----------
    truth, labels : array-like of shape (d,)
        Cluster of each node, numbers or words; which is the truth does not matter.

    Returns
    -------
    float
        From 0 to 1; 0 for fewer than two nodes.

    Raises
    ------
    ShapeError
        If they are not two lists of equal length.

    References
    ----------
    Rand (1971), Journal of the American Statistical Association 66.

    Examples
    --------
    >>> clustering_error_rate([0, 0, 1], ["b", "b", "a"])
    0.0
    >>> clustering_error_rate([0, 0, 1], [0, 1, 1])
    0.6666666666666666
    """
    table = _contingency(np.asarray(truth), np.asarray(labels))
    nodes = int(table.sum())
    if nodes < 2:
        return 0.0
    together = [_pairs(table.sum(axis=axis)) for axis in (1, 0)]
    disagreeing = sum(together) - 2 * _pairs(table.ravel())
    return disagreeing / (nodes * (nodes - 1) // 2)


def _contingency(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.int64]:
    """Return how many nodes each pair of clusters shares."""
    if first.ndim != 1 or first.shape != second.shape:
        raise ShapeError(
            "clustering_error_rate: needs two lists of labels of equal length, "
            f"got shapes {first.shape} and {second.shape}."
        )
    (rows, a), (columns, b) = (np.unique(z, return_inverse=True) for z in (first, second))
    counts = np.bincount(a * max(len(columns), 1) + b, minlength=len(rows) * len(columns))
    return counts.reshape(len(rows), len(columns))


def _pairs(counts: NDArray[np.int64]) -> int:
    return int((counts * (counts - 1) // 2).sum())
