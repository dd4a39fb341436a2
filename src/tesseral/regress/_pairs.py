r"""Products of two columns, each pair once: what weighted normal equations are made of.

The information about a matrix of r columns needs :math:`\sum_i w_i a_{is} a_{it}` for all pairs
(s, t). Since it is symmetric, q = r (r + 1) / 2 products are enough.
"""

from functools import cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from tesseral.core._arrays import Array, Namespace, like


def pair_columns(xp: Namespace, matrix: Array) -> Array:
    """Return the products of all pairs of columns: (n, r) to (n, r (r + 1) / 2)."""
    first, second = _pairs(matrix.shape[1])
    return xp.take(matrix, _index(matrix, first), axis=1) * xp.take(
        matrix, _index(matrix, second), axis=1
    )


def expand_pairs(xp: Namespace, tensor: Array, rank: tuple[int, ...], *, keep: int | None) -> Array:
    """Turn pairs along every mode into two indices, and gather firsts and seconds.

    Parameters
    ----------
    xp : namespace
        Array functions of ``tensor``.
    tensor : array of shape (q_0, ..., q_{K-1})
        Sums over pairs; along mode ``keep`` anything of any size d.
    rank : tuple of K int
        The number of columns r_k behind each mode.
    keep : int or None
        A mode to leave alone and bring to the front.

    Returns
    -------
    array of shape (d, R, R), or (R, R) without ``keep``
        R is the product of the ranks of the other modes, in C order.
    """
    order = len(rank)
    others = [mode for mode in range(order) if mode != keep]
    for mode in others:
        tensor = xp.take(tensor, _index(tensor, _lookup(rank[mode]).reshape(-1)), axis=mode)
    shape: list[int] = []
    position: dict[int, int] = {}
    for mode in range(order):
        position[mode] = len(shape)
        shape += [tensor.shape[mode]] if mode == keep else [rank[mode], rank[mode]]
    axes = [position[mode] for mode in others] + [position[mode] + 1 for mode in others]
    size = prod(rank[mode] for mode in others)
    lead = [] if keep is None else [position[keep]]
    kept = () if keep is None else (tensor.shape[keep],)
    spread = xp.permute_dims(xp.reshape(tensor, tuple(shape)), tuple(lead + axes))
    return xp.reshape(spread, (*kept, size, size))


@cache
def _pairs(rank: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first, second = np.triu_indices(rank)
    return first, second


@cache
def _lookup(rank: int) -> NDArray[np.int64]:
    """Return the position of the pair (s, t), in either order."""
    table = np.empty((rank, rank), dtype=np.int64)
    first, second = _pairs(rank)
    table[first, second] = table[second, first] = np.arange(len(first))
    return table


def _index(reference: Array, indices: NDArray[np.int64]) -> Array:
    if isinstance(reference, np.ndarray):
        return indices
    import array_api_compat

    xp = array_api_compat.array_namespace(reference)
    return like(indices, reference, dtype=xp.int64)
