"""The CUDA driver through ctypes: kernels loaded and launched on the streams of torch."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tesseral._errors import BackendError

_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel on one device."""

    function: int
    context: int
    shared_bytes: int

    def launch(
        self, grid: tuple[int, int, int], threads: int, stream: int, arguments: Sequence[Any]
    ) -> None:
        """Put a launch on a stream; ``arguments`` are objects of ctypes, as the kernel has them."""
        addresses = (ctypes.c_void_p * len(arguments))(
            *(ctypes.addressof(argument) for argument in arguments)
        )
        _call("cuCtxPushCurrent_v2", ctypes.c_void_p(self.context))
        try:
            _call(
                "cuLaunchKernel", ctypes.c_void_p(self.function), *grid, threads, 1, 1,
                self.shared_bytes, ctypes.c_void_p(stream), addresses, None,
            )  # fmt: skip
        finally:
            _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


def load(code: bytes, name: str, device: int, shared_bytes: int) -> Kernel:
    """Return a kernel of machine code or PTX on a device, for as long as the process runs.

    Raises
    ------
    BackendError
        If the driver refuses it.
    """
    context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _call("cuCtxPushCurrent_v2", context)
    try:
        _call("cuModuleLoadData", ctypes.byref(module), code)
        _call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        _call("cuFuncSetAttribute", function, _DYNAMIC_SHARED, shared_bytes)
    finally:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    return Kernel(function.value or 0, context.value or 0, shared_bytes)


@cache
def _driver() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    library.cuInit(0)
    return library


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_driver(), name)(*arguments)
    if status:
        said = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(said))
        words = (said.value or b"unknown error").decode()
        raise BackendError(f"CUDA driver: {name}: {words} ({status})")
