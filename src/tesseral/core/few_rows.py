"""What a model does with few tokens besides its quantised layers: norms, and a dense product."""

from typing import Any

from tesseral import _native
from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core._arrays import address, dtype_name
from tesseral.core.kernel_arrays import check_dense, check_rows
from tesseral.core.rows import ROW_TYPES
from tesseral.runtime.cpu import cpu_target, cpu_threads

DENSE_MOST: int = _native.DENSE_ROWS_MOST
"""Rows that :func:`dense_rows` takes at most."""

DENSE_MULTIPLE: int = _native.DENSE_ROWS_MULTIPLE
"""Of which the length of its rows is a multiple."""


def norm_rows(
    rows: Any,
    weight: Any,
    epsilon: float,
    out: Any,
    *,
    threads: int | None = None,
    target: str | None = None,
) -> None:
    """Fill ``out`` with ``round(x / sqrt(mean(x^2) + epsilon)) * weight``, row by row.

    Computed in float32, with both steps rounded to the type of the rows.

    Parameters
    ----------
    rows : float32, bfloat16 or float16 array of shape (m, n)
        Elements of a row are neighbours.
    out : array of that type with m rows of n, in C order
    weight : array of that type and of shape (n,)
    epsilon : float
    threads, target : optional
        As for :func:`~tesseral.core.int4.linear_int4`.

    Raises
    ------
    DtypeError, ShapeError, ParameterError, BackendError
        If arrays, threads or target do not fit.
    """
    element = dtype_name(rows)
    if element not in ROW_TYPES:
        raise DtypeError(f"norm_rows: rows must be one of {ROW_TYPES}, got {element}.")
    if rows.ndim != 2:
        raise ShapeError(f"norm_rows: rows must be a matrix, got shape {tuple(rows.shape)}.")
    m, n = rows.shape
    stride = check_rows("rows", rows, element, (m, n), "norm_rows")
    check_rows("weight", weight, element, (n,), "norm_rows")
    check_dense("out", out, element, m, n, "norm_rows")
    _native.norm_rows(
        element,
        address(rows),
        stride,
        m,
        n,
        address(weight),
        epsilon,
        address(out),
        cpu_threads(threads),
        cpu_target(target),
    )


def dense_rows(
    rows: Any, weight: Any, out: Any, *, threads: int | None = None, target: str | None = None
) -> None:
    """Fill ``out`` with few rows times the transpose of a dense weight, summed in float32.

    Parameters
    ----------
    rows, weight, out : float32 or bfloat16 arrays of shapes (m, k), (n, k) and (m, n)
        Of one type and in C order, with at most :data:`DENSE_MOST` rows, whose length is a
        multiple of :data:`DENSE_MULTIPLE`.
    threads, target : optional
        As for :func:`~tesseral.core.int4.linear_int4`.

    Raises
    ------
    DtypeError, ShapeError, ParameterError, BackendError
        If arrays, threads or target do not fit.
    """
    element = dtype_name(rows)
    if element not in ROW_TYPES[:2]:
        raise DtypeError(f"dense_rows: rows must be one of {ROW_TYPES[:2]}, got {element}.")
    (m, k), n = rows.shape, len(weight)
    if m > DENSE_MOST or k % DENSE_MULTIPLE:
        raise ParameterError(
            f"dense_rows: takes at most {DENSE_MOST} rows of a multiple of {DENSE_MULTIPLE} "
            f"elements, got shape {(m, k)}."
        )
    for name, array, length in (("rows", rows, m), ("weight", weight, n)):
        check_dense(name, array, element, length, k, "dense_rows")
    check_dense("out", out, element, m, n, "dense_rows")
    _native.dense_rows(
        element,
        address(rows),
        address(weight),
        address(out),
        m,
        n,
        k,
        cpu_threads(threads),
        cpu_target(target),
    )
