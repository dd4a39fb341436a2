"""Arrays as kernels take them, by address: checks of type, shape, device and memory order."""

from typing import Any

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core._arrays import dtype_name


def check_rows(name: str, array: Any, dtype: str, shape: tuple[int, ...], where: str) -> int:
    """Check an array whose last axis has neighbours; return the distance along its first."""
    if dtype_name(array) != dtype:
        raise DtypeError(f"{where}: {name} must be {dtype}, got {dtype_name(array)}.")
    if tuple(array.shape) != shape:
        raise ShapeError(f"{where}: {name} must have shape {shape}, got {tuple(array.shape)}.")
    if hasattr(array, "data_ptr"):
        on_cpu, steps = array.is_cpu, array.stride()
    else:
        on_cpu, steps = True, [stride // array.itemsize for stride in array.strides]
    if not on_cpu:
        raise ParameterError(f"{where}: {name} must be on the CPU, got device {array.device}.")
    distance = int(steps[0]) if shape[0] > 1 or len(shape) == 1 else shape[-1]
    if (shape[-1] > 1 and steps[-1] != 1) or (len(shape) > 1 and distance < shape[-1]):
        raise ShapeError(
            f"{where}: elements of a row of {name} must be neighbours, got shape {shape} "
            f"with steps {tuple(steps)}."
        )
    return distance


def check_dense(name: str, array: Any, dtype: str, m: int, n: int, where: str) -> None:
    """Check an array of ``m`` rows of ``n`` elements in C order, whatever the axes before."""
    if dtype_name(array) != dtype:
        raise DtypeError(f"{where}: {name} must be {dtype}, got {dtype_name(array)}.")
    if hasattr(array, "data_ptr"):
        on_cpu, dense, size = array.is_cpu, array.is_contiguous(), array.numel()
    else:
        on_cpu, dense, size = True, array.flags.c_contiguous, array.size
    if not on_cpu:
        raise ParameterError(f"{where}: {name} must be on the CPU, got device {array.device}.")
    if not dense or tuple(array.shape[-1:]) != (n,) or size != m * n:
        raise ShapeError(
            f"{where}: {name} must be {m} rows of {n} in C order, got {tuple(array.shape)}."
        )
