"""Arrays of any framework through one namespace.

NumPy, torch and CuPy arrays come in and the same kind goes out. The framework is found
from the arrays themselves, so none is ever imported here.
"""

from functools import cache
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from tesseral._errors import DtypeError

Array: TypeAlias = Any
"""An array of any framework that follows the array API standard."""

Namespace: TypeAlias = Any
"""The module that holds the array functions of one framework."""


def array_namespace(where: str, *arrays: Array | None) -> Namespace:
    """Return the array functions that fit ``arrays``; ``None`` among them is passed over.

    Parameters
    ----------
    where : str
        Name of the calling function; starts the message.
    *arrays : array or None
        At least one array; all of the same framework.

    Raises
    ------
    DtypeError
        If something is not an array, or if two frameworks meet.
    """
    given = [array for array in arrays if array is not None]
    for array in given or [None]:
        if not array_api_compat.is_array_api_obj(array):
            raise DtypeError(
                f"{where}: needs arrays (NumPy, torch or another of the array API), "
                f"got {type(array).__name__}."
            )
    try:
        return array_api_compat.array_namespace(*given)
    except TypeError:
        kinds = sorted({type(array).__module__.partition(".")[0] for array in given})
        raise DtypeError(
            f"{where}: all arrays must come from one framework, got {' and '.join(kinds)}."
        ) from None


@cache
def type_name(dtype: Any) -> str:
    """Return the name of a type without its framework, such as ``"float32"``."""
    return str(dtype).rpartition(".")[2]


def dtype_name(array: Array) -> str:
    """Return the name of an array's type; see :func:`type_name`."""
    return type_name(array.dtype)


def address(array: Array) -> int:
    """Return where the first number of a NumPy array or torch tensor lies."""
    try:
        return array.data_ptr()  # type: ignore[no-any-return]
    except AttributeError:
        return int(array.ctypes.data)


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """Return the values of ``array`` as a NumPy array on the host, cut off from autograd."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):  # torch refuses to export a tensor that is being recorded
        array = array.detach()
        if array.device.type == "cpu":
            return np.asarray(array)
    return np.asarray(array_api_compat.to_device(array, "cpu"))


def like(array: Array, reference: Array, *, dtype: Any = None) -> Array:
    """Return NumPy values in the framework and on the device of ``reference``.

    ``dtype`` is one of the reference's framework; ``None`` means that of ``reference``.
    """
    xp = array_api_compat.array_namespace(reference)
    device = array_api_compat.device(reference)
    return xp.asarray(array, dtype=dtype or reference.dtype, device=device)


def to_float(array: Array) -> float:
    """Return a zero-dimensional array as a Python number."""
    return float(to_numpy(array))


def check_floating(where: str, array: Array) -> None:
    """Raise ``DtypeError`` unless ``array`` holds real floating-point numbers."""
    xp = array_namespace(where, array)
    if not xp.isdtype(array.dtype, "real floating"):
        raise DtypeError(f"{where}: needs a real floating-point array, got {array.dtype}.")
