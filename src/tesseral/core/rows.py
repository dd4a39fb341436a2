"""Rows times a Kronecker product of matrices, then as signed codes, in one pass of a kernel."""

from typing import Any

from tesseral import _native
from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.runtime.cpu import cpu_target, cpu_threads

_ELEMENTS = ("float32", "bfloat16", "float16")


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
    if not 2 <= bits <= 8:
        raise ParameterError(f"quantize_rows: bits={bits} do not fit int8 codes; 2 to 8 do.")
    element = _dtype_name(rows)
    if element not in _ELEMENTS:
        raise DtypeError(f"quantize_rows: rows must be one of {_ELEMENTS}, got {element}.")
    m, n = _matrix("rows", rows)
    left, right = _sizes(factors, n)
    _expect("codes", codes, "int8", (m, n))
    _expect("scale", scale, "float32", (m, 1))
    _expect("clip", clip, "float32", (2,))
    _native.quantize_rows(
        element,
        _address(rows),
        _distance(rows),
        m,
        left,
        right,
        0 if factors[0] is None else _address(factors[0]),
        0 if factors[1] is None else _address(factors[1]),
        _address(clip),
        bits,
        _address(codes),
        _distance(codes),
        _address(scale),
        cpu_threads(threads),
        cpu_target(target),
    )


def _sizes(factors: tuple[Any, Any], n: int) -> tuple[int, int]:
    sizes = []
    for factor in factors:
        if factor is not None:
            _expect("factor", factor, "float32", (len(factor),) * 2)
        sizes.append(None if factor is None else len(factor))
    left, right = sizes
    if left is None:
        left = 1 if right is None else n // max(right, 1)
    right = n // max(left, 1) if right is None else right
    if left < 1 or right < 1 or left * right != n:
        raise ShapeError(f"quantize_rows: factors of sizes {tuple(sizes)} do not fit {n} columns.")
    return left, right


def _expect(name: str, array: Any, dtype: str, shape: tuple[int, ...]) -> None:
    if _dtype_name(array) != dtype:
        raise DtypeError(f"quantize_rows: {name} must be {dtype}, got {_dtype_name(array)}.")
    if tuple(array.shape) != shape:
        raise ShapeError(
            f"quantize_rows: {name} must have shape {shape}, got {tuple(array.shape)}."
        )
    _matrix(name, array)
    if name not in ("codes", "rows") and array.ndim > 1 and _distance(array) != shape[-1]:
        raise ShapeError(f"quantize_rows: {name} must be contiguous in C order.")


def _matrix(name: str, array: Any) -> tuple[int, int]:
    """Check that elements of a row are neighbours; return the shape."""
    device = str(getattr(array, "device", "cpu"))
    if device != "cpu":
        raise ParameterError(f"quantize_rows: {name} must be on the CPU, got device {device}.")
    steps, shape = _steps(array), tuple(int(n) for n in array.shape)
    if name == "rows" and len(shape) != 2:
        raise ShapeError(f"quantize_rows: rows must be a matrix, got shape {shape}.")
    apart = len(shape) > 1 and shape[0] > 1 and steps[0] < shape[-1]
    if (shape[-1] > 1 and steps[-1] != 1) or apart:
        raise ShapeError(
            f"quantize_rows: elements of a row of {name} must be neighbours, got shape "
            f"{shape} with steps {steps}."
        )
    return shape[0], shape[-1]


def _steps(array: Any) -> tuple[int, ...]:
    """Return the distance along each axis, in elements."""
    if hasattr(array, "data_ptr"):
        return tuple(array.stride())
    return tuple(stride // array.itemsize for stride in array.strides)


def _distance(array: Any) -> int:
    return max(int(_steps(array)[0]), int(array.shape[-1]))


def _dtype_name(array: Any) -> str:
    return str(array.dtype).removeprefix("torch.")


def _address(array: Any) -> int:
    return int(array.data_ptr() if hasattr(array, "data_ptr") else array.ctypes.data)
