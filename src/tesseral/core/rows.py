"""Rows times a Kronecker product of matrices, then as signed codes, in one pass of a kernel."""

from collections.abc import Sequence
from typing import Any

from tesseral import _native
from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core._arrays import address, dtype_name
from tesseral.core.kernel_arrays import check_dense, check_rows
from tesseral.runtime.cpu import cpu_target, cpu_threads

ROW_TYPES = ("float32", "bfloat16", "float16")
"""Types of rows that can be read."""


def quantize_rows(
    rows: Any,
    factors: tuple[Any, Any],
    clip: Any,
    bits: int,
    codes: Any,
    scale: Any,
    *,
    threads: int | None = None,
    target: str | None = None,
) -> None:
    """Fill ``codes`` and ``scale`` with transformed rows: ``x (P1 ⊗ P2) = scale * codes``, rounded.

    A row laid out as a matrix X becomes ``P1^T X P2``, in float32: each element is off by no more
    than a sum of so many rounded products in turn. The scale is that of
    :func:`tesseral.quantization.numerics.symmetric_scale`, and quotients are correctly rounded,
    so without factors codes are those of torch, to the bit. A row with infinity or NaN gets NaN
    as its scale.

    Parameters
    ----------
    rows : float32, bfloat16 or float16 array of shape (m, n)
        On the CPU; elements of a row are neighbours.
    factors : pair of float32 arrays of shape (n_1, n_1) and (n_2, n_2), or None
        ``None`` is an identity and takes the size that the other leaves; with two of them,
        rows are only quantised.
    clip : float32 array of shape (2,)
        Fractions of each row's minimum and maximum to keep.
    bits : int
        Width of the codes, 2 to 8.
    codes : int8 array of shape (m, n)
        Written; rows may be farther apart than they are long.
    scale : float32 array of shape (m, 1)
        Written.
    threads, target : optional
        As for :func:`tesseral.core.int4.linear_int4`.

    Raises
    ------
    DtypeError, ShapeError, ParameterError, BackendError
        If arrays, width, threads or target do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> swap = np.array([[0, 1], [1, 0]], dtype=np.float32)
    >>> codes, scale = np.empty((1, 4), np.int8), np.empty((1, 1), np.float32)
    >>> rows = np.array([[1, 2, -4, 3.5]], dtype=np.float32)
    >>> quantize_rows(rows, (swap, None), np.ones(2, np.float32), 4, codes, scale)
    >>> codes * scale
    array([[-4. ,  3.5,  1. ,  2. ]], dtype=float32)
    """
    RowQuantizer(factors, clip, bits)(rows, codes, scale, threads=threads, target=target)


class RowQuantizer:
    """What :func:`quantize_rows` does, with factors and clip that were looked at before.

    Parameters
    ----------
    factors, clip, bits
        As for :func:`quantize_rows`; the arrays are kept.

    Attributes
    ----------
    addresses : list of int
        Where both factors and the clip lie; 0 for an identity.

    Raises
    ------
    DtypeError, ShapeError, ParameterError
        If they do not fit.
    """

    def __init__(self, factors: Sequence[Any], clip: Any, bits: int) -> None:
        if not 2 <= bits <= 8:
            raise ParameterError(f"quantize_rows: bits={bits} do not fit int8 codes; 2 to 8 do.")
        for factor in factors:
            if factor is not None:
                check_dense("factor", factor, "float32", len(factor), len(factor), "quantize_rows")
        check_rows("clip", clip, "float32", (2,), "quantize_rows")
        self._arrays = (*factors, clip)
        self._sizes = tuple(None if factor is None else len(factor) for factor in factors)
        self.addresses = [0 if a is None else address(a) for a in self._arrays]
        self.bits = bits

    def reads(self, factors: Sequence[Any], clip: Any) -> bool:
        """Whether these arrays lie where those it was made with lay."""
        return self.addresses == [0 if a is None else address(a) for a in (*factors, clip)]

    def __call__(
        self,
        rows: Any,
        codes: Any,
        scale: Any,
        *,
        threads: int | None = None,
        target: str | None = None,
    ) -> None:
        """Fill ``codes`` and ``scale``; see :func:`quantize_rows`."""
        element = dtype_name(rows)
        if element not in ROW_TYPES:
            raise DtypeError(f"quantize_rows: rows must be one of {ROW_TYPES}, got {element}.")
        if rows.ndim != 2:
            raise ShapeError(
                f"quantize_rows: rows must be a matrix, got shape {tuple(rows.shape)}."
            )
        m, n = rows.shape
        left, right = self.split(n)
        stride = check_rows("rows", rows, element, (m, n), "quantize_rows")
        codes_stride = check_rows("codes", codes, "int8", (m, n), "quantize_rows")
        check_dense("scale", scale, "float32", m, 1, "quantize_rows")
        left_factor, right_factor, clip = self.addresses
        _native.quantize_rows(
            element,
            address(rows),
            stride,
            m,
            left,
            right,
            left_factor,
            right_factor,
            clip,
            self.bits,
            address(codes),
            codes_stride,
            address(scale),
            cpu_threads(threads),
            cpu_target(target),
        )

    def split(self, n: int) -> tuple[int, int]:
        """Return the sizes of both factors for rows of ``n`` elements, identities included."""
        return _split(self._sizes, n, "quantize_rows")


def transform_rows(
    rows: Any,
    factors: Sequence[Any],
    out: Any,
    *,
    threads: int | None = None,
    target: str | None = None,
) -> None:
    """Fill ``out`` with rows times a Kronecker product, rounded to their type at the end.

    Parameters
    ----------
    rows : float32, bfloat16 or float16 array of shape (m, n)
    factors : pair of float32 arrays, or None
        As for :func:`quantize_rows`.
    out : array of the type and shape of ``rows``, in C order
        It must not overlap ``rows``.
    threads, target : optional
        As for :func:`tesseral.core.int4.linear_int4`.

    Raises
    ------
    DtypeError, ShapeError, ParameterError, BackendError
        If arrays, threads or target do not fit.
    """
    element = dtype_name(rows)
    if element not in ROW_TYPES:
        raise DtypeError(f"transform_rows: rows must be one of {ROW_TYPES}, got {element}.")
    if rows.ndim != 2:
        raise ShapeError(f"transform_rows: rows must be a matrix, got shape {tuple(rows.shape)}.")
    m, n = rows.shape
    for factor in factors:
        if factor is not None:
            check_dense("factor", factor, "float32", len(factor), len(factor), "transform_rows")
    left, right = _split(
        [None if factor is None else len(factor) for factor in factors], n, "transform_rows"
    )
    stride = check_rows("rows", rows, element, (m, n), "transform_rows")
    check_dense("out", out, element, m, n, "transform_rows")
    left_factor, right_factor = (0 if factor is None else address(factor) for factor in factors)
    _native.transform_rows(
        element,
        address(rows),
        stride,
        m,
        left,
        right,
        left_factor,
        right_factor,
        address(out),
        cpu_threads(threads),
        cpu_target(target),
    )


def _split(sizes: Sequence[int | None], n: int, where: str) -> tuple[int, int]:
    """Return the sizes of both factors for rows of ``n`` elements, identities included."""
    left, right = sizes
    if left is None:
        left = 1 if right is None else n // max(right, 1)
    if right is None:
        right = n // max(left, 1)
    if left < 1 or right < 1 or left * right != n:
        raise ShapeError(f"{where}: factors of sizes {tuple(sizes)} do not fit {n} columns.")
    return left, right
