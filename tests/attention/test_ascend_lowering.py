"""What triton-ascend's front end makes of the kernels, in the environment of ``make venv-ascend``.

From the plan of a call to linalg: matrix products of the planned sizes, vector tiles that fit the
chip, and no loop over single numbers. No NPU has compiled or run it.
"""

import dataclasses
import json
import re
import subprocess
from math import prod
from pathlib import Path

import pytest

import tesseral
from tesseral.attention.backends.ascend.chip import ASCEND_910B2 as CHIP
from tesseral.attention.backends.ascend.plan import constants, padded, plan_rounds
from tesseral.attention.mask import make_band
from tesseral.attention.problem import AttentionProblem

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-ascend/bin/python"
KERNELS = Path(tesseral.__file__).parent / "attention/backends/ascend/kernels.py"
SIZES = {"i8": 1, "i32": 4, "f16": 2, "bf16": 2, "f32": 4, "i1": 1, "i64": 8}

pytestmark = pytest.mark.skipif(
    not (ROOT / ".venv-ascend/.ready").exists(), reason="needs `make venv-ascend`"
)

PROBLEM = AttentionProblem(
    batch=1, q_len=4096, kv_len=4096, q_heads=32, kv_heads=8, head_dim=128, value_dim=128,
    dtype="float16", device="npu:0", scale=0.1,
)  # fmt: skip
CALLS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": (1000, -1)},
    "bfloat16": {"dtype": "bfloat16", "causal": True},
    "float32": {"dtype": "float32", "causal": True},
    "narrow": {"head_dim": 64, "value_dim": 64, "causal": True},
    "uneven": {"head_dim": 80, "value_dim": 80, "kv_len": 4001, "causal": True},
    "wide": {"head_dim": 256, "value_dim": 256, "causal": True},
    "decode": {"q_len": 1, "kv_len": 131072},
}


def described(problem):
    """Return the kernel of a call as the lowering program takes it, and its plan."""
    plan = plan_rounds(problem, CHIP, CHIP.cube_cores)
    element = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}[problem.dtype]
    types = dict.fromkeys(("query", "key", "value", "output", "weight_space"), element)
    types |= dict.fromkeys(("lse", "score_space", "sum_space", "row_space"), "*fp32")
    types |= {"triangle": "*i8", "scale": "fp32"}
    if plan.parts > 1:
        types["output"] = "*fp32"
    band = make_band(problem.q_len, problem.kv_len, is_causal=problem.causal, window=problem.window)
    given = constants(problem, plan, band, problem.kv_len)
    return [str(KERNELS), "attention_rounds_kernel", types, given], plan


@pytest.fixture(scope="module")
def lowered():
    """Return the plan and the linalg of every call, and of the kernel that merges parts."""
    problems = {name: dataclasses.replace(PROBLEM, **call) for name, call in CALLS.items()}
    kernels = {name: described(problem) for name, problem in problems.items()}
    types = dict.fromkeys(("found", "logs", "lse"), "*fp32") | {"output": "*fp16"}
    merge = [str(KERNELS), "merge_parts_kernel", types, {"VALUE_DIM": 128, "DV_PAD": 128}]
    given = json.dumps([*(kernel for kernel, _ in kernels.values()), merge])
    command = [str(PYTHON), str(Path(__file__).with_name("lower_ascend.py"))]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *texts, merged = json.loads(done.stdout)
    plans = [plan for _, plan in kernels.values()]
    found = dict(zip(kernels, zip(problems.values(), plans, texts, strict=True), strict=True))
    return found, merged


@pytest.mark.parametrize("name", CALLS)
def test_matrix_products_are_basic_blocks(lowered, name):
    problem, plan, text = lowered[0][name]
    width, value_width = padded(problem.head_dim), padded(problem.value_dim)
    element = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}[problem.dtype]
    shape = r"tensor<(\d+)x(\d+)x(\w+)>"
    found = re.findall(rf"linalg.matmul .*ins\(.* : {shape}, {shape}\).*-> {shape}", text)
    rows, keys = str(plan.q_tile), str(plan.basic)
    scores = (rows, str(width), element, str(width), keys, element, rows, keys, "f32")
    values = (rows, keys, element, keys, str(value_width), element, rows, str(value_width), "f32")
    assert sorted(found) == sorted([scores, scores, values])
    assert 'mix_mode = "mix"' in text


@pytest.mark.parametrize("name", CALLS)
def test_vector_tiles_fit_the_memory_of_a_vector_core(lowered, name):
    _, plan, text = lowered[0][name]
    operations = re.findall(r"(?:math|arith)\.\w+ .*: tensor<([\dx]+)x(\w+)>", text)
    largest = max(prod(map(int, shape.split("x"))) * SIZES[kind] for shape, kind in operations)
    assert largest <= CHIP.ub // 4
    assert re.search(rf"math\.exp .*: tensor<{plan.vector_rows}x{plan.k_tile}xf32>", text)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_read_number_by_number_and_nothing_is_left_of_triton(lowered, name):
    text = lowered[0][name][2]
    for made in (text, lowered[1]):
        assert set(re.findall(r"\btt\.\w+", made)) == {"tt.tensor_kind"}
    assert "tensor.insert " not in text
    assert "tensor.extract " not in text


def test_only_rules_that_hold_are_compiled(lowered):
    reads_mask = {name: "memref<8x1024xi8" in text for name, (_, _, text) in lowered[0].items()}
    assert not reads_mask["full"]
    assert not reads_mask["decode"]
    assert reads_mask["causal"]
    assert reads_mask["window"]
