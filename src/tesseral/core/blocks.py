r"""Blocks of a tensor: sums and means over clusters along any of its modes.

Labels ``z`` of a mode stand for its membership matrix, of shape (d, r), with a one at
``(i, z[i])``. A block sum is the mode product with its transpose; repeating blocks is the
mode product with the matrix itself.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tesseral._errors import ParameterError, ShapeError
from tesseral.core._arrays import Array, array_namespace, check_floating, like, to_numpy
from tesseral.core.labels import (
    Labels,
    check_labels,
    check_mode_labels,
    check_one_each,
    count_members,
    membership_matrix,
)
from tesseral.core.modeprod import contraction_order, mode_product

SEGMENT_FROM = 64
"""Number of clusters from which each cluster's slices are gathered and summed.

Below, a matrix product with the memberships. On one core in float64, for 2000 x 2000, the
product took a third of the time with 5 clusters, and two to five times as long with 80 to
160; for 160^3 the two are within a factor of two from 40 on. Along the last mode, where
slices are not contiguous, the product always won.
"""


def block_sums(
    tensor: Array,
    labels: Sequence[Array | None],
    n_clusters: Sequence[int | None] | None = None,
) -> Array:
    """Sum a tensor over the clusters of some of its modes.

    Parameters
    ----------
    tensor : floating array of shape (d_0, ..., d_{K-1})
        K >= 1. Any memory order.
    labels : sequence of K integer arrays of shape (d_k,)
        Clusters 0 to r_k - 1 of each mode's indices; ``None`` leaves a mode as it is.
    n_clusters : sequence of K int, optional
        Numbers of clusters r_k, unread where labels are ``None``; by default one more than
        the largest label.

    Returns
    -------
    array of shape (r_0, ..., r_{K-1})
        An untouched mode keeps its size. An empty cluster sums to zero.

    Raises
    ------
    DtypeError
        If ``tensor`` is not floating or labels are not integers.
    ShapeError
        If labels do not fit the shape of ``tensor``.
    ParameterError
        If a label is not from 0 to r_k - 1.

    Examples
    --------
    >>> import numpy as np
    >>> block_sums(np.ones((3, 4)), [np.array([0, 1, 1]), np.array([0, 0, 0, 1])])
    array([[3., 1.],
           [6., 2.]])
    """
    check_floating("block_sums", tensor)
    checked, sizes = check_labels("block_sums", tuple(tensor.shape), labels, n_clusters)
    return _sums(tensor, checked, sizes)


def block_means(
    tensor: Array,
    labels: Sequence[Array | None],
    n_clusters: Sequence[int | None] | None = None,
    *,
    weights: Array | None = None,
    empty: float | None = None,
) -> Array:
    """Average a tensor over the clusters of some of its modes.

    Parameters
    ----------
    tensor, labels, n_clusters
        As for :func:`block_sums`.
    weights : array of the shape of ``tensor``, optional
        Weight of each entry, none negative; the entries themselves must be finite even where
        their weight is zero. A mask of observed entries, as floating numbers, is one.
    empty : float, optional
        Value of a block without entries or without weight; by default such a block is an
        error.

    Returns
    -------
    array of shape (r_0, ..., r_{K-1})
        An untouched mode keeps its size.

    Raises
    ------
    DtypeError, ShapeError, ParameterError
        As for :func:`block_sums`; also if the shape of ``weights`` differs, or if a block is
        empty and ``empty`` is not given.

    Examples
    --------
    >>> import numpy as np
    >>> tensor = np.array([[1.0, 2.0], [3.0, 6.0]])
    >>> block_means(tensor, [np.array([0, 0]), None])
    array([[2., 4.]])
    >>> block_means(tensor, [np.array([0, 0]), None], [3, None], empty=0.0)
    array([[2., 4.],
           [0., 0.],
           [0., 0.]])
    """
    where = "block_means"
    check_floating(where, tensor)
    xp = array_namespace(where, tensor, weights)
    shape = tuple(tensor.shape)
    checked, sizes = check_labels(where, shape, labels, n_clusters)
    if weights is None:
        counts = like(count_members(shape, checked, sizes), tensor)
        sums = _sums(tensor, checked, sizes)
    else:
        check_floating(where, weights)
        if tuple(weights.shape) != shape:
            raise ShapeError(
                f"{where}: weights need the shape {shape} of the tensor, "
                f"got {tuple(weights.shape)}."
            )
        counts = _sums(weights, checked, sizes)
        sums = _sums(tensor * weights, checked, sizes)
    occupied = counts > 0
    if empty is None:
        _check_occupied(where, to_numpy(occupied))
        return sums / counts
    # divide by one where there is nothing, so that no NaN arises there, in gradients either
    return xp.where(occupied, sums / xp.where(occupied, counts, xp.ones_like(counts)), empty)


def expand_blocks(blocks: Array, labels: Sequence[Array | None]) -> Array:
    """Repeat the entries of a block tensor to the size of the labels.

    Parameters
    ----------
    blocks : array of shape (r_0, ..., r_{K-1})
        One entry for each block.
    labels : sequence of K integer arrays of shape (d_k,)
        Clusters 0 to r_k - 1 of each mode's indices; ``None`` leaves a mode as it is.

    Returns
    -------
    array of shape (d_0, ..., d_{K-1})
        The entry at ``i, j, ...`` is the block ``labels[0][i], labels[1][j], ...``.

    Raises
    ------
    DtypeError, ShapeError, ParameterError
        If labels are not integers, not one array for each mode, or out of range.

    Examples
    --------
    >>> import numpy as np
    >>> expand_blocks(np.array([[1.0, 2.0]]), [np.array([0, 0]), np.array([1, 0, 1])])
    array([[2., 1., 2.],
           [2., 1., 2.]])
    """
    where = "expand_blocks"
    xp = array_namespace(where, blocks)
    check_one_each(where, tuple(blocks.shape), labels)
    # the last mode first: the largest copies then run along whole slabs
    for mode in range(blocks.ndim - 1, -1, -1):
        given = labels[mode]
        if given is not None:
            values = check_mode_labels(where, mode, given, blocks.shape[mode])
            blocks = xp.take(blocks, like(values, blocks, dtype=xp.int64), axis=mode)
    return blocks


def _sums(tensor: Array, labels: Sequence[Labels | None], sizes: tuple[int, ...]) -> Array:
    new_sizes = [None if z is None else r for z, r in zip(labels, sizes, strict=True)]
    for mode in contraction_order(tuple(tensor.shape), new_sizes):
        z = labels[mode]
        assert z is not None
        if sizes[mode] >= SEGMENT_FROM and mode != tensor.ndim - 1:
            tensor = _gathered_sums(tensor, z, sizes[mode], mode)
        else:
            tensor = mode_product(
                tensor, membership_matrix(z, sizes[mode], tensor), mode, transpose=True
            )
    return tensor


def _gathered_sums(tensor: Array, labels: Labels, n_clusters: int, mode: int) -> Array:
    """Sum each cluster's slices: reads the tensor once, however many clusters there are."""
    xp = array_namespace("block_sums", tensor)
    by_cluster = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=n_clusters))
    members = np.split(by_cluster, ends[:-1])
    slices = [xp.take(tensor, like(m, tensor, dtype=xp.int64), axis=mode) for m in members]
    return xp.stack([xp.sum(s, axis=mode) for s in slices], axis=mode)


def _check_occupied(where: str, occupied: np.ndarray[Any, Any]) -> None:
    if not occupied.all():
        first = tuple(int(i) for i in np.argwhere(~occupied)[0])
        raise ParameterError(
            f"{where}: {np.count_nonzero(~occupied)} of {occupied.size} blocks are empty, "
            f"the first at {first}; drop empty clusters or give a value as empty=."
        )
