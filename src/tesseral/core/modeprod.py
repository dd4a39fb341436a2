"""Mode products: a matrix applied along one mode of a tensor, or along many."""

from collections.abc import Sequence
from math import prod

from tesseral._errors import ShapeError
from tesseral.core._arrays import Array, Namespace, array_namespace
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
    _check_matrix("mode_product", matrix, mode, tensor.shape[mode], transpose)
    return _product(xp, tensor, matrix if transpose else matrix.mT, mode)


def multi_mode_product(
    tensor: Array,
    matrices: Sequence[Array | None],
    *,
    skip: int | None = None,
    transpose: bool = False,
) -> Array:
    r"""Multiply a tensor by one matrix along each of its modes.

    Computes :math:`X \times_0 M_0 \times_1 M_1 \dots` in the order that costs least
    (:func:`contraction_order`).

    Parameters
    ----------
    tensor : array of shape (d_0, ..., d_{K-1})
        Real tensor, K >= 1. Any memory order.
    matrices : sequence of K arrays of shape (m_k, d_k), or (d_k, m_k) if ``transpose``
        ``None`` leaves a mode as it is.
    skip : int, optional
        One more mode to leave as it is, in ``range(-K, K)``.
    transpose : bool
        Apply the transposes of the matrices.

    Returns
    -------
    array of shape (m_0, ..., m_{K-1})
        The size of an untouched mode stays; ``tensor`` itself if every mode is untouched.

    Raises
    ------
    ShapeError
        If there is not one matrix for each mode, sizes do not match, or ``skip`` does not
        exist.

    References
    ----------
    Kolda and Bader (2009), section 2.5.

    Examples
    --------
    >>> import numpy as np
    >>> row = np.ones((1, 3))
    >>> multi_mode_product(np.ones((3, 3, 3)), [row, None, row]).shape
    (1, 3, 1)
    """
    where = "multi_mode_product"
    xp = array_namespace(where, tensor, *matrices)
    shape = tuple(tensor.shape)
    if len(matrices) != len(shape):
        raise ShapeError(
            f"{where}: a tensor of shape {shape} needs {len(shape)} matrices, one for each "
            f"mode (None to leave it), got {len(matrices)}."
        )
    skipped = None if skip is None else check_mode(where, tensor, skip)
    chosen = {k: m for k, m in enumerate(matrices) if m is not None and k != skipped}
    for mode, matrix in chosen.items():
        _check_matrix(where, matrix, mode, shape[mode], transpose)
    columns = {k: m if transpose else m.mT for k, m in chosen.items()}
    sizes = [columns[k].shape[1] if k in columns else None for k in range(len(shape))]
    for mode in contraction_order(shape, sizes):
        tensor = _product(xp, tensor, columns[mode], mode)
    return tensor


def contraction_order(shape: Sequence[int], new_sizes: Sequence[int | None]) -> tuple[int, ...]:
    """Return the order of mode products with the fewest multiplications.

    Parameters
    ----------
    shape : sequence of int
        Sizes (d_0, ..., d_{K-1}) before the products.
    new_sizes : sequence of int or None
        Sizes (m_0, ..., m_{K-1}) after them; ``None`` for a mode that is not multiplied.

    Returns
    -------
    tuple of int
        The multiplied modes, first to last. Among equals the last mode goes first, because
        its fibres are contiguous.

    Notes
    -----
    Multiplying mode k costs ``m_k`` multiplications for each entry present, and scales
    their number by ``m_k / d_k``. Of two neighbours in an order, i before j is cheaper
    exactly when ``1/d_i - 1/m_i < 1/d_j - 1/m_j``; so sorting by that number is optimal.

    Examples
    --------
    >>> contraction_order((10, 200, 30), (5, 2, None))
    (1, 0)
    """
    gains = {
        # a size of zero counts as one half: making a tensor empty is the best first step
        mode: 1 / max(old, 0.5) - 1 / max(new, 0.5)
        for mode, (old, new) in enumerate(zip(shape, new_sizes, strict=True))
        if new is not None
    }
    return tuple(sorted(gains, key=lambda mode: (gains[mode], -mode)))


def _product(xp: Namespace, tensor: Array, matrix: Array, mode: int) -> Array:
    """Contract mode ``mode`` of ``tensor`` with the rows of ``matrix``."""
    shape = tuple(tensor.shape)
    left, size, right = prod(shape[:mode]), shape[mode], prod(shape[mode + 1 :])
    if right == 1:
        # the fibres already lie as rows: one matrix product instead of a batch of them
        product = xp.matmul(xp.reshape(tensor, (left, size)), matrix)
    else:
        product = xp.matmul(matrix.mT, xp.reshape(tensor, (left, size, right)))
    return xp.reshape(product, (*shape[:mode], matrix.shape[1], *shape[mode + 1 :]))


def _check_matrix(where: str, matrix: Array, mode: int, size: int, transpose: bool) -> None:
    if matrix.ndim != 2 or matrix.shape[0 if transpose else 1] != size:
        needed = f"({size}, m)" if transpose else f"(m, {size})"
        raise ShapeError(
            f"{where}: mode {mode} has size {size} and needs a matrix of shape {needed}, "
            f"got shape {tuple(matrix.shape)}."
        )
