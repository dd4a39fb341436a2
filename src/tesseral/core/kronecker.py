"""Kronecker products, applied without being formed."""

from collections.abc import Sequence
from math import isqrt, prod

from tesseral._errors import ParameterError, ShapeError
from tesseral.core._arrays import Array, array_namespace
from tesseral.core.modeprod import multi_mode_product


def kronecker_apply(x: Array, factors: Sequence[Array | None]) -> Array:
    r"""Multiply row vectors by a Kronecker product of matrices.

    Computes :math:`x (A_1 \otimes \dots \otimes A_k)` along the last axis. For two factors
    and a vector laid out as a matrix X of shape (n_1, n_2) this is
    :math:`A_1^\top X A_2`: two small products in place of one of size n_1 n_2.

    Parameters
    ----------
    x : array of shape (..., n)
        Rows to transform; any number of leading batch axes.
    factors : sequence of arrays of shape (n_j, m_j), or None
        At least one; their row counts multiply to ``n``. ``None`` is an identity: a single
        one takes the size that the others leave.

    Returns
    -------
    array of shape (..., m)
        ``m`` is the product of the column counts. Equal to ``x`` itself (not a copy) when
        the only factor is an identity.

    Raises
    ------
    ShapeError
        If the row counts do not multiply to ``n``, or a factor is not a matrix.
    ParameterError
        If there is no factor, or more than one ``None``.

    Notes
    -----
    Costs ``n * sum(m_j)`` multiplications a row for square factors, against ``n * n``.
    Gradients flow to ``x`` and to the factors.

    References
    ----------
    Van Loan (2000), "The ubiquitous Kronecker product", section 2.

    Examples
    --------
    >>> import numpy as np
    >>> swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> kronecker_apply(np.array([1.0, 2.0, 3.0, 4.0]), [swap, None])
    array([3., 4., 1., 2.])
    """
    xp = array_namespace("kronecker_apply", x, *factors)
    batch = tuple(x.shape[:-1])
    sizes = _row_counts(x, factors)
    grid = xp.reshape(x, (prod(batch), *sizes))
    grid = multi_mode_product(grid, [None, *factors], transpose=True)
    return xp.reshape(grid, (*batch, prod(grid.shape[1:])))


def _row_counts(x: Array, factors: Sequence[Array | None]) -> tuple[int, ...]:
    """Return the size of every factor, the identity's inferred from the last axis of ``x``."""
    if not factors:
        raise ParameterError("kronecker_apply: needs at least one factor, got none.")
    shapes = [None if factor is None else tuple(factor.shape) for factor in factors]
    if shapes.count(None) > 1:
        raise ParameterError(
            f"kronecker_apply: at most one factor may be None, got {shapes.count(None)}; "
            "give the other identities as matrices."
        )
    matrices = [shape for shape in shapes if shape is not None]
    if x.ndim == 0 or any(len(shape) != 2 for shape in matrices):
        raise ShapeError(
            f"kronecker_apply: needs x of shape (..., n) and matrices as factors, got x of "
            f"shape {tuple(x.shape)} and factors of shapes {shapes}."
        )
    n = x.shape[-1]
    known = prod(rows for rows, _ in matrices)
    left_over = n // known if known else 0
    sizes = tuple(left_over if shape is None else shape[0] for shape in shapes)
    if prod(sizes) != n:
        raise ShapeError(
            f"kronecker_apply: the row counts of the factors must multiply to {n}, the last "
            f"axis of x, got factors of shapes {shapes}."
        )
    return sizes


def balanced_factors(n: int) -> tuple[int, int]:
    """Split ``n`` into two factors with the smallest sum.

    Parameters
    ----------
    n : int
        At least 1.

    Returns
    -------
    tuple of (int, int)
        ``(n1, n2)`` with ``n1 * n2 == n`` and ``n1 <= n2``; ``(1, n)`` for a prime.

    Raises
    ------
    ParameterError
        If ``n`` is below 1.

    Examples
    --------
    >>> balanced_factors(4096), balanced_factors(5120), balanced_factors(7)
    ((64, 64), (64, 80), (1, 7))
    """
    if n < 1:
        raise ParameterError(f"balanced_factors: n must be at least 1, got {n}.")
    n1 = next(k for k in range(isqrt(n), 0, -1) if n % k == 0)
    return n1, n // n1
