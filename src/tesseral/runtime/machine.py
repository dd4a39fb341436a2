"""The record of a machine that stands beside every number measured on it."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from tesseral import _native
from tesseral._errors import TesseralError
from tesseral.runtime.cpu import (
    CacheSizes,
    available_cores,
    cache_sizes,
    cpu_features,
    cpu_target,
    cpu_threads,
    supported_targets,
)

T = TypeVar("T")

PACKAGES = (
    "tesseral",
    "numpy",
    "scipy",
    "scikit-learn",
    "torch",
    "triton",
    "transformers",
)
"""Distributions whose versions decide speed or results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device beside the CPU.

    Attributes
    ----------
    name : str
        What the device calls itself.
    backend : str
        The platform that drives it with its version, such as ``"cuda 13.0"``.
    capability : str
        Compute capability, such as ``"9.0"``.
    memory_bytes : int
        Memory of the device.
    """

    name: str
    backend: str
    capability: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """What must be equal for two measurements to be comparable.

    Attributes
    ----------
    cpu, architecture : str
        Name of the chip and its instruction-set family.
    cores : int
        Logical cores that this process may run on.
    threads : int or None
        Threads that a native kernel uses; ``None`` where the environment asks for a number
        that is none, in which case every kernel raises.
    instruction_sets : tuple of str
        Extensions that chip and operating system offer together.
    targets : tuple of str
        Builds of the native kernels that can run here, the widest first.
    target : str or None
        The one in use; ``None`` where the environment asks for one that cannot run.
    compiler : str
        What compiled the native kernels.
    caches : CacheSizes
        Data caches that a core reaches.
    memory_bytes : int or None
        Main memory; ``None`` where the system does not tell.
    system, python : str
        Operating system and Python with their versions.
    packages : dict of str to str
        Versions of those :data:`PACKAGES` that are installed.
    accelerators : tuple of Accelerator
        Devices, where the caller asked for them.
    """

    cpu: str
    architecture: str
    cores: int
    threads: int | None
    instruction_sets: tuple[str, ...]
    targets: tuple[str, ...]
    target: str | None
    compiler: str
    caches: CacheSizes
    memory_bytes: int | None
    system: str
    python: str
    packages: dict[str, str]
    accelerators: tuple[Accelerator, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain values, ready for JSON."""
        return asdict(self)


def machine_record(*, with_accelerators: bool = False) -> MachineRecord:
    """Describe this machine and what runs on it.

    Parameters
    ----------
    with_accelerators : bool
        Also list the devices beside the CPU; see :func:`accelerators` for what that costs.
    """
    features = cpu_features()
    return MachineRecord(
        cpu=features.brand or platform.processor() or "unknown",
        architecture=platform.machine(),
        cores=available_cores(),
        threads=_unless_refused(cpu_threads),
        instruction_sets=features.usable,
        targets=supported_targets(),
        target=_unless_refused(cpu_target),
        compiler=_native.COMPILER,
        caches=cache_sizes(),
        memory_bytes=_memory_bytes(),
        system=platform.platform(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=_versions(PACKAGES),
        accelerators=accelerators() if with_accelerators else (),
    )


def accelerators() -> tuple[Accelerator, ...]:
    """Return the CUDA devices that torch sees; none if torch is not installed.

    Imports torch, which takes a second or two where nothing else has.
    """
    if "torch" not in sys.modules and not _versions(("torch",)):
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(
        Accelerator(
            name=device.name,
            backend=f"cuda {torch.version.cuda}"
            if torch.version.cuda
            else f"rocm {torch.version.hip}",
            capability=f"{device.major}.{device.minor}",
            memory_bytes=device.total_memory,
        )
        for device in devices
    )


def _unless_refused(ask: Callable[[], T]) -> T | None:
    """Return the answer, or ``None`` so that a wrong environment can still be described."""
    try:
        return ask()
    except TesseralError:
        return None


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the installed ones, read from their metadata without importing."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or it does not tell
        return None
