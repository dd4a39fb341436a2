"""What Triton can do on a device, asked without importing it."""

import importlib.util
from functools import cache
from importlib import metadata

from tesseral.runtime.cuda import device as cuda
from tesseral.runtime.registry import YES, Verdict

OLDEST = (8, 0)
"""The first compute capability with asynchronous copies, and signed bytes as Triton emits them."""


@cache
def installed(module: str = "triton") -> bool:
    """Return whether Triton, or another module, can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # an import hook may say so instead
        return False


@cache
def version() -> tuple[int, int]:
    """Return the first two numbers of Triton's version; large ones where nobody tells."""
    try:
        first, second, *_ = metadata.version("triton").split(".")
    except metadata.PackageNotFoundError:  # builds of other names
        return 99, 0
    return int(first), int(second)


def least_columns() -> int:
    """Return how many columns a product has at least: 8, as the instructions have, from 3.5 on."""
    return 8 if version() >= (3, 5) else 16


def interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter, in NumPy, on the CPU.

    It multiplies bfloat16 wrongly, and knows neither assembly nor measured tiles.
    """
    if not installed():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def ready(device: str) -> Verdict:
    """Return whether kernels can run on a device, such as ``"cuda:0"``, and why not."""
    if not (installed() and installed("torch")):
        return Verdict(False, "needs torch and Triton: pip install 'tesseral[triton]'")
    if device == "cpu":
        if interpreted():
            return YES
        return Verdict(False, "runs on CUDA devices, and on the CPU only with TRITON_INTERPRET=1")
    if not device.startswith("cuda"):
        return Verdict(False, f"runs on CUDA devices, not on {device}")
    found = cuda.capability(device)
    reason = ""
    if found is None:
        reason = "torch sees no CUDA device of NVIDIA"
    elif found < OLDEST:
        reason = "needs compute capability 8.0, {} has {}.{}".format(device, *found)
    return Verdict(not reason, reason)


def architecture(device: str) -> tuple[int, int]:
    """Return the compute capability to choose tiles for; the oldest for the interpreter."""
    return (cuda.capability(device) if device.startswith("cuda") else None) or OLDEST


def overlaps(device: str) -> bool:
    """Return whether a kernel may start on a device while the one before it still runs."""
    return architecture(device) >= (9, 0)
