"""What there is on an NPU, asked without importing what is not needed."""

from functools import cache

from tesseral.attention.backends.ascend.chip import ASCEND_910B2
from tesseral.runtime.registry import YES, Verdict
from tesseral.runtime.triton import installed, interpreted


def ready(device: str) -> Verdict:
    """Return whether kernels can run on a device, such as ``"npu:0"``, and why not."""
    if device == "cpu":
        if interpreted():
            return YES
        return Verdict(False, "runs on Ascend NPUs, and on the CPU only with TRITON_INTERPRET=1")
    if not device.startswith("npu"):
        return Verdict(False, f"runs on Ascend NPUs, not on {device}")
    if not installed("torch_npu"):
        return Verdict(False, "needs torch_npu, which belongs to the CANN version of the machine")
    if not (installed("triton") and installed("triton.backends.ascend")):
        return Verdict(False, "needs Triton for NPUs: pip install triton-ascend")
    return YES


@cache
def cube_cores(device: str) -> int:
    """Return the number of cube cores of a device; 1 for the interpreter."""
    if device == "cpu":
        return 1
    import torch
    from triton.runtime import driver

    number = torch.device(device).index or 0
    found = driver.active.utils.get_device_properties(number)
    return int(found.get("num_aicore", ASCEND_910B2.cube_cores))
