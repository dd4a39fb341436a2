"""Heads of tokens times a matrix, dense or as codes, in one pass of a kernel."""

from typing import Any

from tesseral import _native
from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core._arrays import address, dtype_name
from tesseral.core.packing import packed_length, storage_bits
from tesseral.core.rows import ROW_TYPES
from tesseral.runtime.cpu import cpu_target, cpu_threads

HEAD_MULTIPLE: int = _native.HEAD_ROWS_MULTIPLE
"""Heads that the kernel takes have a multiple of so many elements."""


def transform_heads(
    x: Any, factor: Any, out: Any, *, threads: int | None = None, target: str | None = None
) -> None:
    """Fill ``out`` with heads times a matrix, computed in float32.

    Parameters
    ----------
    x, out : float32, bfloat16 or float16 arrays of shape (batch, heads, tokens, dim)
        Of one type, on the CPU; elements of a head are neighbours, and ``dim`` is a multiple of
        :data:`HEAD_MULTIPLE`.
    factor : float32 array of shape (dim, dim)
    threads, target : optional
        As for :func:`~tesseral.core.int4.linear_int4`.

    Raises
    ------
    DtypeError, ShapeError, ParameterError, BackendError
        If arrays, threads or target do not fit.
    """
    element = _check_heads(x)
    _check("out", out, element, tuple(x.shape))
    _native.transform_heads(
        element,
        tuple(x.shape[:3]),
        x.shape[3],
        address(x),
        _steps(x),
        _factor(factor, x.shape[3]),
        address(out),
        _steps(out),
        cpu_threads(threads),
        cpu_target(target),
    )


def encode_heads(
    x: Any,
    factor: Any,
    clip: Any,
    bits: int,
    data: Any,
    scale: Any,
    offset: Any,
    *,
    threads: int | None = None,
    target: str | None = None,
) -> None:
    """Fill ``data``, ``scale`` and ``offset`` with the asymmetric codes of heads.

    Heads are multiplied by ``factor`` and rounded to their type first. The rest is that of
    :func:`tesseral.quantization.kvcodec.encode_heads`, to the bit.

    Parameters
    ----------
    x : float32, bfloat16 or float16 array of shape (batch, heads, tokens, dim)
        As for :func:`transform_heads`.
    factor : float32 array of shape (dim, dim), or None
    clip : float32 array of shape (2,)
        Fractions of each head's minimum and maximum to keep.
    bits : int
        Width of the codes, 2 to 8; packed in the next of 2, 4 and 8.
    data : uint8 array of shape (batch, heads, tokens, bytes)
    scale, offset : float16 arrays of shape (batch, heads, tokens, 1)
        With the same steps.
    threads, target : optional
        As for :func:`~tesseral.core.int4.linear_int4`.

    Raises
    ------
    DtypeError, ShapeError, ParameterError, BackendError
        If arrays, width, threads or target do not fit.
    """
    if not 2 <= bits <= 8:
        raise ParameterError(f"encode_heads: bits={bits} must be 2 to 8.")
    element, dim = _check_heads(x), x.shape[3]
    lead = tuple(x.shape[:3])
    _check("data", data, "uint8", (*lead, packed_length(dim, storage_bits(bits))))
    for name, array in (("scale", scale), ("offset", offset)):
        _check(name, array, "float16", (*lead, 1))
    if _steps(scale) != _steps(offset):
        raise ShapeError("encode_heads: scale and offset must have the same steps.")
    _native.encode_heads(
        element,
        lead,
        dim,
        address(x),
        _steps(x),
        0 if factor is None else _factor(factor, dim),
        _clip(clip),
        bits,
        address(data),
        _steps(data),
        address(scale),
        address(offset),
        _steps(scale),
        cpu_threads(threads),
        cpu_target(target),
    )


def _check_heads(x: Any) -> str:
    """Return the type of the elements of heads that the kernel takes."""
    element = dtype_name(x)
    if element not in ROW_TYPES:
        raise DtypeError(f"heads: must be one of {ROW_TYPES}, got {element}.")
    if x.ndim != 4 or x.shape[3] % HEAD_MULTIPLE:
        raise ShapeError(
            f"heads: must have 4 axes, the last a multiple of {HEAD_MULTIPLE}, got shape "
            f"{tuple(x.shape)}."
        )
    _check("x", x, element, tuple(x.shape))
    return element


def _check(name: str, array: Any, dtype: str, shape: tuple[int, ...]) -> None:
    if dtype_name(array) != dtype:
        raise DtypeError(f"heads: {name} must be {dtype}, got {dtype_name(array)}.")
    if array.shape != shape:
        raise ShapeError(f"heads: {name} must have shape {shape}, got {tuple(array.shape)}.")
    if not getattr(array, "is_cpu", True):
        raise ParameterError(f"heads: {name} must be on the CPU, got device {array.device}.")
    if shape[-1] > 1 and _strides(array)[-1] != 1:
        raise ShapeError(f"heads: elements of a head of {name} must be neighbours.")


def _strides(array: Any) -> tuple[int, ...]:
    """Return the distances between neighbours along each axis, in elements."""
    if hasattr(array, "data_ptr"):
        strides: tuple[int, ...] = array.stride()
        return strides
    return tuple(step // array.itemsize for step in array.strides)


def _steps(array: Any) -> tuple[int, int, int]:
    batch, head, token, _ = _strides(array)
    return batch, head, token


def _factor(factor: Any, dim: int) -> int:
    _check("factor", factor, "float32", (dim, dim))
    if _strides(factor)[0] != dim:
        raise ShapeError("heads: factor must be contiguous in C order.")
    return address(factor)


def _clip(clip: Any) -> int:
    _check("clip", clip, "float32", (2,))
    return address(clip)
