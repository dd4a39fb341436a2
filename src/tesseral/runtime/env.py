"""Every environment variable the package reads: name, meaning, default."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable."""

    name: str
    meaning: str
    default: str


VARIABLES = (
    Variable(
        "TESSERAL_CPU_TARGET",
        "instruction set of the native kernels: scalar, avx2, avx512, avx512_bf16; others raise",
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
        "TESSERAL_ATTENTION_BACKEND",
        "attention backend to use or fail",
        "the first that supports the call",
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
        "TESSERAL_HEADS_BACKEND",
        "backend that encodes keys and values on accelerators, to use or fail",
        "the first that supports the call",
    ),
)
