"""Instruction sets of this machine's CPU, the one the native kernels use, and how many threads."""

import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from tesseral import _native
from tesseral._errors import BackendError, ParameterError
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
    ``"avx512"``, ``"avx2"`` or ``"scalar"``.
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
        where, asked = "TESSERAL_CPU_TARGET", os.environ.get("TESSERAL_CPU_TARGET") or None
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
        text = os.environ.get(variable)
        if text:
            # OpenMP allows a list, one number for each level of nesting
            return _positive(variable, text.partition(",")[0])
    return available_cores()


def available_cores() -> int:
    """Return the number of logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _positive(where: str, value: int | str) -> int:
    try:
        number = int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise ParameterError(f"{where}={value!r} is not a number of threads; use 1 or more.")
    return number
