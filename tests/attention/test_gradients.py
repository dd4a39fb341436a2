"""Gradients through torch's autograd are those of the oracle, whichever backend runs."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from attention.cases import make_inputs, plain, run, skip_refusals, to_float64
from attention.test_packed import quantize, to_torch
from attention.test_varlen import make_packed, make_pool
from support.budget import assert_within_budget
from tesseral import _errors
from tesseral.attention import attention, attention_decode, attention_varlen, backward
from tesseral.attention.backends.reference import ReferenceBackend
from tesseral.attention.registry import BACKENDS

GENERATOR = torch.Generator().manual_seed(4)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=GENERATOR)


SHOWN = random(20, 40) > 0
SHOWN[7] = False  # a row that sees nothing
HIDDEN = random(2, 1, 20, 40).masked_fill_(random(2, 1, 20, 40) > 1, -torch.inf)
HIDDEN[0, :, 3] = -torch.inf
OPTIONS = {
    "full": {},
    "causal": {"is_causal": True},
    "window": {"window": (12, 3)},
    "left_window": {"window": (9, -1), "scale": -0.4},
    "softcap": {"softcap": 1.5, "is_causal": True},
    "boolean": {"mask": SHOWN},
    "boolean_keys": {"mask": SHOWN[0], "window": (30, -1)},
    "bias": {"mask": random(1, 4, 20, 40)},
    "bias_of_keys": {"mask": random(40), "is_causal": True},
    "bias_of_queries": {"mask": random(2, 1, 20, 1)},
    "bias_that_hides": {"mask": HIDDEN, "softcap": 2.0},
    "alibi": {"alibi_slopes": random(4).abs() / 8, "is_causal": True},
    "alibi_of_batch": {"alibi_slopes": random(2, 4) / 8},
    "sinks": {"sinks": random(4), "window": (5, 0)},
    "all": {
        "is_causal": True,
        "window": (25, -1),
        "softcap": 3.0,
        "scale": 0.3,
        "sinks": random(4),
        "alibi_slopes": random(4) / 8,
        "mask": random(4, 1, 40),
    },
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Cut 20 queries by 40 keys into many tiles, of sides that nothing divides."""
    monkeypatch.setattr(backward, "ROWS", 14)
    monkeypatch.setattr(backward, "KEYS", 9)


def entry(backend):
    def forward(*arrays, **options):
        with skip_refusals():
            return attention(*arrays, **options, return_lse=True, backend=backend)

    return forward


def definition(*arrays, **options):
    """Return what the oracle gives, recorded by autograd step by step."""
    return run(ReferenceBackend(), *arrays, **options)


def gradients(forward, inputs, options, wanted=("output", "lse")):
    """Return the gradients of a random linear function of output and lse."""
    leaves = [array.detach().clone().requires_grad_() for array in inputs]
    options = dict(options)
    for name, option in options.items():
        if isinstance(option, torch.Tensor) and option.is_floating_point():
            options[name] = option.to(inputs[0].dtype).requires_grad_()
            leaves.append(options[name])
    results = dict(zip(("output", "lse"), forward(*leaves[: len(inputs)], **options), strict=True))
    weights = torch.Generator().manual_seed(8)
    total = 0.0
    for name in wanted:
        part = torch.where(results[name].isfinite(), results[name], 0.0)
        factors = torch.randn(part.shape, dtype=torch.float64, generator=weights)
        total = total + (part * factors.to(part.dtype)).sum()
    return torch.autograd.grad(total, leaves, materialize_grads=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("wanted", [("output",), ("lse",), ("output", "lse")], ids="+".join)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gradients_are_those_of_the_oracle(backend, wanted, options, dtype):
    inputs = [torch.asarray(array).to(dtype) for array in make_inputs(20, 40)]
    ours = gradients(entry(backend), inputs, options, wanted)
    exact = {
        name: option.to(dtype).double() if torch.is_tensor(option) and option.dtype != torch.bool
        else option
        for name, option in options.items()
    }  # fmt: skip
    theirs = gradients(definition, [array.double() for array in inputs], exact, wanted)
    assert len(ours) == 3 + sum(
        torch.is_tensor(option) and option.is_floating_point() for option in options.values()
    )
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for got, expected in zip(ours, theirs, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("rules", [{}, {"is_causal": True}, {"window": (1100, 40)}], ids=str)
def test_the_tiles_used_by_default_are_right_too(backend, rules):
    arrays = make_inputs(600, 1300, batch=1, q_heads=6, kv_heads=3, head_dim=8)
    inputs = [torch.asarray(array).float() for array in arrays]
    ours = gradients(entry(backend), inputs, rules)
    theirs = gradients(definition, [array.double() for array in inputs], rules)
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("order", ["random", "rising"])
@pytest.mark.parametrize("softcap", [None, 4.0], ids=["plain", "softcap"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_gradients_stay_within_the_budget_of_plain_code(backend, order, softcap, dtype):
    inputs = [torch.asarray(array).to(dtype) for array in make_inputs(70, 90, order=order)]
    bias = torch.zeros(70, 90, dtype=dtype).masked_fill_(
        torch.ones(70, 90).triu(21) > 0, -torch.inf
    )
    options = {"is_causal": True, "softcap": softcap}

    def peer(*arrays, **_):
        return plain(*arrays, bias, softcap=softcap), torch.zeros(())

    ours = gradients(entry(backend), inputs, options, ("output",))
    exact = gradients(definition, [array.double() for array in inputs], options, ("output",))
    plain_ones = gradients(peer, inputs, {}, ("output",))
    # rounding a score moves its weight in proportion to the score; a lucky peer hides that
    largest = (inputs[0].norm(dim=-1).max() * inputs[1].norm(dim=-1).max()).item() / 16**0.5
    for got, oracle, other in zip(ours, exact, plain_ones, strict=True):
        assert got.dtype == dtype
        floor = torch.finfo(torch.float32).eps * largest + 4 * torch.finfo(dtype).eps
        floor *= oracle.abs().max().item()
        assert_within_budget(*map(to_float64, (got, oracle, other)), floor=floor)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("head_counts", [(1, 1), (6, 2), (5, 1)], ids=str)
def test_grouped_heads_and_a_value_dimension_of_its_own(head_counts):
    heads = dict(zip(("q_heads", "kv_heads"), head_counts, strict=True))
    inputs = [torch.asarray(a) for a in make_inputs(20, 40, **heads, batch=3, value_dim=5)]
    options = {"is_causal": True, "sinks": random(head_counts[0]), "mask": random(20, 40)}
    ours, theirs = (gradients(f, inputs, options) for f in (entry("blockwise"), definition))
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    leaves = [random(1, heads, 9, 3).requires_grad_() for heads in (2, 1, 1)]
    sinks, bias = random(2).requires_grad_(), random(9, 9).requires_grad_()

    def forward(query, key, value, sinks, bias):
        return attention(query, key, value, sinks=sinks, mask=bias, is_causal=True, softcap=2.0,
                         return_lse=True)  # fmt: skip

    assert torch.autograd.gradcheck(forward, (*leaves, sinks, bias))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", ["query", "key", "value", "mask", "sinks", "alibi_slopes"])
def test_any_one_array_may_be_the_only_one_that_is_learned(name):
    inputs = [torch.asarray(array) for array in make_inputs(20, 40)]
    options = {"mask": random(20, 40), "sinks": random(4), "alibi_slopes": random(4)}
    arrays = {**dict(zip(("query", "key", "value"), inputs, strict=True)), **options}
    learned = arrays[name].requires_grad_()
    ours, theirs = attention(**arrays), definition(*inputs, **options)[0]
    got, expected = (torch.autograd.grad(f.square().sum(), learned)[0] for f in (ours, theirs))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_strides_do_not_matter():
    inputs = [torch.asarray(array) for array in make_inputs(20, 40)]
    expected = gradients(definition, inputs, {})
    strided = [array.transpose(1, 2).contiguous().transpose(1, 2) for array in inputs]

    def wide(query, key, value):  # gradients of results come in strided and expanded
        output, lse = attention(query, key.expand(2, -1, -1, -1), value, return_lse=True)
        return output.transpose(1, 2), lse

    for got, wanted in zip(gradients(entry("blockwise"), strided, {}), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)
    inputs[1] = inputs[1][:1]
    got = gradients(wide, inputs, {}, ("lse",))[1]
    inputs[1] = inputs[1].expand(2, -1, -1, -1)
    wanted = gradients(definition, inputs, {}, ("lse",))[1]
    torch.testing.assert_close(got, wanted.sum(0, keepdim=True), rtol=1e-11, atol=1e-12)
    leaves = [array.requires_grad_() for array in strided]
    summed = torch.autograd.grad(attention(*leaves, is_causal=True).sum(), leaves)
    wanted = torch.autograd.grad(definition(*leaves, is_causal=True)[0].sum(), leaves)
    for ours, theirs in zip(summed, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize(
    "sinks", [None, torch.tensor([0.5, -1.0, 0.0, 2.0])], ids=["bare", "sinks"]
)
@pytest.mark.parametrize("hide", ["boolean", "additive", "rule"])
def test_rows_that_see_nothing_send_no_gradient(backend, sinks, hide):
    query, key, value = (torch.asarray(a).float().requires_grad_() for a in make_inputs(40, 20))
    bias = torch.zeros(40, 20).masked_fill_(torch.arange(40)[:, None] < 20, -torch.inf)
    options = {"boolean": {"mask": bias == 0}, "additive": {"mask": bias},
               "rule": {"is_causal": True}}[hide]  # fmt: skip
    with skip_refusals():
        output, lse = attention(
            query, key, value, **options, sinks=sinks, return_lse=True, backend=backend
        )
    assert (output[:, :, :20] == 0).all()
    (output[:, :, :20].sum() + torch.where(lse.isfinite(), lse, 0.0)[:, :, :20].sum()).backward()
    assert all((leaf.grad == 0).all() for leaf in (query, key, value))


def test_a_row_under_the_lowest_number_has_the_gradients_of_an_average():
    inputs = [torch.asarray(array).float() for array in make_inputs(20, 40)]
    mask = torch.zeros(20, 40)
    mask[3:5] = torch.finfo(torch.float32).min  # every key, as some models mask padding
    found = [
        gradients(forward, arrays, {"mask": mask.to(arrays[0].dtype)}, ("output",))[2]
        for forward, arrays in (
            (entry("blockwise"), inputs),
            (definition, [array.double() for array in inputs]),
        )
    ]
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [300.0, -300.0])
def test_scores_far_from_zero_keep_their_gradients(scale):
    inputs = [torch.asarray(array).float() for array in make_inputs(20, 40, order="rising")]
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [array.to(dtype).requires_grad_() for array in inputs]
        output = attention(*leaves, scale=scale, mask=torch.full((40,), -2e5, dtype=dtype))
        found.append(torch.autograd.grad(output.square().sum(), leaves[2])[0].double())
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)


def test_a_sink_far_from_zero_keeps_its_gradient():
    found = []
    for dtype in (torch.float32, torch.float64):
        arrays = [torch.asarray(array).to(dtype) for array in make_inputs(20, 40)]
        sinks = torch.full((4,), -2e5 + 3, dtype=dtype, requires_grad=True)
        output = attention(*arrays, sinks=sinks, mask=torch.full((40,), -2e5, dtype=dtype))
        found.append(torch.autograd.grad(output.square().sum(), sinks)[0].double())
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("sizes", [(0, 3, 5), (2, 0, 5), (2, 3, 0)], ids=str)
def test_empty_axes_have_gradients_of_zero(backend, sizes):
    batch, q_len, kv_len = sizes
    leaves = [
        torch.asarray(a).float().requires_grad_() for a in make_inputs(q_len, kv_len, batch=batch)
    ]
    with skip_refusals():
        attention(*leaves, backend=backend).sum().backward()
    assert all(leaf.grad.shape == leaf.shape and (leaf.grad == 0).all() for leaf in leaves)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", [
    {},
    {"is_causal": True, "window": (9, -1), "softcap": 2.0, "sinks": random(4)},
    {"alibi_slopes": random(4) / 8, "is_causal": True},
    {"alibi_slopes": random(6, 4) / 8},
], ids=["full", "ruled", "slopes", "slopes_of_sequences"])  # fmt: skip
def test_packed_sequences_have_the_gradients_of_each_alone(backend, dtype, options):
    arrays, edges = make_packed()
    inputs = [torch.asarray(array).to(dtype) for array in arrays]

    def packed(*arrays, **options):
        with skip_refusals():
            return attention_varlen(*arrays, cu_seqlens_q=edges[0], cu_seqlens_k=edges[1],
                                    return_lse=True, backend=backend, **options)  # fmt: skip

    def one_by_one(query, key, value, alibi_slopes=None, **options):
        parts = []
        for s in range(len(edges[0]) - 1):
            alone = [
                array[side[s] : side[s + 1]].transpose(0, 1)[None]
                for array, side in zip((query, key, value), (edges[0], edges[1], edges[1]),
                                       strict=True)
            ]  # fmt: skip
            slopes = alibi_slopes
            if slopes is not None and slopes.ndim == 2:
                slopes = slopes[s : s + 1]
            output, lse = definition(*alone, alibi_slopes=slopes, **options)
            parts.append((output[0].transpose(0, 1), lse[0].T))
        return [torch.cat(side) for side in zip(*parts, strict=True)]

    ours = gradients(packed, inputs, options)
    exact = {name: option.to(dtype).double() if torch.is_tensor(option) else option
             for name, option in options.items()}  # fmt: skip
    theirs = gradients(one_by_one, [array.double() for array in inputs], exact)
    tolerance = 1e-11 if dtype == torch.float64 else 5e-5
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS.names)
def test_quantised_and_paged_keys_run_but_refuse_gradients(backend):
    query, key, value = make_inputs(20, 40)
    query = torch.asarray(query).float().requires_grad_()
    packed = [to_torch(quantize(array, 4, groups=1)) for array in (key, value)]
    with skip_refusals():
        output = attention(query, *packed, is_causal=True, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(output, attention(query, *packed, is_causal=True,
                                                     backend=backend))  # fmt: skip
    with pytest.raises(_errors.BackendError, match="gradients do not pass through quantised keys"):
        output.sum().backward()
    arrays, edges = make_packed([(1, 9), (1, 3)])
    arrays = [torch.asarray(array).float() for array in arrays]
    (keys, tables), (values, _) = (make_pool(side.numpy(), edges[1]) for side in arrays[1:])
    output = attention_decode(
        arrays[0][:, None].requires_grad_(), torch.asarray(keys).float(),
        torch.asarray(values).float(), block_tables=tables, seq_lens=np.diff(edges[1]),
    )  # fmt: skip
    with pytest.raises(_errors.BackendError, match="through keys and values in a pool of blocks"):
        output.sum().backward()


def test_gradients_are_not_differentiated_again():
    leaves = [torch.asarray(array).requires_grad_() for array in make_inputs(5, 7)]
    output = attention(*leaves)
    once = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
    expected = torch.autograd.grad(definition(*leaves)[0].square().sum(), leaves)
    for got, wanted in zip(once, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)
    with pytest.raises(_errors.BackendError, match="attention: gradients cannot be differentiated"):
        torch.autograd.grad(once[0].square().sum(), leaves[1])


def test_nothing_is_recorded_where_nothing_is_learned():
    leaves = [torch.asarray(array).requires_grad_() for array in make_inputs(5, 7)]
    with torch.no_grad():
        assert not attention(*leaves).requires_grad
    assert not attention(*(leaf.detach() for leaf in leaves)).requires_grad
    with torch.inference_mode():
        attention(*leaves, is_causal=True)
    attention(*leaves, is_causal=True).sum().backward()
    assert leaves[0].grad.isfinite().all()


SCRIPT = """
import resource, sys, torch
from tesseral.attention import attention
length = int(sys.argv[1])
leaves = [torch.randn(1, 1, length, 8).requires_grad_() for _ in range(3)]
def run(rows):
    attention(*(leaf[:, :, :rows] for leaf in leaves), window=(length // 8, 0)).sum().backward()
run(600)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(length)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_grows_with_the_length_not_with_its_square():
    length = 16384
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(length)], capture_output=True, text=True, check=True
    )
    grown = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 4 * length**2 / 16  # of 1 GiB of scores
