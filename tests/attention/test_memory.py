"""What attention allocates grows with the lengths, never with their product."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from tesseral.attention import attention, explain, native_plan

LENGTH = 8192
ALL_SCORES = 4 * LENGTH**2  # 256 MiB in float32


def peak_bytes(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, 1, LENGTH, 4), dtype=np.float32) for _ in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"window": (300, 200)},
        {"alibi_slopes": np.ones(1, np.float32), "softcap": 4.0, "window": (900, 0)},
        {"mask": np.broadcast_to(np.zeros((1, LENGTH), np.float32), (LENGTH, LENGTH)),
         "is_causal": True},
    ],
    ids=["causal", "window", "alibi", "additive"],
)  # fmt: skip
def test_the_scores_are_never_all_there(inputs, options):
    attention(*inputs, window=(1, 1))  # imports and the shared triangle
    assert peak_bytes(lambda: attention(*inputs, **options)) < ALL_SCORES / 6


def test_the_workspace_that_explain_names_holds_a_tile(inputs):
    plan = explain(*inputs, is_causal=True, backend="blockwise").plan
    assert 4 * plan.q_tile * plan.k_tile <= plan.workspace_bytes < ALL_SCORES / 16
    plan = explain(*inputs, is_causal=True, backend="native").plan
    strip_and_keys = (2 * plan.strip_rows + 2 * plan.k_tile) * inputs[0].shape[3]
    assert 4 * plan.threads * strip_and_keys <= plan.workspace_bytes < ALL_SCORES / 16


def test_the_workspace_that_explain_names_holds_the_states_of_shared_keys(monkeypatch):
    monkeypatch.setenv("TESSERAL_CPU_THREADS", "3")
    wide = [np.zeros((1, 1, length, 128), np.float32) for length in (2, LENGTH, LENGTH)]
    explanation = explain(*wide, backend="native")
    plan = explanation.plan
    parts = -(-LENGTH // plan.split_keys)
    assert parts > 1
    whole = native_plan._workspace_bytes(explanation.problem, replace(plan, split_keys=0))
    assert plan.workspace_bytes - whole >= 4 * parts * 2 * (2 + 128)


def test_decoding_from_half_precision_converts_keys_a_tile_at_a_time():
    query = np.ones((1, 4, 1, 64), np.float16)
    cache = np.ones((1, 4, 4 * LENGTH, 64), np.float16)
    whole = 4 * cache.size
    attention(query, cache[:, :, :8], cache[:, :, :8])
    assert peak_bytes(lambda: attention(query, cache, cache)) < whole / 2
