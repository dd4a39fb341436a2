"""The kernel as a program: the macros of a variant."""

from dataclasses import dataclass
from functools import cache
from importlib import resources

from tesseral.runtime.cuda.program import Source, compile_for

OUTPUTS = {"int32": 0, "float32": 1, "float16": 2, "bfloat16": 3}

STEP = 128
"""Columns of a tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """All that is known of a kernel when it is compiled.

    Attributes
    ----------
    chip : {75, 80}
        Whose instructions it has, Turing's or those of Ampere and later.
    codes : {4, 8}
        Bits of a row's codes in the product.
    output : str
        Type of the result; int32 for the sums themselves.
    few : bool
        Whether tiles have 16 rows instead of 128.
    """

    chip: int
    codes: int
    output: str
    few: bool = False

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return 16 if self.few else 128

    @property
    def columns(self) -> int:
        """Outputs of a tile."""
        return 128

    @property
    def warps(self) -> tuple[int, int]:
        """How a block's warps share rows and outputs."""
        return (1, 8) if self.few else (2, 4)

    @property
    def stages(self) -> int:
        """Tiles on their way at once."""
        return 2 if self.chip < 80 else 4 if self.few else 3

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self.stages * (self.rows * STEP * self.codes // 8 + self.columns * STEP // 2)

    def options(self) -> list[str]:
        """Return the macros, as options of the compiler."""
        macros = {
            "ARCH": self.chip,
            "CODES": self.codes,
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "WARPS_M": self.warps[0],
            "WARPS_N": self.warps[1],
            "STAGES": self.stages,
            "OUTPUT": OUTPUTS[self.output],
        }
        return ["-std=c++17", *(f"-D{name}={value}" for name, value in macros.items())]


@cache
def build(variant: Variant, architecture: int) -> bytes:
    """Return machine code or PTX of the kernels for a device, from disk where it was built before.

    Raises
    ------
    BackendError
        If there is no compiler for it, or the program does not compile.
    """
    return compile_for("linear", variant.chip, architecture, source_of(), variant.options())


def source_of() -> Source:
    """Return the text of the kernels, and of the file that they include."""
    folder = resources.files(__package__)
    return Source(
        text=(folder / "linear.cu").read_text(encoding="utf-8"),
        headers={"fragments.h": (folder / "fragments.h").read_text(encoding="utf-8")},
    )
