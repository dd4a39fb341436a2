"""The integer linear layer: int8 activations times packed 4-bit weights, exact in int32."""

from typing import Any

import array_api_compat
import numpy as np

from tesseral import _native
from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core.packing import packed_length
from tesseral.runtime.cpu import cpu_target, cpu_threads

_DLPACK_CPU = 1


def linear_int4(
    activations: Any,
    weight: Any,
    *,
    out: Any = None,
    threads: int | None = None,
    target: str | None = None,
) -> Any:
    """Multiply int8 activations with the transpose of a packed 4-bit weight.

    ``out[i, j] = sum_t activations[i, t] * code(weight)[j, t]``, exact for every int8 and
    every 4-bit value. Nothing is copied; the weight is unpacked piece by piece in cache.

    Parameters
    ----------
    activations : int8 array of shape (m, k)
        In C order, on the CPU; ``1 <= k <= 2^20``. NumPy, torch, or anything that exports DLPack.
    weight : uint8 array of shape (n, ceil(k / 2))
        Signed 4-bit codes in the layout of :mod:`tesseral.core.packing`, in C order; the last
        nibble of a row of odd length is ignored.
    out : int32 array of shape (m, n), optional
        Written and returned. By default a new array of the framework of ``activations``.
    threads : int, optional
        Threads to use at most; see :func:`tesseral.runtime.cpu.cpu_threads`. A small product
        uses one.
    target : str, optional
        Instruction set to use or fail; see :func:`tesseral.runtime.cpu.cpu_target`.

    Returns
    -------
    int32 array of shape (m, n)
        The same whatever the threads and the target.

    Raises
    ------
    DtypeError, ShapeError, ParameterError
        If types, shapes, memory order or device do not fit, or the number of threads or the
        target's name is none.
    BackendError
        If this machine cannot run the target.

    Examples
    --------
    >>> import numpy as np
    >>> from tesseral.core.packing import pack
    >>> codes = np.array([[1, -8, 7], [0, 2, 0]], dtype=np.int8)
    >>> linear_int4(np.array([[1, 2, 3]], dtype=np.int8), pack(codes, bits=4))
    array([[6, 4]], dtype=int32)
    """
    rows = _matrix("activations", activations, np.int8)
    packed = _matrix("weight", weight, np.uint8)
    (m, k), (n, n_bytes) = rows.shape, packed.shape
    if not 1 <= k <= _native.LINEAR_INT4_MAX_K:
        raise ShapeError(
            f"linear_int4: activations of shape {(m, k)} must have 1 to "
            f"{_native.LINEAR_INT4_MAX_K} columns; a longer sum may not fit int32."
        )
    if n_bytes != packed_length(k, bits=4):
        raise ShapeError(
            f"linear_int4: weight of shape {(n, n_bytes)} does not fit activations of shape "
            f"{(m, k)}; {k} codes take {packed_length(k, bits=4)} bytes a row."
        )
    if out is None:
        out = _empty_like(activations, (m, n))
    elif _matrix("out", out, np.int32).shape != (m, n):
        raise ShapeError(f"linear_int4: out has shape {tuple(out.shape)}, needs {(m, n)}.")
    _native.linear_int4(rows, packed, out, cpu_threads(threads), cpu_target(target))
    return out


def _matrix(name: str, array: Any, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    """View a matrix as NumPy without copying, or say what is wrong with it."""
    if not hasattr(array, "__dlpack__"):
        raise DtypeError(f"linear_int4: {name} must be an array, got {type(array).__name__}.")
    device = array.__dlpack_device__()
    if device[0] != _DLPACK_CPU:
        raise ParameterError(f"linear_int4: {name} must be on the CPU, got DLPack device {device}.")
    view = array if isinstance(array, np.ndarray) else np.from_dlpack(array)
    if view.dtype != dtype:
        raise DtypeError(f"linear_int4: {name} must be {np.dtype(dtype)}, got {view.dtype}.")
    if view.ndim != 2:
        raise ShapeError(f"linear_int4: {name} must be a matrix, got shape {view.shape}.")
    if not view.flags.c_contiguous:
        raise ShapeError(
            f"linear_int4: {name} of shape {view.shape} must be contiguous in C order, got "
            f"strides {view.strides} in bytes; copy it first."
        )
    return view


def _empty_like(activations: Any, shape: tuple[int, int]) -> Any:
    xp = array_api_compat.array_namespace(activations)
    return xp.empty(shape, dtype=xp.int32)
