"""What torch says of CUDA devices; it is imported when asked."""

from functools import cache


@cache
def capability(device: str = "cuda") -> tuple[int, int] | None:
    """Return the compute capability of a device, ``None`` where torch sees no NVIDIA device.

    Parameters
    ----------
    device : str
        Such as ``"cuda:1"``; without a number it is the current one, at the first call.
    """
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


@cache
def multiprocessors(device: str = "cuda") -> int:
    """Return the number of multiprocessors of a device; 1 for the CPU, or without a device."""
    import torch

    if not device.startswith("cuda") or capability(device) is None:
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
