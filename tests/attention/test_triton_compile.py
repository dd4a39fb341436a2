"""The Triton kernels compile for every architecture without a device, and keep to registers.

Run as a program, this file compiles what one call of each kernel would launch for one architecture
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
    import torch
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from tesseral.attention.backends.triton import gradients, launch, rows, tuning
    from tesseral.attention.backends.triton.backend import TritonBackend, TritonPlan
    from tesseral.attention.backward import Forward, Gradients
    from tesseral.attention.problem import AttentionArrays, state_problem

    compiled, run = [], JITFunction.run

    def only_compile(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.append((self.fn.__name__, kernel))
        return kernel

    driver.set_active(AbsentDevice(architecture))
    JITFunction.run = only_compile
    rows.interpreted, rows.overlaps = lambda: False, lambda _: architecture >= 90
    chip = divmod(architecture, 10)
    query, key, value = (torch.empty(1, 4, 512, 128, dtype=torch.float16) for _ in range(3))
    for kernel, length, rules in (
        ("tiles", 512, {}),
        ("tiles", 512, {"is_causal": True}),
        ("tiles", 512, {"is_causal": True, "softcap": 5.0}),
        ("rows", 1, {"is_causal": True}),
    ):
        arrays = AttentionArrays(query=query[:, :, :length], key=key, value=value)
        given = {"is_causal": False, "scale": None, "window": None, "softcap": None, **rules}
        problem = state_problem(arrays, **given)
        config = tuning.choose_tiles(problem, kernel, chip)
        plan = TritonPlan(
            batch_tile=1, head_tile=1, q_tile=1, k_tile=1, workspace_bytes=0, kernel=kernel,
            config=config, splits=2,
        )  # fmt: skip
        TritonBackend().forward(problem, arrays, plan)
    whole = AttentionArrays(query=query, key=key, value=value)
    rules = {"is_causal": True, "scale": None, "window": None, "softcap": None}
    problem = state_problem(whole, **rules)
    results = launch._allocate(query, 128)
    empty = (torch.empty_like(array) for array in (query, key, value))
    into = Gradients(
        **dict(zip(("query", "key", "value"), empty, strict=True)),
        mask=None, sinks=None, alibi_slopes=None,
    )  # fmt: skip
    given = Forward(
        query=query, key=key, value=value, mask=None, sinks=None, alibi_slopes=None,
        output=results[0], lse=results[1],
    )  # fmt: skip
    config = tuning.choose_tiles(problem, "gradients", chip)
    gradients.run_gradients(problem, given, query, None, into, config)
    return [{"kernel": name, **needs(kernel)} for name, kernel in compiled]


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
    words = ("wgmma.mma_async", "cp.async.bulk.tensor", "cp.async.cg", "tcgen05.mma")
    return {
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
    assert len({kernel["kernel"] for kernel in kernels}) == 6
    for kernel in kernels:
        assert kernel["shared"] <= LIMITS[architecture]
        if kernel["kernel"].startswith("attention_forward"):
            assert kernel["stack"] == 0  # nothing spills
            if architecture == 90:
                assert kernel["wgmma.mma_async"] > 0
                assert kernel["cp.async.bulk.tensor"] > 0
            elif architecture < 90:
                assert kernel["cp.async.cg"] > 0


if __name__ == "__main__":
    json.dump(compile_kernels(int(sys.argv[1])), sys.stdout)
