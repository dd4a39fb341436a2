"""Lower kernels through triton-ascend's front end: Triton, then TTIR, then linalg.

A program for an environment of its own, since triton-ascend is another ``triton``; it needs no NPU,
no CANN and no torch. Takes kernels as JSON, ``[[file, name, types, constants], ...]``, and prints
their linalg. The binary step, which needs the vendor's compiler, is not run.
"""

import importlib.util
import json
import subprocess
import sys

from triton._C.libtriton import ir
from triton.backends.ascend import compiler
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def load(path):
    """Return a module of kernels, which imports nothing but Triton."""
    spec = importlib.util.spec_from_file_location("kernels", path)
    sys.modules["kernels"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lower(path, name, types, constants):
    """Return the linalg of a kernel; ``types`` of arrays and numbers, int32 where none is given."""
    kernel = getattr(load(path), name)
    signature = {a: types.get(a, "i32") for a in kernel.arg_names if a not in constants}
    backend = compiler.AscendBackend(GPUTarget("npu", "Ascend910B2", 0))
    options = backend.parse_options({})
    context = ir.context()
    ir.load_dialects(context)
    source = ASTSource(fn=kernel, signature=signature, constants=constants)
    parts = (backend.get_codegen_implementation(), backend.get_module_map(), context)
    metadata = dict(options.__dict__)
    ttir = compiler.make_ttir(source.make_ir(options, *parts), metadata, options)
    try:
        return compiler.ttir_to_linalg(ttir, metadata, options, named_ops=True)
    except subprocess.CalledProcessError as failure:
        raise SystemExit(failure.stderr.decode()) from None


if __name__ == "__main__":
    json.dump([lower(*kernel) for kernel in json.load(sys.stdin)], sys.stdout)
