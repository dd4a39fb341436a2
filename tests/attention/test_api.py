import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from attention.cases import make_inputs, oracle, skip_refusals
from tesseral import _errors
from tesseral.attention import attention, explain
from tesseral.attention.backends.blockwise import BlockwiseBackend
from tesseral.attention.backends.native import NativeBackend
from tesseral.attention.backends.reference import ReferenceBackend
from tesseral.attention.registry import BACKENDS
from tesseral.attention.tiling import BlockCount
from tesseral.runtime.cpu import cpu_target, cpu_threads

OPTIONS = {
    "is_causal": True,
    "scale": 0.3,
    "window": (25, -1),
    "softcap": 5.0,
    "sinks": np.arange(4.0),
    "alibi_slopes": np.linspace(0.1, 0.4, 4),
    "mask": np.arange(45) % 5 != 0,
}


@pytest.fixture(autouse=True)
def no_forced_backend(monkeypatch):
    monkeypatch.delenv("TESSERAL_ATTENTION_BACKEND", raising=False)


@pytest.mark.parametrize("backend", [None, *BACKENDS.names])
@pytest.mark.parametrize("option", [None, *OPTIONS, "all"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_argument_reaches_every_backend(backend, option, dtype):
    inputs = [array.astype(dtype) for array in make_inputs(30, 45)]
    options = {None: {}, "all": OPTIONS}.get(option) or {
        n: OPTIONS[n] for n in OPTIONS if n == option
    }
    expected, expected_lse = oracle(*inputs, **options)
    with skip_refusals():
        output, lse = attention(*inputs, **options, return_lse=True, backend=backend)
    precision = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(output, expected, rtol=precision, atol=precision)
    np.testing.assert_allclose(lse, expected_lse, rtol=precision)
    np.testing.assert_array_equal(attention(*inputs, **options, backend=backend), output)
    if options:
        assert not np.allclose(output, oracle(*inputs)[0])


def test_a_mask_and_causality_both_hold():
    query, key, value = make_inputs(12, 12)
    mask = np.arange(12) % 3 != 1
    got = attention(query, key, value, mask=mask, is_causal=True)
    both = np.tri(12, dtype=bool) & mask
    np.testing.assert_allclose(got, attention(query, key, value, mask=both), rtol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("framework", [np, torch], ids=["numpy", "torch"])
def test_the_same_kind_of_array_comes_out(backend, dtype, framework):
    inputs = [framework.asarray(array.astype(dtype)) for array in make_inputs(5, 7)]
    with skip_refusals():
        output, lse = attention(*inputs, return_lse=True, backend=backend)
    assert type(output) is type(lse) is type(inputs[0])
    assert output.dtype == inputs[0].dtype
    assert lse.dtype == (framework.float64 if dtype == "float64" else framework.float32)


def test_the_best_backend_is_the_default():
    problem = explain(*make_inputs(5, 7)).problem
    assert isinstance(BACKENDS.choose(problem), BlockwiseBackend)


def test_a_backend_is_chosen_by_name_or_by_environment(monkeypatch):
    inputs = make_inputs(5, 7)
    assert explain(*inputs, backend="reference").backend == "reference"
    monkeypatch.setenv("TESSERAL_ATTENTION_BACKEND", "reference")
    assert explain(*inputs).backend == "reference"
    called = []
    forward = ReferenceBackend.forward
    monkeypatch.setattr(
        ReferenceBackend, "forward", lambda *arguments: called.append(1) or forward(*arguments)
    )
    attention(*inputs)
    assert called == [1]


def test_an_unknown_backend_is_refused_with_the_names_there_are():
    with pytest.raises(
        _errors.BackendError, match="no backend 'fast'; there are native, triton, turing, vol"
    ):
        attention(*make_inputs(5, 7), backend="fast")


def test_explain_takes_the_arguments_of_attention():
    theirs, ours = (inspect.signature(function).parameters for function in (attention, explain))
    assert list(theirs.values()) == list(ours.values())


def test_explain_says_what_would_run_and_runs_nothing(monkeypatch):
    monkeypatch.setattr(BlockwiseBackend, "forward", None)
    arrays = [np.zeros((1, 8, 2048, 64), np.float64)] * 3  # which the native kernels refuse
    explanation = explain(*arrays, is_causal=True, return_lse=True)
    plan = explanation.plan
    assert explanation.problem.causal
    assert explanation.backend == "blockwise"
    assert list(explanation.verdicts) == list(BACKENDS.names)
    assert (plan.q_tile, plan.k_tile) == (256, 1024)
    assert explanation.blocks == BlockCount(full=4, partial=8, empty=4)
    lines = str(explanation).splitlines()
    assert lines[0] == str(explanation.problem)
    for name in BACKENDS.names[1:-2]:  # which depend on what is installed
        assert lines.pop(2).startswith(f"  {name}: ")
    assert lines[1:4] == [
        "  native: computes in float32, not in float64",
        "  blockwise: yes",
        "  reference: yes",
    ]
    assert lines[4].startswith("blockwise: TilePlan(batch_tile=1, head_tile=8, q_tile=256")
    assert lines[5] == "  BlockCount(full=4, partial=8, empty=4)"


def test_explain_names_the_native_tiles_on_a_cpu(monkeypatch):
    monkeypatch.setattr(NativeBackend, "forward", None)
    arrays = [np.zeros((1, 8, 2048, 64), np.float32)] * 3
    explanation = explain(*arrays, is_causal=True)
    plan = explanation.plan
    assert explanation.backend == "native"
    assert plan.target == cpu_target()
    assert plan.threads == cpu_threads()
    assert (plan.kernel, plan.strip_rows) == ("packed", plan.q_tile)
    assert "native: NativePlan(batch_tile=1" in str(explanation)


@pytest.mark.parametrize("backend", BACKENDS.names)
def test_explain_accepts_a_call_without_queries(backend):
    inputs = [array.astype(np.float32) for array in make_inputs(0, 0)]
    with skip_refusals():
        explanation = explain(*inputs, backend=backend)
    assert explanation.blocks == BlockCount(full=0, partial=0, empty=0)


def test_importing_the_room_imports_no_framework():
    script = (
        "import sys, numpy as np; from tesseral.attention import attention;"
        "x = np.zeros((1, 1, 2, 2)); attention(x, x, x, is_causal=True);"
        "print(sorted({'torch', 'transformers', 'cupy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
