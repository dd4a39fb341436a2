"""Memory that is set aside now and taken from the system where it is written to."""

import mmap
from math import prod

import torch

_LAZY = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
"""How a map is asked for that is this process's alone and no file's; 0 where there is none."""


def reserve(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor | None:
    """Return an uninitialised array of which only what is written takes memory.

    The system gives a page, mostly 4 KiB, when it is written to first. So an array can have
    room for all that may ever come, and never has to move.

    Parameters
    ----------
    shape : tuple of int
        Its shape.
    like : tensor
        Gives type and device.

    Returns
    -------
    tensor or None
        ``None`` where this cannot be had: on accelerators, without private maps, for an array
        without elements, or if the system refuses so large a promise.
    """
    n_bytes = prod(shape) * like.element_size()
    if like.device.type != "cpu" or not _LAZY or n_bytes == 0:
        return None
    try:
        memory = mmap.mmap(-1, n_bytes, flags=_LAZY)
    except OSError:
        return None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # where huge pages are the rule, the first token would take 2 MiB of every head
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)
