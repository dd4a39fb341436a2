"""The native CPU kernels: every instruction set, element type and way to cut a call."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.cases import make_inputs, oracle, plain, to_float64, visible
from attention.test_packed import quantize, to_torch
from attention.test_varlen import make_packed, make_pool
from support.budget import assert_within_budget
from tesseral import _native
from tesseral.attention import attention, attention_varlen, explain
from tesseral.attention.backends import native
from tesseral.attention.backends.native import NativeBackend
from tesseral.attention.problem import AttentionArrays, state_problem
from tesseral.core import PackedTensor
from tesseral.runtime.cpu import supported_targets

TARGETS = supported_targets()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 0.03, torch.float16: 4e-3}
PLANS = {
    "streamed": {"kernel": "streamed", "strip_rows": 12, "split_keys": 0},
    "streamed_pairs": {"kernel": "streamed", "strip_rows": 12, "bf16_dot": True},
    "streamed_split": {"kernel": "streamed", "strip_rows": 4, "split_keys": 17},
    "packed": {"kernel": "packed", "strip_rows": 28, "k_tile": 64, "split_keys": 0},
    "packed_split": {"kernel": "packed", "strip_rows": 16, "k_tile": 40, "split_keys": 33},
    "packed_pairs": {"kernel": "packed", "strip_rows": 34, "k_tile": 70, "bf16_dot": True},
    "tiles": {"kernel": "tiles", "strip_rows": 75, "k_tile": 200, "bf16_dot": True},
}
every_target = pytest.mark.parametrize("target", TARGETS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


@pytest.fixture(autouse=True, scope="module")
def poisoned_scratch():
    """Fill scratch memory with NaN before each task."""
    make = _native.AttentionCall

    def make_poisoned():
        call = make()
        call.poison = True
        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native._native, "AttentionCall", make_poisoned)
        clear()
        yield
    clear()


def clear():
    """Forget native calls, which keep how they were made."""
    native._describe.cache_clear()
    native._plain_call.cache_clear()


def attend(*arrays, plan, **options):
    """Return output and lse of the native kernels, with parts of their plan replaced."""
    problem, arrays = state(*arrays, **options)
    backend = NativeBackend()
    assert backend.supports(problem)
    return backend.forward(problem, arrays, replace(backend.plan(problem), **plan))


def state(query, key, value, *, mask=None, sinks=None, alibi_slopes=None, **rules):
    arrays = AttentionArrays(
        query=query, key=key, value=value, mask=mask, sinks=sinks, alibi_slopes=alibi_slopes
    )
    rules = {"is_causal": False, "scale": None, "window": None, "softcap": None, **rules}
    return state_problem(arrays, **rules), arrays


def check(found, expected, dtype=torch.float32):
    for got, exact in zip(found, expected, strict=True):
        precision = TOLERANCES[dtype] if got is found[0] else 5e-5
        np.testing.assert_allclose(to_float64(got), exact, rtol=precision, atol=precision)


@every_target
@every_dtype
@every_plan
class TestPrecision:
    """At most twice as wrong as plain code, when each tile outweighs the last."""

    @pytest.mark.parametrize(
        ("q_len", "kv_len", "dims"),
        [
            (1, 300, (128, 128)),
            (37, 90, (40, 72)),
            (45, 170, (80, 8)),
            (110, 450, (128, 128)),
        ],
    )
    def test_rising_keys(self, target, dtype, plan, q_len, kv_len, dims):
        inputs = make_inputs(
            q_len, kv_len, batch=1, head_dim=dims[0], value_dim=dims[1], order="rising"
        )
        query, key, value = (torch.asarray(array).to(dtype) for array in inputs)
        plan = {**plan, "target": target}
        output, lse = attend(query, key, value, plan=plan, is_causal=True)
        expected, expected_lse = oracle(query, key, value, is_causal=True)
        seen = torch.asarray(visible(q_len, kv_len, is_causal=True))
        peer = plain(query, key, value, torch.zeros(seen.shape).masked_fill_(~seen, -np.inf))
        largest = (query.norm(dim=-1).max() * key.norm(dim=-1).max()).item() / dims[0] ** 0.5
        floor = torch.finfo(torch.float32).eps * largest + 2 * torch.finfo(dtype).eps
        assert output.dtype == dtype
        assert_within_budget(to_float64(output), expected, to_float64(peer), floor=floor)
        np.testing.assert_allclose(to_float64(lse), expected_lse, rtol=2e-6, atol=2e-5)


@every_target
@every_plan
@pytest.mark.parametrize("head_dim", [1, 5, 8, 27, 64, 100, 256])
def test_any_head_dimension(target, plan, head_dim):
    inputs = make_inputs(9, 50, batch=1, head_dim=head_dim)
    inputs = [array.astype(np.float32) for array in inputs]
    check(attend(*inputs, plan={**plan, "target": target}), oracle(*inputs))


@every_target
@every_plan
@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (5, 1)], ids=str)
@pytest.mark.parametrize(("q_len", "kv_len"), [(40, 23), (23, 40), (1, 70)])
def test_heads_and_rules_together(target, plan, heads, q_len, kv_len):
    inputs = make_inputs(q_len, kv_len, q_heads=heads[0], kv_heads=heads[1])
    inputs = [array.astype(np.float32) for array in inputs]
    plan = {**plan, "strip_rows": heads[0] // heads[1] * 5, "target": target}
    rng = np.random.default_rng(q_len)
    options = {
        "window": (20, 9),
        "softcap": 2.0,
        "alibi_slopes": rng.random((2, heads[0])),
        "sinks": np.where(rng.random(heads[0]) < 0.3, -np.inf, rng.standard_normal(heads[0])),
        "mask": rng.random((2, 1, q_len, kv_len)) < 0.7,
    }
    check(attend(*inputs, plan=plan, **options), oracle(*inputs, **options))
    for name, option in options.items():
        rules = {name: option, "is_causal": name != "window"}
        check(attend(*inputs, plan=plan, **rules), oracle(*inputs, **rules))


@every_target
@every_dtype
@pytest.mark.parametrize("kernel", ["streamed", "packed_split"])
def test_masks_of_every_type_and_stride(target, dtype, kernel):
    inputs = [torch.asarray(array).to(dtype) for array in make_inputs(13, 75)]
    rng = np.random.default_rng(2)
    seen = torch.asarray(rng.random((2, 4, 13, 150)) < 0.7)
    bias = torch.asarray(rng.standard_normal((2, 4, 13, 150))).masked_fill(~seen, -torch.inf)
    plan = {**PLANS[kernel], "target": target}
    for mask in (seen, bias.to(dtype), bias.float()):
        for part in (
            mask[..., :75],
            mask[..., ::2],
            mask[:1, :1, :1, :75],
            mask[:, :1, :, :1],
            mask.transpose(2, 3).contiguous().transpose(2, 3)[..., 75:],
            mask[0, 0, 0, 1:76],
        ):
            check(attend(*inputs, plan=plan, mask=part), oracle(*inputs, mask=part), dtype)


@pytest.mark.parametrize("lowest", [-1e10, -1e30, np.finfo(np.float32).min])
@every_target
@every_plan
def test_far_below_zero_every_key_weighs_the_same(target, plan, lowest):
    inputs = [array.astype(np.float32) for array in make_inputs(6, 90)]
    mask = np.full((6, 90), lowest, np.float32)
    mask[3:] = 0
    output, lse = attend(*inputs, plan={**plan, "target": target}, mask=mask)
    average = inputs[2].mean(2, dtype=np.float64).repeat(2, axis=1)[:, :, None]
    np.testing.assert_allclose(output[:, :, :3], np.broadcast_to(average, (2, 4, 3, 16)), atol=1e-6)
    np.testing.assert_allclose(lse[:, :, :3], np.float64(lowest), rtol=1e-6)
    check((output[:, :, 3:], lse[:, :, 3:]), oracle(inputs[0][:, :, 3:], *inputs[1:]))


@every_target
@every_plan
def test_the_scale_may_be_zero_or_negative(target, plan):
    inputs = [array.astype(np.float32) for array in make_inputs(10, 60)]
    for scale in (0.0, -0.4, 3.0):
        found = attend(*inputs, plan={**plan, "target": target}, scale=scale)
        check(found, oracle(*inputs, scale=scale))


@every_target
@every_plan
@pytest.mark.parametrize(
    "sinks", [None, np.array([0.5, -1.0, -np.inf, 2.0])], ids=["bare", "sinks"]
)
@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 40), (3, 0), (30, 9)])
def test_rows_that_see_nothing(target, plan, sinks, q_len, kv_len):
    inputs = [array.astype(np.float32) for array in make_inputs(q_len, kv_len)]
    options = {"is_causal": True, "sinks": sinks}
    output, lse = attend(*inputs, plan={**plan, "target": target}, **options)
    check((output, lse), oracle(*inputs, **options))
    blind = ~visible(q_len, kv_len, is_causal=True).any(1)
    assert (output[:, :, blind] == 0).all()


@every_target
@pytest.mark.parametrize("kernel", ["streamed_split", "packed"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True], ids=["offset", "symmetric"])
@pytest.mark.parametrize("width", [16, 27, 128])
def test_codes_of_every_width(target, kernel, bits, symmetric, width):
    query, *sides = make_inputs(5, 70, head_dim=width, value_dim=width + 1)
    packed = [to_torch(quantize(side, bits, groups=1, symmetric=symmetric)) for side in sides]
    for scales, dtype in ((torch.float16, "bfloat16"), (torch.bfloat16, "float32"),
                          (torch.float32, "float16"), (torch.float64, "float32")):  # fmt: skip
        codes = [with_scales(side, scales) for side in packed]
        rows = torch.asarray(query).to(DTYPES[dtype])
        found = attend(rows, *codes, plan={**PLANS[kernel], "target": target}, is_causal=True)
        exact = [with_scales(side, torch.float64).dequantize() for side in codes]
        check(found, oracle(rows, *exact, is_causal=True), DTYPES[dtype])


def with_scales(packed, dtype):
    offset = None if packed.offset is None else packed.offset.to(dtype)
    return replace(packed, scale=packed.scale.to(dtype), offset=offset)


def test_one_side_may_be_codes_and_the_other_dense():
    query, key, value = (torch.asarray(array).float() for array in make_inputs(5, 70))
    for plan in PLANS.values():
        packed = to_torch(quantize(key.numpy(), 4, groups=1))
        check(attend(query, packed, value, plan=plan), oracle(query, packed.dequantize(), value))
        packed = to_torch(quantize(value.numpy(), 8, groups=1))
        check(attend(query, key, packed, plan=plan), oracle(query, key, packed.dequantize()))


def lay_out(array, layout):
    """Return the same numbers with other strides; the last axis stays contiguous."""
    if layout == "rows_first":
        return np.ascontiguousarray(array.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    if layout == "gaps":
        wide = np.full((*array.shape[:3], array.shape[3] + 5), 77, array.dtype)
        wide[..., 2:-3] = array
        return wide[..., 2:-3]
    if layout == "backwards":
        return np.ascontiguousarray(array[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]
    return np.broadcast_to(array[:, :1], array.shape)  # one head, read by all


@every_plan
@pytest.mark.parametrize("layout", ["rows_first", "gaps", "backwards", "spread"])
@pytest.mark.parametrize("kind", ["float32", "float16", "codes"])
def test_strides_are_followed_and_nothing_is_copied(plan, layout, kind, monkeypatch):
    inputs = make_inputs(11, 60, q_heads=4, kv_heads=2)
    inputs = [array.astype(np.float32 if kind == "codes" else kind) for array in inputs]
    changed = [lay_out(array, layout) for array in inputs]
    if kind == "codes":
        packed = [quantize(np.ascontiguousarray(array), 4, groups=1) for array in changed[1:]]
        parts = ("data", "scale", "offset")
        strided = [
            replace(side, **{name: lay_out(getattr(side, name), layout) for name in parts})
            for side in packed
        ]
        same, changed = [inputs[0], *packed], [lay_out(inputs[0], layout), *strided]
        if layout == "spread":
            same[0] = np.ascontiguousarray(changed[0])
    else:
        same = [np.ascontiguousarray(array) for array in changed]
    expected = attend(*same, plan=plan, is_causal=True)
    make, read = native._Call, []
    monkeypatch.setattr(native, "_Call", lambda *given: read.append(make(*given)) or read[0])
    found = attend(*changed, plan=plan, is_causal=True)
    arrays = [array.data if isinstance(array, PackedTensor) else array for array in changed]
    assert {array.ctypes.data for array in arrays} <= {
        array.ctypes.data for array in read[0].arrays if array is not None
    }
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_columns_that_are_no_neighbours_are_read_all_the_same():
    inputs = [torch.asarray(array).float() for array in make_inputs(9, 50)]
    turned = [array.mT.contiguous().mT for array in inputs]
    for got, want in zip(attend(*turned, plan={}), attend(*inputs, plan={}), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("layout", ["heads_first", "rows_first"])
def test_the_output_lies_as_the_query_does(layout):
    inputs = [torch.asarray(array).float() for array in make_inputs(9, 50)]
    if layout == "rows_first":
        inputs[0] = inputs[0].transpose(1, 2).contiguous().transpose(1, 2)
    output, _ = attention(*inputs, return_lse=True, backend="native")
    assert output.stride() == inputs[0].stride()


@every_dtype
@pytest.mark.parametrize("layout", ["heads_first", "rows_first", "last_token", "spread", "columns"])
@pytest.mark.parametrize("value_dim", [16, 24])
def test_the_output_alone_is_that_beside_the_lse(dtype, layout, value_dim):
    inputs = make_inputs(9, 50, head_dim=16, value_dim=value_dim)
    inputs = [torch.asarray(array).to(dtype) for array in inputs]
    if layout == "rows_first":
        inputs = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    elif layout == "last_token":
        inputs[0] = inputs[0][:, :, -1:]
    elif layout == "spread":
        inputs = [x[:, :1].expand(x.shape) for x in inputs]
    elif layout == "columns":
        inputs = [x.mT.contiguous().mT for x in inputs]
    for rules in ({}, {"is_causal": True}, {"mask": torch.arange(50) % 3 > 0}):
        output, _ = attention(*inputs, **rules, return_lse=True, backend="native")
        alone = attention(*inputs, **rules, backend="native")
        assert torch.equal(alone, output)
        assert alone.shape == output.shape


@every_target
@every_plan
def test_the_same_threads_give_the_same_bits(target, plan):
    inputs = [torch.asarray(array).bfloat16() for array in make_inputs(70, 200)]
    expected = oracle(*inputs, is_causal=True)
    for threads in (1, 2, 3):
        chosen = {**plan, "target": target, "threads": threads}
        once, twice = (attend(*inputs, plan=chosen, is_causal=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
        check(once, expected, torch.bfloat16)


@every_target
def test_the_environment_names_the_instruction_set(target, monkeypatch):
    monkeypatch.setenv("TESSERAL_CPU_TARGET", target)
    inputs = [array.astype(np.float32) for array in make_inputs(9, 50)]
    plan = explain(*inputs, backend="native").plan
    assert plan.target == target
    found = attention(*inputs, return_lse=True, backend="native")
    same = attend(*inputs, plan={"target": target})
    assert all((a == b).all() for a, b in zip(found, same, strict=True))
    check(found, oracle(*inputs))


@pytest.mark.parametrize("kind", ["dense", "codes"])
@pytest.mark.parametrize("paged", [False, True], ids=["packed", "paged"])
@every_plan
def test_sequences_are_attended_to_as_if_alone(plan, paged, kind, monkeypatch):
    arrays, edges = make_packed([(3, 3), (17, 40), (0, 5), (1, 83), (9, 4), (2, 0)])
    arrays = [array.astype(np.float32) for array in arrays]
    options = {"cu_seqlens_q": edges[0], "cu_seqlens_k": edges[1], "return_lse": True}
    options |= {"is_causal": True, "alibi_slopes": np.arange(24.0).reshape(6, 4) / 40}
    if paged:
        pools = [
            make_pool(side, edges[1], filling=np.arange(side.shape[-1])) for side in arrays[1:]
        ]
        arrays, options["block_tables"] = [arrays[0], *(p for p, _ in pools)], pools[0][1]
        arrays[1:] = [array.astype(np.float32) for array in arrays[1:]]
    if kind == "codes":
        arrays[1:] = [quantize(array, 8, groups=1) for array in arrays[1:]]
    whole = native._plan_for
    monkeypatch.setattr(native, "_plan_for", lambda *a: replace(whole(*a), **plan))
    found = attention_varlen(*arrays, **options, backend="native")
    exact = [array.dequantize() if isinstance(array, PackedTensor) else array for array in arrays]
    exact = [array.astype(np.float64) for array in exact]
    check(found, attention_varlen(*exact, **options, backend="reference"))


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_what_comes_in_goes_out(framework):
    inputs = [array.astype(np.float32) for array in make_inputs(9, 50)]
    kind = np.ndarray
    if framework == "torch":
        inputs, kind = [torch.asarray(array) for array in inputs], torch.Tensor
    found = attention(*inputs, return_lse=True, backend="native")
    assert all(type(array) is kind for array in found)
    check(found, oracle(*inputs))


def test_a_call_of_several_strips_blocks_and_threads():
    inputs = make_inputs(700, 1300, batch=1, head_dim=64)
    inputs = [array.astype(np.float32) for array in inputs]
    plan = {"threads": 2, "strip_rows": 480, "k_tile": 512}
    check(attend(*inputs, plan=plan, is_causal=True), oracle(*inputs, is_causal=True))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_call(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    kv_heads, group, value_dim = draw(1, 2), draw(1, 4), draw(1, 80)
    inputs = make_inputs(draw(0, 30), draw(0, 140), batch=draw(1, 2), q_heads=kv_heads * group,
                         kv_heads=kv_heads, head_dim=draw(1, 80), value_dim=value_dim)  # fmt: skip
    dtype = data.draw(st.sampled_from(list(DTYPES.values())))
    inputs = [torch.asarray(array).to(dtype) for array in inputs]
    plan = {
        "target": data.draw(st.sampled_from(TARGETS)),
        "kernel": data.draw(st.sampled_from(["streamed", "packed"])),
        "strip_rows": group * draw(1, 40),
        "k_tile": draw(1, 512),
        "split_keys": draw(0, 60),
        "threads": draw(1, 3),
        "bf16_dot": data.draw(st.booleans()),
    }
    options = {"is_causal": data.draw(st.booleans()), "scale": data.draw(st.floats(-0.3, 0.3))}
    options["window"] = data.draw(st.none() | st.tuples(st.integers(-1, 50), st.integers(-1, 50)))
    if data.draw(st.booleans()):
        options["mask"] = torch.asarray(np.random.default_rng(0).random(inputs[1].shape[2]) < 0.8)
    check(attend(*inputs, plan=plan, **options), oracle(*inputs, **options), dtype)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "float32, not in float64"),
        ({"device": "cuda:0"}, "runs on the CPU, not on cuda:0"),
        ({"head_dim": 264}, "head dimensions up to 256"),
        ({"value_dim": 257}, "head dimensions up to 256"),
        ({"key_format": "packed4x2"}, "one scale a row, not packed4x2"),
    ],
)
def test_what_the_kernels_cannot_do_they_refuse(change, reason):
    problem, _ = state(*(array.astype(np.float32) for array in make_inputs(2, 3)))
    verdict = NativeBackend().supports(replace(problem, **change))
    assert not verdict.ok
    assert reason in verdict.reason


@pytest.mark.parametrize(
    "plan", [{"strip_rows": 1}, {"k_tile": 0}, {"k_tile": 513}, {"split_keys": -1}], ids=str
)
def test_a_plan_that_memory_was_not_made_for_is_refused(plan):
    inputs = [array.astype(np.float32) for array in make_inputs(2, 3)]
    with pytest.raises(ValueError, match="out of range"):
        attend(*inputs, plan=plan)


def test_another_machine_s_instruction_set_is_refused():
    inputs = [array.astype(np.float32) for array in make_inputs(2, 3)]
    with pytest.raises(ValueError, match="no target sse9"):
        attend(*inputs, plan={"target": "sse9"})
