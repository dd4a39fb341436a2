"""Kernels as programs: the macros of a variant."""

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tesseral.attention.backends.cuda.call import Call
from tesseral.attention.backends.cuda.chips import Chip, Tiles
from tesseral.runtime.cuda.program import Source, compile_for

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
    chip = variant.chip
    source = source_of(chip.name, kernel)
    return compile_for(chip.name, chip.architecture, architecture, source, variant.options())


def source_of(chip: str, kernel: str) -> Source:
    """Return the text of a kernel, and of the files that it includes."""
    folder = resources.files(__package__)
    main = folder / ("merge.cu" if kernel == "merge" else f"{chip}/attention.cu")
    headers = {
        "call.h": (folder / "call.h").read_text(encoding="utf-8"),
        "layout.h": (folder / chip / "layout.h").read_text(encoding="utf-8"),
    }
    return Source(text=main.read_text(encoding="utf-8"), headers=headers)
