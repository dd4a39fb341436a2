"""The Triton kernels compile for every architecture without a device, and keep to registers.

Run as a program, this file compiles what calls of each kernel would launch for one architecture
and prints what the machine code needs, as JSON: the interpreter and the compiler cannot share a
process.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.forked import run, run_script

LIMITS = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that a program may have, by architecture."""


class AbsentDevice:
    """Answers for a device of some compute capability that is not there."""

    def __init__(self, architecture):
        self.architecture = architecture

    def get_current_device(self):
        return 0

    def get_current_stream(self, _):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)


def compile_kernels(architecture):
    """Return, for each kernel that typical calls launch, what its machine code needs."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from tesseral.runtime.cuda import device

    compiled, run = [], JITFunction.run

    def only_compile(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.append((self.fn.__name__, kernel))
        return kernel

    driver.set_active(AbsentDevice(architecture))
    JITFunction.run = only_compile
    device.capability = lambda _: divmod(architecture, 10)
    device.multiprocessors = lambda: 132
    launch_everything()
    return [{"kernel": name, **needs(kernel)} for name, kernel in compiled]


def launch_everything():
    """Launch every kernel as models of common sizes would."""
    import torch

    from tesseral.quantization.kernels.problem import StoredWeight
    from tesseral.quantization.kernels.triton import products, rows

    clip = torch.ones(2)
    for sizes in ((64, 64), (112, 128), (32, None)):
        factors = [None if n is None else torch.eye(n) for n in sizes]
        width = sizes[0] * (sizes[1] or 128)
        ready = rows.prepare(width, factors, torch.float16)
        x = torch.empty(300, width, dtype=torch.bfloat16)
        rows.quantize_rows(x, ready, clip, 4)
        if sizes == (112, 128):
            rows.quantize_rows(x, ready, clip, 4, gate=x)
    launch_heads()
    codes = torch.zeros(4096, 2048, dtype=torch.uint8)
    weight = StoredWeight(codes, torch.ones(4096, 1), None, 4, 4096)
    weights = products.side_by_side([weight, weight])
    for m, multiply in ((1, products.one_row), (16, products.few_rows)):
        given = torch.zeros(m, 4096, dtype=torch.int8), torch.ones(m, 1)
        multiply(*given, weights, torch.bfloat16)
    given = torch.zeros(512, 4096, dtype=torch.int8), torch.ones(512, 1)
    products.many_rows(*given, weights, torch.bfloat16)
    products.widened(weights, floats=True)


def launch_heads():
    """Encode keys, and store new tokens of all heads."""
    import torch

    from tesseral.core.packed import PackedTensor
    from tesseral.quantization.kernels.heads import new_places
    from tesseral.quantization.kernels.triton import dequantize, heads

    x = torch.empty(1, 32, 1, 128, dtype=torch.bfloat16)
    clip, matrix = torch.ones(2), heads.prepare_matrix(torch.eye(128), torch.bfloat16)
    keys = x[:, :8].expand(1, 8, 64, 128)
    places = new_places(keys, 4)
    heads.encode_heads(keys, matrix, clip, 4, places)
    cache = PackedTensor(**places._asdict(), bits=4, length=128)
    dequantize.dequantize_heads(cache, torch.bfloat16)
    turn = torch.ones(1, 1, 128, dtype=torch.bfloat16)
    states = x.transpose(1, 2), x[:, :8].transpose(1, 2), x[:, :8].transpose(1, 2)
    place = torch.zeros(1, dtype=torch.int64)
    heads.rotate_and_encode(
        states, (turn, turn), (matrix, matrix), (clip, clip), (cache, cache), place
    )


def needs(kernel):
    """Return the stack and shared memory of compiled code, and which instructions it has."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(kernel.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [tool, "-res-usage", file]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    words = ("wgmma.mma_async", "cp.async.bulk.tensor", "cp.async.cg", "tcgen05.mma", "dp4a")
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": kernel.metadata.shared,
        **{word: kernel.asm["ptx"].count(word) for word in words},
    }


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("architecture", LIMITS)
def test_kernels_compile_without_a_device(architecture):
    (code,), (said,), (error,) = run(run_script, [(__file__, str(architecture))])
    assert code == 0, error[-2000:]
    kernels = json.loads(said)
    assert len({kernel["kernel"] for kernel in kernels}) == 8
    for kernel in kernels:
        name, products = kernel["kernel"], kernel["wgmma.mma_async"]
        assert kernel["shared"] <= LIMITS[architecture], name
        assert kernel["stack"] <= 64, name  # hardly anything spills
        if name == "one_row_kernel":
            assert kernel["dp4a"] > 0
        if architecture == 90 and name == "many_rows_kernel":
            assert products > 0
            assert kernel["cp.async.bulk.tensor"] > 0


if __name__ == "__main__":
    json.dump(compile_kernels(int(sys.argv[1])), sys.stdout)
