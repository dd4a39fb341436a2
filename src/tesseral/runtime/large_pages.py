"""Memory in large pages, and giving back what was read of a file."""

import ctypes
import mmap
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

LARGE_PAGE = 2**21
"""Bytes of a large page of x86 and, with pages of 4 KiB, of ARM."""

_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
_LARGE = getattr(mmap, "MADV_HUGEPAGE", None)
_DROP = getattr(mmap, "MADV_DONTNEED", None)
_SAFETENSORS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw?-p \S+ \S+ [1-9]\d*\s+\S.*\.safetensors$")


def new_map(n_bytes: int) -> mmap.mmap | None:
    """Return zeroed memory of at least so many bytes, in large pages where the system gives them.

    The first whole page begins at an address of the system's choice, so what is to lie in large
    pages alone needs :data:`LARGE_PAGE` bytes more. ``None`` where there is no such memory.
    """
    if _LARGE is None or not _PRIVATE or n_bytes < 1:
        return None
    try:
        memory = mmap.mmap(-1, n_bytes, flags=_PRIVATE)
        memory.madvise(_LARGE)
    except OSError:
        return None
    return memory


def mapped_weights() -> list[tuple[int, int]]:
    """Return the address ranges of this process that are private maps of safetensors files."""
    maps = Path("/proc/self/maps")
    with suppress(OSError):
        found = map(_SAFETENSORS.match, maps.read_text(encoding="utf-8").splitlines())
        return [(int(match[1], 16), int(match[2], 16)) for match in found if match]
    return []


def drop_mapped(begin: int, end: int, ranges: list[tuple[int, int]]) -> None:
    """Let the system take back whole pages of a file in ``[begin, end)``; they can be read again.

    Only what lies in one of ``ranges``, as of :func:`mapped_weights`. What was written there is
    lost.
    """
    library = _libc()
    page = mmap.PAGESIZE
    begin, end = -(-begin // page) * page, end // page * page
    if library is None or _DROP is None or end <= begin:
        return
    if any(low <= begin and end <= high for low, high in ranges):
        library.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DROP)


@cache
def _libc() -> Any:
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.madvise  # noqa: B018  # not everywhere
        return library
    return None
