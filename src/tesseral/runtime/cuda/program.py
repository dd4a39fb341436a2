"""Programs in CUDA C++: what they are compiled to for a device, once, and kept on disk."""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tesseral
from tesseral._errors import BackendError, OutputExistsError
from tesseral.runtime.cuda.nvrtc import Compiler, compilers
from tesseral.runtime.files import atomic_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A program, and the files that it includes by their names."""

    text: str
    headers: Mapping[str, str]


def target(oldest: int, architecture: int) -> tuple[Compiler, str] | None:
    """Return who compiles a kernel for a device, and to what; ``None`` if nobody can.

    Parameters
    ----------
    oldest : int
        What the kernel is written for, such as 75.
    architecture : int
        Of the device, at least that. The same gets machine code. Later ones get PTX of the
        oldest architecture that a compiler knows from ``oldest`` up, so that the driver finds
        no newer instructions in it.

    Returns
    -------
    Compiler, str
        The compiler and its ``-arch``.
    """
    if architecture == oldest:
        fitting = [c for c in compilers() if architecture in c.architectures]
        return (fitting[-1], f"sm_{architecture}") if fitting else None
    known = [
        (min(later), compiler)
        for compiler in compilers()
        if (later := [a for a in compiler.architectures if a >= oldest])
    ]
    if not known:
        return None
    first, compiler = min(known, key=lambda each: each[0])
    return compiler, f"compute_{first}"


def compile_for(
    name: str, oldest: int, architecture: int, source: Source, options: Sequence[str]
) -> bytes:
    """Return machine code or PTX of a program for a device, from disk where it was built before.

    Parameters
    ----------
    name : str
        Whose program it is, for messages.
    oldest, architecture : int
        As for :func:`target`.
    source : Source
    options : sequence of str
        Of the compiler, besides the architecture.

    Raises
    ------
    BackendError
        If there is no compiler for it, or the program does not compile.
    """
    found = target(oldest, architecture)
    if found is None:
        raise BackendError(f"{name}: no NVRTC compiles for {architecture / 10}.")
    compiler, arch = found
    options = [f"-arch={arch}", *options]
    kept = _folder() / f"{_key(compiler, source, options)}.bin"
    with contextlib.suppress(OSError):
        return kept.read_bytes()
    code = compiler.compile(source.text, source.headers, options, cubin=arch.startswith("sm_"))
    # a folder that cannot be written, or another process that was first, costs nobody the result
    with contextlib.suppress(OSError, OutputExistsError), atomic_file(kept) as file:
        file.write_bytes(code)
    return code


def _folder() -> Path:
    return Path(os.environ.get("TESSERAL_CACHE") or Path.home() / ".cache" / "tesseral")


def _key(compiler: Compiler, source: Source, options: Sequence[str]) -> str:
    """Return a name for the result of a compilation, from all that it depends on."""
    texts = source.text, *source.headers.values()
    parts = [tesseral.__version__, *map(str, compiler.version), *texts, *options]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
