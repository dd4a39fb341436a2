"""A tensor as a matrix, and back."""

import operator
from collections.abc import Sequence
from math import prod

from tesseral._errors import ShapeError
from tesseral.core._arrays import Array, array_namespace


def unfold(tensor: Array, mode: int) -> Array:
    """Lay the mode-``mode`` fibres of a tensor out as the columns of a matrix.

    Row ``i`` holds every entry whose ``mode``-th index is ``i``; the remaining indices run
    in C order, the last one fastest.

    Parameters
    ----------
    tensor : array of shape (d_0, ..., d_{K-1})
        Dense tensor, K >= 1. Any memory order.
    mode : int
        Mode to bring to the front, in ``range(-K, K)``.

    Returns
    -------
    array of shape (d_mode, prod(d) / d_mode)
        A view when the memory order allows it, a copy otherwise.

    Raises
    ------
    ShapeError
        If ``mode`` does not name a mode of ``tensor``.

    References
    ----------
    Kolda and Bader (2009), section 2.4, with C order in place of Fortran order.

    Examples
    --------
    >>> import numpy as np
    >>> unfold(np.arange(6.0).reshape(1, 2, 3), mode=1)
    array([[0., 1., 2.],
           [3., 4., 5.]])
    """
    xp = array_namespace("unfold", tensor)
    mode = check_mode("unfold", tensor, mode)
    shape = tuple(tensor.shape)
    others = prod(shape[:mode]) * prod(shape[mode + 1 :])
    return xp.reshape(xp.moveaxis(tensor, mode, 0), (shape[mode], others))


def fold(matrix: Array, mode: int, shape: Sequence[int]) -> Array:
    """Undo :func:`unfold`: put a matrix of fibres back into a tensor.

    Parameters
    ----------
    matrix : array of shape (d_mode, prod(d) / d_mode)
        A matrix laid out as :func:`unfold` does.
    mode : int
        Mode that the rows run along, in ``range(-K, K)``.
    shape : sequence of int
        Shape (d_0, ..., d_{K-1}) of the tensor.

    Returns
    -------
    array of shape (d_0, ..., d_{K-1})
        A view when the memory order allows it, a copy otherwise.

    Raises
    ------
    ShapeError
        If ``mode`` does not name a mode of ``shape`` or ``matrix`` has another shape than
        the unfolding would have.

    Examples
    --------
    >>> import numpy as np
    >>> tensor = np.arange(24.0).reshape(2, 3, 4)
    >>> bool((fold(unfold(tensor, mode=1), 1, tensor.shape) == tensor).all())
    True
    """
    xp = array_namespace("fold", matrix)
    shape = tuple(shape)
    mode = check_mode_of_shape("fold", shape, mode)
    others = shape[:mode] + shape[mode + 1 :]
    expected = (shape[mode], prod(others))
    if tuple(matrix.shape) != expected:
        raise ShapeError(
            f"fold: a tensor of shape {shape} unfolds along mode {mode} to {expected}, "
            f"got a matrix of shape {tuple(matrix.shape)}."
        )
    return xp.moveaxis(xp.reshape(matrix, (shape[mode], *others)), 0, mode)


def check_mode(where: str, tensor: Array, mode: int) -> int:
    """Return ``mode`` counted from the front, or raise ``ShapeError``."""
    return check_mode_of_shape(where, tuple(tensor.shape), mode)


def check_mode_of_shape(where: str, shape: tuple[int, ...], mode: int) -> int:
    """Return ``mode`` of a tensor of ``shape`` counted from the front."""
    order = len(shape)
    position = operator.index(mode)
    if not -order <= position < order:
        raise ShapeError(
            f"{where}: mode={mode} does not exist in a tensor of shape {shape}; "
            f"it has {order} modes{f', numbered 0 to {order - 1}' if order else ''}."
        )
    return position % order
