"""Mode products: a matrix applied along one mode of a tensor, or along many."""

from math import prod

from tesseral._errors import ShapeError
from tesseral.core._arrays import Array, array_namespace
from tesseral.core.unfold import check_mode


def mode_product(tensor: Array, matrix: Array, mode: int, *, transpose: bool = False) -> Array:
    r"""Multiply every mode-``mode`` fibre of a tensor by a matrix.

    Entry by entry, :math:`Y_{\dots j \dots} = \sum_i M_{ji} X_{\dots i \dots}`.

    Parameters
    ----------
    tensor : array of shape (d_0, ..., d_{K-1})
        Real tensor, K >= 1. Any memory order.
    matrix : array of shape (m, d_mode), or (d_mode, m) if ``transpose``
        Same framework as ``tensor``.
    mode : int
        Mode to multiply, in ``range(-K, K)``.
    transpose : bool
        Apply the transpose of ``matrix``.

    Returns
    -------
    array of shape (d_0, ..., m, ..., d_{K-1})
        C order; of the common data type.

    Raises
    ------
    ShapeError
        If the mode does not exist or the sizes do not match.

    References
    ----------
    Kolda and Bader (2009), section 2.5.

    Examples
    --------
    >>> import numpy as np
    >>> mode_product(np.ones((2, 3)), np.array([[1.0, 1.0]]), mode=0)
    array([[2., 2., 2.]])
    """
    xp = array_namespace("mode_product", tensor, matrix)
    mode = check_mode("mode_product", tensor, mode)
    shape = tuple(tensor.shape)
    check_matrix("mode_product", matrix, mode, shape[mode], transpose=transpose)
    left, size, right = prod(shape[:mode]), shape[mode], prod(shape[mode + 1 :])
    if right == 1:
        # the fibres already lie as rows: one matrix product instead of a batch of them
        rows = xp.reshape(tensor, (left, size))
        product = xp.matmul(rows, matrix if transpose else matrix.mT)
    else:
        slabs = xp.reshape(tensor, (left, size, right) if left != 1 else (size, right))
        product = xp.matmul(matrix.mT if transpose else matrix, slabs)
    new_size = matrix.shape[1] if transpose else matrix.shape[0]
    return xp.reshape(product, (*shape[:mode], new_size, *shape[mode + 1 :]))


def check_matrix(where: str, matrix: Array, mode: int, size: int, *, transpose: bool) -> None:
    """Raise ``ShapeError`` unless ``matrix`` can be applied to a mode of ``size``."""
    needed = f"({size}, m)" if transpose else f"(m, {size})"
    if matrix.ndim != 2 or matrix.shape[0 if transpose else 1] != size:
        raise ShapeError(
            f"{where}: mode {mode} has size {size} and needs a matrix of shape {needed}, "
            f"got shape {tuple(matrix.shape)}."
        )
