"""Cluster labels: checked, counted, and as membership matrices."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core._arrays import Array, array_namespace, like, to_numpy

Labels: TypeAlias = np.ndarray[Any, np.dtype[np.intp]]


def membership_matrix(labels: Array, n_clusters: int, reference: Array) -> Array:
    """Return the membership matrix of labels.

    Parameters
    ----------
    labels : integer array of shape (d,)
        Clusters, from 0 to ``n_clusters - 1``.
    n_clusters : int
        Number of columns.
    reference : array
        Framework, device and data type of the result.

    Returns
    -------
    array of shape (d, n_clusters)
        Ones at ``(i, labels[i])``, zeros elsewhere.

    Examples
    --------
    >>> import numpy as np
    >>> membership_matrix(np.array([1, 0]), 3, np.empty(0))
    array([[0., 1., 0.],
           [1., 0., 0.]])
    """
    checked = check_mode_labels("membership_matrix", 0, labels, n_clusters)
    return like(checked[:, None] == np.arange(n_clusters), reference)


def count_members(
    shape: tuple[int, ...], labels: Sequence[Labels | None], sizes: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Return how many index tuples fall in each block; of size one along untouched modes."""
    counts = np.ones((1,) * len(shape))
    for mode, z in enumerate(labels):
        if z is not None:
            along = [1] * len(shape)
            along[mode] = sizes[mode]
            counts = counts * np.bincount(z, minlength=sizes[mode]).reshape(along)
    return counts


def check_labels(
    where: str,
    shape: tuple[int, ...],
    labels: Sequence[Array | None],
    n_clusters: Sequence[int | None] | None,
) -> tuple[list[Labels | None], tuple[int, ...]]:
    """Return the labels as NumPy arrays, and the size of every mode after summing."""
    check_one_each(where, shape, labels)
    counts = [None] * len(shape) if n_clusters is None else list(n_clusters)
    if len(counts) != len(shape):
        raise ShapeError(
            f"{where}: n_clusters needs {len(shape)} entries, one for each mode, got {len(counts)}."
        )
    checked: list[Labels | None] = []
    sizes: list[int] = []
    for mode, given in enumerate(labels):
        if given is None:
            checked.append(None)
            sizes.append(shape[mode])
            continue
        values = check_mode_labels(where, mode, given, counts[mode])
        if values.shape != (shape[mode],):
            raise ShapeError(
                f"{where}: mode {mode} of a tensor of shape {shape} needs {shape[mode]} labels, "
                f"got {len(values)}."
            )
        checked.append(values)
        count = counts[mode]
        sizes.append(int(values.max(initial=-1)) + 1 if count is None else count)
    return checked, tuple(sizes)


def check_one_each(where: str, shape: tuple[int, ...], labels: Sequence[Array | None]) -> None:
    """Raise ``ShapeError`` unless there is one entry of ``labels`` for each mode."""
    if len(labels) != len(shape):
        raise ShapeError(
            f"{where}: a tensor of shape {shape} needs {len(shape)} label arrays, one for each "
            f"mode (None to leave it), got {len(labels)}."
        )


def check_mode_labels(where: str, mode: int, labels: Array, n_clusters: int | None) -> Labels:
    """Return labels as a NumPy array of integers from 0 to ``n_clusters - 1``."""
    array_namespace(where, labels)
    values = to_numpy(labels)
    if not np.issubdtype(values.dtype, np.integer):
        raise DtypeError(f"{where}: labels of mode {mode} must be integers, got {values.dtype}.")
    if values.ndim != 1:
        raise ShapeError(
            f"{where}: labels of mode {mode} must have one dimension, got shape {values.shape}."
        )
    if values.size and (
        values.min() < 0 or (n_clusters is not None and values.max() >= n_clusters)
    ):
        most = "" if n_clusters is None else f" and below {n_clusters}"
        raise ParameterError(
            f"{where}: labels of mode {mode} must be at least 0{most}, "
            f"got {values.min()} to {values.max()}."
        )
    return values.astype(np.intp)
