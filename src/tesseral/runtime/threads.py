"""The threads on which native kernels run: torch's own, where there are any."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

from tesseral import _native
from tesseral.runtime import env
from tesseral.runtime.cpu import cpu_threads


def threads_beside_torch() -> int:
    """Return how many threads a native kernel may use on torch's tensors.

    As many as torch uses, unless ``TESSERAL_CPU_THREADS`` says another number. The first call
    also lets the kernels run on torch's threads, if it has an OpenMP library that can be
    shared: those threads spin for a while after each operation of torch, and others would have
    to wait for a core.

    Raises
    ------
    ParameterError
        If ``TESSERAL_CPU_THREADS`` is not a positive integer.
    """
    torch = sys.modules["torch"]
    shared_openmp(torch)
    if env.read("TESSERAL_CPU_THREADS") is not None:
        return cpu_threads()
    return int(torch.get_num_threads())


@cache
def shared_openmp(torch: Any) -> str | None:
    """Let the kernels run on the threads of torch's OpenMP library; return its path, or None."""
    for path in openmp_libraries(Path(torch.__file__).parent):
        if _native.share_openmp(path):
            return path
    return None


def openmp_libraries(package: Path) -> list[str]:
    """Return the OpenMP libraries of this process that a package may use, its own first.

    Another's counts only where it is the only one, as in environments that have one for all.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    names = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines()}
    found = sorted(
        name for name in names if Path(name).name.startswith(("libgomp", "libiomp5", "libomp"))
    )
    own = [name for name in found if Path(name).is_relative_to(package)]
    return own or (found if len(found) == 1 else [])
