"""Every environment variable the package reads: name, meaning, default."""

import os
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable."""

    name: str
    meaning: str
    default: str


VARIABLES = (
    Variable(
        "TESSERAL_CPU_TARGET",
        "instruction set of native kernels: scalar, avx2, avx512, avx512_bf16, amx; others raise",
        "the widest this machine supports",
    ),
    Variable(
        "TESSERAL_CPU_THREADS",
        "threads that a native kernel may use",
        "OMP_NUM_THREADS, else the cores this process may run on",
    ),
    Variable(
        "OMP_NUM_THREADS",
        "threads of torch and BLAS, and of native kernels too",
        "the cores this process may run on",
    ),
    Variable(
        "LOCAL_WORLD_SIZE",
        "ranks that torchrun started on this machine; they compute on CUDA if each has a device",
        "this one and those before it",
    ),
    Variable(
        "TESSERAL_ATTENTION_BACKEND",
        "attention backend to use or fail",
        "the first that supports the call",
    ),
    Variable(
        "TESSERAL_CACHE",
        "folder that compiled CUDA kernels are kept in",
        "~/.cache/tesseral",
    ),
    Variable(
        "TESSERAL_LINEAR_BACKEND",
        "backend of the 4-bit linear layers to use or fail",
        "the first that supports the call",
    ),
    Variable(
        "TESSERAL_ROWS_BACKEND",
        "backend that transforms and quantises the inputs of linear layers, to use or fail",
        "the first that supports the call",
    ),
    Variable(
        "TESSERAL_WEIGHT_ONLY_BACKEND",
        "backend of 4-bit layers whose inputs are not quantised, to use or fail",
        "the first that supports the call",
    ),
    Variable(
        "TESSERAL_HEADS_BACKEND",
        "backend that transforms heads and encodes keys and values, to use or fail",
        "the first that supports the call",
    ),
)


def read(name: str) -> str | None:
    """Return what an environment variable holds, or ``None`` if that is nothing.

    Where a variable is not set, ``os.environ.get`` takes 0.5 us to say so, since it encodes the
    name and catches an exception, and a call of attention on few keys, 20 us in all, asks five
    times. So the dictionary inside, which CPython has had since 3.2, is asked where it is there.
    """
    held: dict[Any, Any] | None = getattr(os.environ, "_data", None)
    if held is None:
        return os.environ.get(name) or None
    value = held.get(_key(name))
    return os.environ.decodevalue(value) if value else None


@cache
def _key(name: str) -> Any:
    return os.environ.encodekey(name)
