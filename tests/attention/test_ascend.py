"""The Ascend kernels against the oracle in Triton's interpreter, and what is asked before them.

No NPU is there. That triton-ascend takes the kernels is tested by ``lower_ascend.py``.
"""

import dataclasses

import numpy as np
import pytest
import torch

from attention.cases import make_inputs, oracle, plain, to_float64, visible
from attention.test_triton import DEVICE, _kernels, poisoned  # noqa: F401
from support.budget import assert_within_budget
from tesseral._errors import BackendError
from tesseral.attention import attention, attention_decode
from tesseral.attention.backends.ascend import backend as backend_module
from tesseral.attention.backends.ascend import device as device_module
from tesseral.attention.backends.ascend.backend import AscendBackend
from tesseral.attention.backends.ascend.chip import ASCEND_910B2
from tesseral.attention.backends.ascend.plan import AscendPlan, padded, plan_rounds
from tesseral.attention.problem import AttentionArrays, AttentionProblem, state_problem
from tesseral.attention.registry import BACKENDS

SMALL = AscendPlan(
    batch_tile=1, head_tile=1, q_tile=16, k_tile=32, workspace_bytes=0, basic=16, vector_rows=8,
    sum_rows=16, ahead=2, programs=2, parts=1, folded=False,
)  # fmt: skip
PLANS = {
    "rounds": SMALL,
    "one_core": dataclasses.replace(SMALL, programs=1, q_tile=32, vector_rows=32),
    "at_once": dataclasses.replace(SMALL, ahead=0, k_tile=16),
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
HEADS = {"q_heads": 2, "kv_heads": 1, "batch": 1}


def needs_kernels(test):
    """Let a test run kernels in the interpreter, which a CUDA device would keep from running."""
    test = pytest.mark.skipif(DEVICE != "cpu", reason="runs where there is no CUDA device")(test)
    return pytest.mark.usefixtures("_kernels")(test)


def forward(inputs, plan, dtype=torch.float32, **rules):
    arrays = [torch.asarray(array).to(dtype) for array in inputs]
    call = AttentionArrays(**dict(zip(("query", "key", "value"), arrays, strict=True)))
    rules = {"is_causal": False, "scale": None, "window": None, "softcap": None, **rules}
    with poisoned():
        output, lse = AscendBackend().forward(state_problem(call, **rules), call, plan)
    return output, to_float64(lse)


def assert_close(got, wanted, tolerance=2e-5):
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(to_float64(ours), theirs, rtol=tolerance, atol=tolerance)


@needs_kernels
@every_plan
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"is_causal": True},
        {"window": (9, 4)},
        {"window": (40, -1), "is_causal": True},
        {"window": (-1, 3)},
        {"window": (5, 60)},
        {"scale": -0.3},
    ],
    ids=str,
)
def test_every_rule_is_that_of_the_oracle(plan, rules):
    inputs = make_inputs(37, 90, order="rising", **HEADS)
    inputs = [array.astype(np.float32) for array in inputs]
    assert_close(forward(inputs, plan, **rules), oracle(*inputs, **rules))


@needs_kernels
@pytest.mark.parametrize(
    "sizes", [(50, 20, 40, 12), (33, 64, 16, 24), (17, 96, 21, 16), (5, 0, 16, 16)], ids=str
)
def test_sizes_that_no_tile_fits(sizes):
    q_len, kv_len, head_dim, value_dim = sizes
    inputs = make_inputs(q_len, kv_len, head_dim=head_dim, value_dim=value_dim, **HEADS)
    wanted = oracle(*inputs, is_causal=True)
    assert_close(forward(inputs, SMALL, is_causal=True), wanted)


@needs_kernels
@pytest.mark.parametrize("rules", [{}, {"is_causal": True}, {"window": (30, 0)}], ids=str)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kv_len", [100, 33, 0])
def test_one_query_meets_keys_in_parts(parts, kv_len, rules):
    plan = dataclasses.replace(SMALL, parts=parts, folded=True)
    inputs = make_inputs(1, kv_len, value_dim=24, batch=1, order="rising", q_heads=6, kv_heads=2)
    assert_close(forward(inputs, plan, **rules), oracle(*inputs, **rules))


@needs_kernels
@pytest.mark.parametrize("folded", [False, True], ids=["rounds", "folded"])
def test_half_precision_is_as_good_as_plain_code(folded):
    plan = dataclasses.replace(SMALL, parts=2 if folded else 1, folded=folded)
    inputs = make_inputs(1 if folded else 33, 70, **HEADS)
    query, key, value = (torch.asarray(array).half() for array in inputs)
    output, lse = forward((query, key, value), plan, torch.float16, is_causal=True)
    bias = torch.zeros(query.shape[2], 70)
    bias = bias.masked_fill(torch.asarray(~visible(len(bias), 70, is_causal=True)), -np.inf)
    expected, expected_lse = oracle(query, key, value, is_causal=True)
    peer = to_float64(plain(query, key, value, bias))
    floor = 2 * torch.finfo(torch.float16).eps
    assert_within_budget(to_float64(output), expected, peer, floor=floor)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_strides_of_the_inputs_do_not_matter():
    inputs = make_inputs(20, 40, **(HEADS | {"batch": 2}))
    turned = [torch.asarray(a).float().transpose(1, 3).contiguous().transpose(1, 3) for a in inputs]
    got = attention(*turned, is_causal=True, backend="ascend")
    assert_close([got], [oracle(*inputs, is_causal=True)[0]])
    length_first = [torch.asarray(a).float().transpose(1, 2).contiguous() for a in inputs]
    got = attention(*(a.transpose(1, 2) for a in length_first), is_causal=True, backend="ascend")
    assert_close([got], [oracle(*inputs, is_causal=True)[0]])
    got = attention(*(a.astype(np.float32) for a in inputs), backend="ascend")
    assert isinstance(got, np.ndarray)
    assert_close([got], [oracle(*inputs)[0]])


@needs_kernels
def test_empty_blocks_of_keys_are_not_read():
    inputs = make_inputs(16, 96, batch=1, q_heads=1, kv_heads=1)
    arrays = [torch.asarray(array).float() for array in inputs]
    wanted = oracle(*arrays, window=(20, 0))
    for array in arrays[1:]:
        array[:, :, :48] = np.nan  # 16 queries see keys from 60 on, block by block from 48
    assert_close(forward(arrays, SMALL, window=(20, 0)), wanted)


@needs_kernels
def test_a_paged_cache_is_decoded():
    query, key, value = (torch.asarray(a).float() for a in make_inputs(1, 48, batch=1))
    pools = [a[0].transpose(0, 1).reshape(3, 16, 2, 16) for a in (key, value)]
    got = attention_decode(
        query.transpose(1, 2), *pools, block_tables=torch.tensor([[0, 1, 2]]),
        seq_lens=torch.tensor([40]), backend="ascend",
    )  # fmt: skip
    wanted, _ = oracle(query, key[:, :, :40], value[:, :, :40])
    assert_close([got.transpose(1, 2)], [wanted])


PROBLEM = AttentionProblem(
    batch=1, q_len=4096, kv_len=4096, q_heads=32, kv_heads=8, head_dim=128, value_dim=128,
    dtype="float16", device="npu:0", causal=True, scale=0.1,
)  # fmt: skip


@pytest.fixture
def _npu(monkeypatch):
    """Pretend that torch_npu and triton-ascend are there, and a 910B2."""
    monkeypatch.setattr(device_module, "installed", lambda _: True)
    monkeypatch.setattr(backend_module, "cube_cores", lambda _: ASCEND_910B2.cube_cores)


@pytest.mark.usefixtures("_npu")
def test_tensors_on_an_npu_go_to_this_backend():
    assert BACKENDS.choose(PROBLEM).name == "ascend"
    assert BACKENDS.choose(dataclasses.replace(PROBLEM, dtype="bfloat16")).name == "ascend"
    assert BACKENDS.choose(dataclasses.replace(PROBLEM, softcap=2.0)).name == "blockwise"


@pytest.mark.usefixtures("_npu")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "float64"),
        ({"head_dim": 512}, "up to 256"),
        ({"value_dim": 512}, "up to 256"),
        ({"key_format": "packed4"}, "no codes"),
        ({"mask": "boolean"}, "dense mask"),
        ({"softcap": 2.0}, "softcap"),
        ({"alibi": True}, "linear bias"),
        ({"sinks": True}, "sinks"),
        ({"device": "cuda:0"}, "not on cuda:0"),
        ({"device": "cpu"}, "TRITON_INTERPRET"),
    ],
    ids=str,
)
def test_what_is_not_done_is_refused_with_a_reason(monkeypatch, change, reason):
    monkeypatch.setattr(device_module, "interpreted", lambda: False)
    verdict = AscendBackend().supports(dataclasses.replace(PROBLEM, **change))
    assert not verdict.ok
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("missing", "reason"), [("torch_npu", "torch_npu"), ("triton", "pip install triton-ascend")]
)
def test_what_is_not_installed_is_named(monkeypatch, missing, reason):
    monkeypatch.setattr(device_module, "installed", lambda module: missing not in module)
    with pytest.raises(BackendError, match=reason):
        BACKENDS.choose(PROBLEM, "ascend")


def test_plans_keep_to_the_published_limits():
    chip = ASCEND_910B2
    plan = plan_rounds(PROBLEM, chip, chip.cube_cores)
    assert (plan.q_tile, plan.k_tile, plan.basic, plan.vector_rows) == (128, 1024, 128, 8)
    assert plan.programs == 24
    assert plan.workspace_bytes < chip.l2
    for dtype, size in (("float16", 2), ("float32", 4)):
        for width in (16, 64, 80, 128, 256):
            for q_len in (1, 9, 500):
                problem = dataclasses.replace(
                    PROBLEM, dtype=dtype, head_dim=width, value_dim=width, q_len=q_len
                )
                plan = plan_rounds(problem, chip, chip.cube_cores)
                columns = padded(width)
                assert 2 * 4 * plan.q_tile * plan.basic <= chip.l0c
                assert 4 * plan.q_tile * columns <= chip.l0c
                in_l1 = plan.q_tile * (columns + plan.k_tile) + 2 * plan.basic * columns
                assert size * in_l1 <= chip.l1
                assert 2 * (4 + size + 1) * plan.vector_rows * plan.k_tile <= chip.ub
                assert 2 * 2 * 4 * plan.sum_rows * columns <= chip.ub
                assert plan.k_tile % plan.basic == 0
                assert plan.q_tile % plan.vector_rows == plan.q_tile % plan.sum_rows == 0
                assert plan.vector_rows >= 8


def test_keys_of_few_queries_are_shared_among_cores():
    one = dataclasses.replace(PROBLEM, q_len=1)
    plans = [
        plan_rounds(dataclasses.replace(one, kv_len=kv_len, batch=batch), ASCEND_910B2, 24)
        for kv_len, batch in ((500, 1), (131072, 1), (131072, 8))
    ]
    assert [plan.parts for plan in plans] == [1, 3, 1]
    assert [plan.programs for plan in plans] == [8, 24, 24]
    assert all(plan.folded and plan.q_tile == 16 for plan in plans)
