"""Kernels as programs: the macros of a variant, compiled once and kept on disk."""

import contextlib
import ctypes
import hashlib
import os
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import tesseral
from tesseral._errors import BackendError, OutputExistsError
from tesseral.attention.backends.cuda.call import Call
from tesseral.attention.backends.cuda.chips import Chip, Tiles
from tesseral.attention.backends.cuda.nvrtc import Compiler, compilers
from tesseral.runtime.files import atomic_file

MASKS = {"none": 0, "boolean": 1, "float16": 2, "float32": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """All that is known of a kernel when it is compiled.

    Attributes
    ----------
    chip : Chip
    tiles : Tiles
    head_dim, value_dim : int
        Columns that a row has in memory.
    mask : {"none", "boolean", "float16", "float32"}
        Kind of the dense mask.
    general : bool
        Whether scores take more than a positive factor.
    softcap, alibi : bool
        What they take.
    packed, paged : bool
        Whether sequences follow one another, and whether keys lie in pools.
    parts : bool
        Whether results are parts that are merged afterwards.
    """

    chip: Chip
    tiles: Tiles
    head_dim: int
    value_dim: int
    mask: str = "none"
    general: bool = False
    softcap: bool = False
    alibi: bool = False
    packed: bool = False
    paged: bool = False
    parts: bool = False

    def options(self) -> list[str]:
        """Return the macros, as options of the compiler."""
        tiles = self.tiles
        macros = {
            "HEAD_DIM": self.head_dim,
            "VALUE_DIM": self.value_dim,
            "CHUNKS": tiles.width // 8,
            "WARPS": tiles.warps,
            "THREADS": 32 * tiles.warps,
            "KEYS": tiles.keys,
            "BLOCKS": tiles.blocks,
            "SQUARES": tiles.squares,
            "BUFFERS": tiles.buffers,
            "HALF_SCORES": self.chip.half_scores,
            "MASK": MASKS[self.mask],
            "GENERAL": self.general,
            "SOFTCAP": self.softcap,
            "ALIBI": self.alibi,
            "PACKED": self.packed,
            "PAGED": self.paged,
            "PARTS": self.parts,
            "CALL_BYTES": ctypes.sizeof(Call),
        }
        return ["-std=c++17", *(f"-D{name}={int(value)}" for name, value in macros.items())]


def target(chip: Chip, architecture: int) -> tuple[Compiler, str] | None:
    """Return who compiles a chip's kernels for a device, and to what; ``None`` if nobody can.

    Parameters
    ----------
    chip : Chip
        What the kernels are written for.
    architecture : int
        Of the device, such as 75, at least that of the chip. A chip's own devices get machine
        code. Later ones get PTX of the oldest architecture that the compiler knows from the
        chip's up, so that the driver finds no newer instructions in it.

    Returns
    -------
    Compiler, str
        The compiler and its ``-arch``.
    """
    for compiler in reversed(compilers()):
        if architecture == chip.architecture and architecture in compiler.architectures:
            return compiler, f"sm_{architecture}"
    if architecture == chip.architecture:
        return None
    oldest = [
        (min(fitting), compiler)
        for compiler in compilers()
        if (fitting := [a for a in compiler.architectures if a >= chip.architecture])
    ]
    if not oldest:
        return None
    first, compiler = min(oldest, key=lambda each: each[0])
    return compiler, f"compute_{first}"


@cache
def build(variant: Variant, architecture: int, kernel: str) -> bytes:
    """Return machine code or PTX of a kernel for a device, from disk where it was built before.

    Parameters
    ----------
    variant : Variant
    architecture : int
        Of the device.
    kernel : {"attention", "merge"}

    Raises
    ------
    BackendError
        If there is no compiler for it, or the program does not compile.
    """
    found = target(variant.chip, architecture)
    if found is None:
        raise BackendError(f"{variant.chip.name}: no NVRTC compiles for {architecture / 10}.")
    compiler, arch = found
    source, headers = _sources(variant.chip.name, kernel)
    options = [f"-arch={arch}", *variant.options()]
    kept = _folder() / f"{_key(compiler, source, headers, options)}.bin"
    with contextlib.suppress(OSError):
        return kept.read_bytes()
    code = compiler.compile(source, headers, options, cubin=arch.startswith("sm_"))
    # a folder that cannot be written, or another process that was first, costs nobody the result
    with contextlib.suppress(OSError, OutputExistsError), atomic_file(kept) as file:
        file.write_bytes(code)
    return code


def _folder() -> Path:
    return Path(os.environ.get("TESSERAL_CACHE") or Path.home() / ".cache" / "tesseral")


def _key(compiler: Compiler, source: str, headers: dict[str, str], options: list[str]) -> str:
    """Return a name for the result of a compilation, from all that it depends on."""
    parts = [tesseral.__version__, *map(str, compiler.version), source, *headers.values(), *options]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _sources(chip: str, kernel: str) -> tuple[str, dict[str, str]]:
    """Return the text of a kernel, and of the files that it includes by their names."""
    folder = resources.files(__package__)
    main = folder / ("merge.cu" if kernel == "merge" else f"{chip}/attention.cu")
    headers = {
        "call.h": (folder / "call.h").read_text(encoding="utf-8"),
        "layout.h": (folder / chip / "layout.h").read_text(encoding="utf-8"),
    }
    return main.read_text(encoding="utf-8"), headers
