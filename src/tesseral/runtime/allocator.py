"""What the C library keeps of memory that was freed."""

import ctypes
from contextlib import suppress
from functools import cache

_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
_LARGE = 8 * 2**20


@cache
def return_large_blocks() -> None:
    """Let blocks of 8 MiB and more go back to the system once they are freed, in this process.

    Otherwise glibc keeps blocks of up to 32 MiB, and of the activations of a long prompt it keeps
    several times what is in use. It is a setting of the whole process, so the commands make it and
    the library does not: call this, or set ``MALLOC_MMAP_THRESHOLD_=8388608``. Elsewhere than with
    glibc nothing happens.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
