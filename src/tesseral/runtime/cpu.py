"""Instruction sets of this machine's CPU, the one the kernels use, its caches, its threads."""

import operator
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from tesseral import _native
from tesseral._errors import BackendError, ParameterError
from tesseral.runtime import env
from tesseral.runtime.registry import YES, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFeatures:
    """What CPUID and XGETBV say of this machine.

    Attributes
    ----------
    brand : str
        The name that the chip gives itself; empty where it cannot be asked.
    usable : tuple of str
        Instruction sets in the chip whose registers the operating system saves.
    unsaved : tuple of str
        Instruction sets in the chip whose registers the operating system does not save;
        using one would corrupt other programs' data, so none of our kernels does.
    """

    brand: str
    usable: tuple[str, ...]
    unsaved: tuple[str, ...]


@cache
def cpu_features() -> CpuFeatures:
    """Return the instruction sets of this machine's CPU that the kernels may care about."""
    rows = _native.cpu_features()
    return CpuFeatures(
        brand=" ".join(_native.cpu_brand().split()),
        usable=tuple(name for name, in_chip, saved in rows if in_chip and saved),
        unsaved=tuple(name for name, in_chip, saved in rows if in_chip and not saved),
    )


@cache
def target_verdicts() -> Mapping[str, Verdict]:
    """Return, for each target the kernels were built for, whether it can run here.

    The widest comes first. A target is a set of instruction sets, compiled together:
    ``"amx"``, ``"avx512_bf16"``, ``"avx512"``, ``"avx2"`` or ``"scalar"``.
    """
    features = cpu_features()
    return MappingProxyType(
        {name: _verdict(needs, features) for name, needs in _native.cpu_targets()}
    )


def _verdict(needs: list[str], features: CpuFeatures) -> Verdict:
    unsaved = [need for need in needs if need in features.unsaved]
    if unsaved:
        return Verdict(
            False, f"the operating system does not save the registers of {', '.join(unsaved)}"
        )
    lacking = [need for need in needs if need not in features.usable]
    return Verdict(False, f"the chip lacks {', '.join(lacking)}") if lacking else YES


def supported_targets() -> tuple[str, ...]:
    """Return the targets that can run here, the widest first."""
    return tuple(name for name, verdict in target_verdicts().items() if verdict.ok)


def cpu_target(name: str | None = None) -> str:
    """Return the target that the native kernels use.

    Parameters
    ----------
    name : str, optional
        The target to use or fail; ``None`` reads ``TESSERAL_CPU_TARGET`` and, where that is
        not set, takes the widest that can run here.

    Raises
    ------
    ParameterError
        If there is no target of that name.
    BackendError
        If this machine cannot run it.
    """
    where, asked = "target", name
    if name is None:
        where, asked = "TESSERAL_CPU_TARGET", env.read("TESSERAL_CPU_TARGET")
    verdicts = target_verdicts()
    if asked is None:
        return next(target for target, verdict in verdicts.items() if verdict.ok)
    if asked not in verdicts:
        raise ParameterError(f"{where}={asked!r} is unknown; there are {', '.join(verdicts)}.")
    if not verdicts[asked].ok:
        raise BackendError(
            f"{where}={asked!r} cannot run on this machine: {verdicts[asked].reason}; "
            f"it runs {', '.join(supported_targets())}."
        )
    return asked


def cpu_threads(count: int | None = None) -> int:
    """Return how many threads a native kernel may use, the calling one included.

    Parameters
    ----------
    count : int, optional
        The number to use; ``None`` reads ``TESSERAL_CPU_THREADS``, then ``OMP_NUM_THREADS``,
        and where neither is set takes the cores this process may run on.

    Raises
    ------
    ParameterError
        If the number given is not a positive integer.
    """
    if count is not None:
        return _positive("threads", count)
    for variable in ("TESSERAL_CPU_THREADS", "OMP_NUM_THREADS"):
        text = env.read(variable)
        if text:
            # OpenMP allows a list, one number for each level of nesting
            return _positive(variable, text.partition(",")[0])
    return available_cores()


def available_cores() -> int:
    """Return the number of logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSizes:
    """The data caches that a core of this machine reaches.

    Attributes
    ----------
    l1d, l2, l3 : int
        Bytes of the one cache of that level that a core uses; 0 where there is none.
    l1d_cores, l2_cores, l3_cores : int
        Logical cores that share that cache.
    source : str
        Who told: ``"sysfs"``, ``"sysconf"`` or ``"default"``; ``"sysconf"`` does not know who
        shares, so there each core is taken to own its L1 and L2, and all to share the L3.
    """

    l1d: int
    l2: int
    l3: int
    l1d_cores: int = 1
    l2_cores: int = 1
    l3_cores: int = 1
    source: str


DEFAULT_CACHES = CacheSizes(l1d=32 * 2**10, l2=256 * 2**10, l3=0, source="default")
"""What is taken where nothing tells: no more than server and desktop chips of ten years have."""

_SYSFS = Path("/sys/devices/system/cpu")
# the numbers that glibc gives _SC_LEVEL1_DCACHE_SIZE and its like, which Python has no names for;
# on x86 glibc answers from CPUID, also in sandboxes that show no sysfs
_SYSCONF = {"l1d": 188, "l2": 191, "l3": 194}


@cache
def cache_sizes() -> CacheSizes:
    """Return the caches of the first core that this process may run on.

    Linux tells them in sysfs, glibc by ``sysconf``; elsewhere they are :data:`DEFAULT_CACHES`.
    """
    return _sysfs_caches() or _sysconf_caches() or DEFAULT_CACHES


def _sysfs_caches() -> CacheSizes | None:
    found: dict[str, int] = {}
    for place in sorted(_SYSFS.glob(f"cpu{_first_core()}/cache/index*")):
        try:
            kind, level, size, sharing = (
                (place / name).read_text(encoding="ascii").strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
            name = f"l{level}d" if level == "1" else f"l{level}"
            if kind != "Instruction" and name in _SYSCONF:
                found |= {name: _sysfs_bytes(size), f"{name}_cores": _count_cores(sharing)}
        except (OSError, ValueError):  # some systems leave entries out
            continue
    if not (found.get("l1d") and found.get("l2")):
        return None
    return CacheSizes(**{"l3": 0} | found, source="sysfs")


def _sysconf_caches() -> CacheSizes | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        l1d, l2, l3 = (max(0, os.sysconf(number)) for number in _SYSCONF.values())
    except (ValueError, OSError):
        return None
    if not (l1d and l2):
        return None
    return CacheSizes(l1d=l1d, l2=l2, l3=l3, l3_cores=available_cores(), source="sysconf")


def _first_core() -> int:
    return min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def _sysfs_bytes(text: str) -> int:
    """Return the bytes of a size such as ``48K``."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text.rstrip("KMG")) * units.get(text[-1], 1)


def _count_cores(text: str) -> int:
    """Return how many cores a list such as ``0-3,8`` names."""
    ends = (part.split("-") for part in text.split(","))
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def _positive(where: str, value: int | str) -> int:
    try:
        number = int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise ParameterError(f"{where}={value!r} is not a number of threads; use 1 or more.")
    return number
