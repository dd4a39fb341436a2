"""What Triton can do on a device, asked without importing it."""

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

from tesseral.runtime.registry import YES, Verdict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

OLDEST = (8, 0)
"""The first compute capability whose tensor cores multiply signed bytes as Triton emits it."""


@cache
def installed() -> bool:
    """Return whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, on the CPU; it knows no assembly."""
    if not installed():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def ready(device: str) -> Verdict:
    """Return whether kernels can run on a type of device, such as ``"cuda"``, and why not."""
    if not installed():
        return Verdict(False, "needs Triton: pip install 'tesseral[triton]'")
    if device == "cpu" and interpreted():
        return YES
    if device != "cuda":
        return Verdict(False, f"runs on CUDA devices, got device {device!r}")
    found = capability()
    if found is None:
        return Verdict(False, "torch sees no CUDA device of NVIDIA")
    if found < OLDEST:
        return Verdict(False, "needs compute capability 8.0, found {}.{}".format(*found))
    return YES


@cache
def capability() -> tuple[int, int] | None:
    """Return the compute capability of the current device, ``None`` without one of NVIDIA."""
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability()


@cache
def multiprocessors() -> int:
    """Return the number of multiprocessors of the current device; 1 without one."""
    import torch

    if capability() is None:
        return 1
    return int(torch.cuda.get_device_properties().multi_processor_count)


def overlaps() -> bool:
    """Return whether a kernel may start while the one before it still runs."""
    found = capability()
    return found is not None and found >= (9, 0)


def dependent() -> dict[str, Any]:
    """Return options of a launch that itself waits for the one before, where a device can."""
    return {"DEPENDENT": True, "launch_pdl": True} if overlaps() else {"DEPENDENT": False}


def has_wide_memory() -> bool:
    """Return whether a program may have 227 KiB of shared memory."""
    return capability() in ((9, 0), (10, 0), (10, 3))


def has_float8() -> bool:
    """Return whether tensor cores multiply float8."""
    found = capability()
    return found is not None and found >= (8, 9)


def on(device: "torch.device") -> AbstractContextManager[object]:
    """Return a context in which kernels are launched on a device."""
    import torch

    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def place_of(tensor: "Tensor") -> tuple[int, int]:
    """Return where a tensor lies and how often it was written to, to know it again."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
