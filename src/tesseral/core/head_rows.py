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
    element, steps, out_steps = dtype_name(x), _strides(x), _strides(out)
    sizes = x.shape
    fits = out.shape == sizes and dtype_name(out) == element and out_steps[-1] == 1
    if not fits or not _is_heads(x, element, steps):
        _check_heads(x)
        _check("out", out, element, tuple(sizes))
    _native.transform_heads(
        element,
        tuple(sizes[:3]),
        sizes[3],
        address(x),
        steps[:3],
        _factor(factor, sizes[3]),
        address(out),
        out_steps[:3],
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
    element, steps, code_steps, scale_steps = dtype_name(x), *map(_strides, (x, data, scale))
    *lead, dim = x.shape
    if not _is_heads(x, element, steps) or not _is_place(data, code_steps, lead, dim, bits):
        _check_heads(x)
        _check_bits(bits)
        _check("data", data, "uint8", (*lead, packed_length(dim, storage_bits(bits))))
    for name, array in (("scale", scale), ("offset", offset)):
        if array.shape != (*lead, 1) or dtype_name(array) != "float16":
            _check(name, array, "float16", (*lead, 1))
    if scale_steps != _strides(offset):
        raise ShapeError("encode_heads: scale and offset must have the same steps.")
    _native.encode_heads(
        element,
        tuple(lead),
        dim,
        address(x),
        steps[:3],
        0 if factor is None else _factor(factor, dim),
        _clip(clip),
        bits,
        address(data),
        code_steps[:3],
        address(scale),
        address(offset),
        scale_steps[:3],
        cpu_threads(threads),
        cpu_target(target),
    )


def _is_heads(x: Any, element: str, steps: tuple[int, ...]) -> bool:
    """Say quickly whether the kernel takes these heads."""
    fits = len(steps) == 4 and steps[3] == 1 and x.shape[3] % HEAD_MULTIPLE == 0
    return fits and element in ROW_TYPES and getattr(x, "is_cpu", True)


def _is_place(data: Any, steps: tuple[int, ...], lead: list[int], dim: int, bits: int) -> bool:
    """Say quickly whether codes of so many bits fit there."""
    width = dim * storage_bits(bits) // 8 if 2 <= bits <= 8 else 0
    fits = data.shape == (*lead, width) and steps[-1] == 1 and dtype_name(data) == "uint8"
    return fits and getattr(data, "is_cpu", True)


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ParameterError(f"encode_heads: bits={bits} must be 2 to 8.")


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


def _factor(factor: Any, dim: int) -> int:
    if dtype_name(factor) != "float32" or _strides(factor) != (dim, 1):
        _check("factor", factor, "float32", (dim, dim))
        raise ShapeError("heads: factor must be contiguous in C order.")
    if factor.shape != (dim, dim):
        _check("factor", factor, "float32", (dim, dim))
    return address(factor)


def _clip(clip: Any) -> int:
    if dtype_name(clip) != "float32" or clip.shape != (2,):
        _check("clip", clip, "float32", (2,))
    return address(clip)
