"""NVRTC, the run-time compiler of CUDA, through ctypes: found without torch, needs no device."""

import ctypes
import ctypes.util
import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tesseral._errors import BackendError

_WHEELS = ("cuda_nvrtc", "cu12", "cu13")
"""Folders of the package ``nvidia`` that wheels put the library in."""


class Compiler:
    """One NVRTC library.

    Parameters
    ----------
    library : str
        What the system's loader finds it by.
    """

    def __init__(self, library: str) -> None:
        self._lib = ctypes.CDLL(library)
        self._lib.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = (major.value, minor.value)
        self.architectures = self._find_architectures()

    def compile(
        self, source: str, headers: Mapping[str, str], options: Sequence[str], *, cubin: bool
    ) -> bytes:
        """Return machine code, or PTX text, of a program.

        Parameters
        ----------
        source : str
            CUDA C++.
        headers : mapping of str to str
            What it may include, by name.
        options : sequence of str
            Such as ``"-arch=sm_75"``.
        cubin : bool
            Whether to return machine code; it needs an ``sm_`` architecture.

        Raises
        ------
        BackendError
            If the program does not compile, with the compiler's log.
        """
        texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        program = ctypes.c_void_p()
        self._check(
            self._lib.nvrtcCreateProgram(
                ctypes.byref(program), source.encode(), b"kernel.cu", len(headers), texts, names
            )
        )
        try:
            given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if self._lib.nvrtcCompileProgram(program, len(options), given):
                log = (
                    self._read("nvrtcGetProgramLog", program).decode(errors="replace").rstrip("\0")
                )
                raise BackendError(
                    f"NVRTC {self.version[0]}.{self.version[1]}: {' '.join(options)}:\n{log}"
                )
            return self._read("nvrtcGetCUBIN" if cubin else "nvrtcGetPTX", program)
        finally:
            self._lib.nvrtcDestroyProgram(ctypes.byref(program))

    def _find_architectures(self) -> tuple[int, ...]:
        count = ctypes.c_int()
        self._check(self._lib.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        found = (ctypes.c_int * count.value)()
        self._check(self._lib.nvrtcGetSupportedArchs(found))
        return tuple(found)

    def _read(self, what: str, program: ctypes.c_void_p) -> bytes:
        """Return what ``nvrtcGet...`` writes after it said with ``...Size`` how long it is."""
        size = ctypes.c_size_t()
        self._check(getattr(self._lib, f"{what}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._lib, what)(program, text))
        return text.raw

    def _check(self, status: int) -> None:
        if status:
            said = self._lib.nvrtcGetErrorString(status).decode()
            raise BackendError(f"NVRTC: {said}")


@cache
def compilers() -> tuple[Compiler, ...]:
    """Return the NVRTC libraries of this environment and of the system, newest last."""
    found: dict[tuple[int, int], Compiler] = {}
    for library in _candidates():
        try:
            compiler = Compiler(library)
        except OSError:  # a name that the loader does not know
            continue
        found.setdefault(compiler.version, compiler)
    return tuple(found[version] for version in sorted(found))


def compiler_for(architecture: int) -> Compiler | None:
    """Return the newest compiler that makes code for an architecture such as 70, if any does."""
    fitting = [each for each in compilers() if architecture in each.architectures]
    return fitting[-1] if fitting else None


def _candidates() -> list[str]:
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    files = [
        file
        for folder in folders
        for wheel in _WHEELS
        for file in sorted((folder / wheel / "lib").glob("libnvrtc.so.*"))
        if "alt" not in file.name
    ]
    system = ctypes.util.find_library("nvrtc")
    return [*map(str, files), *([system] if system else []), "libnvrtc.so.12", "libnvrtc.so.13"]
