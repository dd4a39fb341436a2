"""What the kernels ask of the current CUDA device."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from tesseral.runtime.cuda import device as cuda
from tesseral.runtime.triton import overlaps

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def dependent() -> dict[str, Any]:
    """Return options of a launch that itself waits for the one before, where a device can."""
    return {"DEPENDENT": True, "launch_pdl": True} if overlaps("cuda") else {"DEPENDENT": False}


def has_wide_memory() -> bool:
    """Return whether a program may have 227 KiB of shared memory."""
    return cuda.capability("cuda") in ((9, 0), (10, 0), (10, 3))


def has_float8() -> bool:
    """Return whether tensor cores multiply float8."""
    found = cuda.capability("cuda")
    return found is not None and found >= (8, 9)


def on(device: "torch.device") -> AbstractContextManager[object]:
    """Return a context in which kernels are launched on a device."""
    import torch

    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def place_of(tensor: "Tensor") -> tuple[int, int]:
    """Return where a tensor lies and how often it was written to, to know it again."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
