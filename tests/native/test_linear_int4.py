"""The native integer linear layer: exact on every target, at every edge, or a clear refusal."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseral import _native
from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core import int4
from tesseral.core.int4 import Int4Linears, linear_int4, takes_groups
from tesseral.core.packed import PackedTensor
from tesseral.core.packing import pack
from tesseral.runtime.cpu import supported_targets

TARGETS = supported_targets()


def make_inputs(m, n, k, values="random"):
    rng = np.random.default_rng((m, n, k))
    activations = rng.integers(-128, 128, (m, k), dtype=np.int8)
    codes = rng.integers(-8, 8, (n, k), dtype=np.int8)
    if values == "int4":
        activations = rng.integers(-8, 8, (m, k), dtype=np.int8)
    elif values == "largest":  # every partial sum as large as it can be
        activations[:], codes[:] = -128, 7
        codes[::2] = -8
    elif values == "mixed":
        activations = np.where(activations < 0, -128, 127).astype(np.int8)
        codes = np.where(codes < 0, -8, 7).astype(np.int8)
    elif values == "steep":  # rows of very different size lie in one block of rows
        activations[::2] //= 64
    return activations, codes


def oracle(activations, codes):
    return activations.astype(np.int64) @ codes.T.astype(np.int64)


def assert_exact(activations, codes, **options):
    got = linear_int4(activations, pack(codes, bits=4), **options)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, oracle(activations, codes))


@pytest.fixture(params=TARGETS)
def target(request):
    return request.param


@pytest.mark.parametrize("values", ["random", "int4", "largest", "mixed", "steep"])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 9])
def test_every_target_is_exact_around_every_vector_width(target, m, values):
    for k in (1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257, 511, 513, 1025):
        for n in (1, 4, 7):
            assert_exact(*make_inputs(m, n, k, values), target=target)


@pytest.mark.parametrize(
    "shape", [(300, 400, 96), (600, 70, 130), (6, 1000, 1030), (1, 1800, 2500)]
)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_tiles_and_threads_join_without_a_seam(target, shape, threads):
    assert_exact(*make_inputs(*shape), target=target, threads=threads)


@pytest.mark.parametrize("values", ["largest", "mixed"])
def test_the_longest_row_does_not_overflow(target, values):
    k = _native.LINEAR_INT4_MAX_K
    assert_exact(*make_inputs(1, 2, k, values), target=target)


@given(
    m=st.integers(0, 12),
    n=st.integers(0, 12),
    k=st.integers(1, 400),
    target=st.sampled_from(TARGETS),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_is_exact(m, n, k, target):
    assert_exact(*make_inputs(m, n, k), target=target)


@pytest.mark.parametrize("m", [1, 8])
def test_the_nibble_past_an_odd_row_is_ignored(target, m):
    activations, codes = make_inputs(m, 3, 7)
    weight = pack(codes, bits=4)
    weight[:, -1] |= 0x70
    got = linear_int4(activations, weight, target=target)
    np.testing.assert_array_equal(got, oracle(activations, codes))


@pytest.mark.parametrize("m", [1, 8])
def test_nothing_outside_out_is_written_and_no_alignment_is_needed(target, m):
    activations, codes = make_inputs(m, 6, 131)
    weight = pack(codes, bits=4)
    shifted = [np.empty(array.size + 1, array.dtype)[1:] for array in (activations, weight)]
    for copy, array in zip(shifted, (activations, weight), strict=True):
        copy[:] = array.ravel()
        copy.flags.writeable = False
    guarded = np.full((m + 2, 6), 0x55555555, dtype=np.int32)
    got = linear_int4(
        shifted[0].reshape(activations.shape),
        shifted[1].reshape(weight.shape),
        out=guarded[1:-1],
        target=target,
    )
    assert np.shares_memory(got, guarded)
    np.testing.assert_array_equal(got, oracle(activations, codes))
    assert (guarded[[0, -1]] == 0x55555555).all()


def test_callers_at_the_same_time_do_not_disturb_one_another():
    cases = [make_inputs(m, 200, 300) for m in (70, 80, 90)]
    failures = []

    def call(activations, codes):
        weight, truth = pack(codes, bits=4), oracle(activations, codes)
        for _ in range(20):
            got = linear_int4(activations, weight, threads=2)
            failures.extend(np.argwhere(got != truth).tolist())

    callers = [threading.Thread(target=call, args=case) for case in cases]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


def test_torch_tensors_come_back_as_torch_tensors():
    torch = pytest.importorskip("torch")
    activations, codes = make_inputs(3, 5, 33)
    rows, weight = torch.from_numpy(activations), torch.from_numpy(pack(codes, bits=4))
    got = linear_int4(rows, torch.nn.Parameter(weight, requires_grad=False))
    assert isinstance(got, torch.Tensor)
    np.testing.assert_array_equal(got.numpy(), oracle(activations, codes))
    out = torch.zeros((3, 5), dtype=torch.int32)
    assert linear_int4(rows, weight, out=out) is out
    assert torch.equal(out, got)


def test_numpy_arrays_bring_no_torch_in():
    program = (
        "import sys, numpy as np; from tesseral.core.int4 import linear_int4;"
        "linear_int4(np.ones((1, 2), np.int8), np.ones((1, 1), np.uint8));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_the_environment_and_the_arguments_reach_the_kernel(monkeypatch):
    seen = []

    class Recorder:
        LINEAR_INT4_MAX_K = _native.LINEAR_INT4_MAX_K

        @staticmethod
        def linear_int4(*arguments):
            seen.append(arguments[3:])

    monkeypatch.setattr(int4, "_native", Recorder)
    monkeypatch.setenv("TESSERAL_CPU_TARGET", "scalar")
    monkeypatch.setenv("TESSERAL_CPU_THREADS", "3")
    activations, codes = make_inputs(1, 1, 2)
    linear_int4(activations, pack(codes, bits=4))
    linear_int4(activations, pack(codes, bits=4), threads=7, target=TARGETS[0])
    assert seen == [(3, "scalar"), (7, TARGETS[0])]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activations": [[1]]}, DtypeError, "activations must be an array, got list"),
        ({"activations": np.ones((2, 6), np.int32)}, DtypeError, "must be int8, got int32"),
        ({"weight": np.ones((4, 3), np.int8)}, DtypeError, "weight must be uint8, got int8"),
        ({"out": np.ones((2, 4))}, DtypeError, "out must be int32, got float64"),
        ({"activations": np.ones(6, np.int8)}, ShapeError, r"must be a matrix, got shape \(6,\)"),
        ({"activations": np.ones((2, 0), np.int8)}, ShapeError, r"\(2, 0\) must have 1 to 1048576"),
        (
            {"activations": np.ones((1, 2**20 + 2), np.int8)},
            ShapeError,
            "must have 1 to 1048576 columns",
        ),
        ({"weight": np.ones((4, 4), np.uint8)}, ShapeError, "6 codes take 3 bytes a row"),
        ({"out": np.ones((4, 2), np.int32)}, ShapeError, r"out has shape \(4, 2\), needs \(2, 4\)"),
        (
            {"weight": np.ones((3, 4), np.uint8).T},
            ShapeError,
            r"weight of shape \(4, 3\) must be contiguous",
        ),
        ({"threads": 0}, ParameterError, "threads=0 is not a number of threads"),
        ({"target": "sse9"}, ParameterError, "target='sse9' is unknown; there are .*scalar"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    given = {"activations": np.ones((2, 6), np.int8), "weight": np.ones((4, 3), np.uint8)} | change
    activations, weight = given.pop("activations"), given.pop("weight")
    with pytest.raises(error, match=message):
        linear_int4(activations, weight, **given)


def test_another_device_is_refused():
    class OnAccelerator:
        def __dlpack__(self):
            raise AssertionError("must not be asked")

        def __dlpack_device__(self):
            return (2, 0)

    with pytest.raises(ParameterError, match=r"activations must be on the CPU, got DLPack device"):
        linear_int4(OnAccelerator(), np.ones((4, 3), np.uint8))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.ones((2, 6), np.float64), np.ones((4, 3), np.uint8)), "incompatible function"),
        ((np.ones((2, 12), np.int8)[:, ::2], np.ones((4, 3), np.uint8)), "incompatible function"),
    ],
)
def test_the_binding_itself_copies_and_converts_nothing(arrays, message):
    with pytest.raises(TypeError, match=message):
        _native.linear_int4(*arrays, np.ones((2, 4), np.int32), 1, "scalar")


def test_the_binding_itself_reads_nothing_past_the_arrays():
    rows, weight = np.ones((2, 6), np.int8), np.ones((4, 3), np.uint8)
    with pytest.raises(ValueError, match="shapes must be"):
        _native.linear_int4(rows, weight, np.ones((2, 5), np.int32), 1, "scalar")
    with pytest.raises(ValueError, match="no target sse9"):
        _native.linear_int4(rows, weight, np.ones((2, 4), np.int32), 1, "sse9")
    with pytest.raises(ValueError, match="out of range"):
        _native.linear_int4(rows, weight, np.ones((2, 4), np.int32), 0, "scalar")


def make_linears(m, sizes, k, group, *, bias=True):
    """Return int8 rows with scales, packed weights, biases, and float64 outputs."""
    rng = np.random.default_rng((m, k, group))
    rows = rng.integers(-128, 128, (m, k), dtype=np.int8)
    scale = rng.uniform(-1, 1, (m, 1)).astype(np.float32)
    weights, biases, oracles = [], [], []
    for n in sizes:
        codes = rng.integers(-8, 8, (n, k), dtype=np.int8)
        weight_scale = rng.uniform(0.5, 1.5, (n, k // group)).astype(np.float32)
        weights.append(PackedTensor.from_codes(codes, weight_scale, bits=4))
        biases.append(rng.standard_normal(n).astype(np.float32) if bias else None)
        values = codes * np.repeat(weight_scale.astype(np.float64), group, axis=1)
        oracle = scale * (rows.astype(np.float64) @ values.T)
        oracles.append(oracle + biases[-1] if bias else oracle)
    return rows, scale, weights, biases, oracles


def empty_outputs(oracles):
    return [np.full(oracle.shape, np.nan, np.float32) for oracle in oracles]


GROUPED = [(96, 16), (64, 32), (192, 64), (640, 128), (1536, 768)]


@pytest.mark.parametrize("m", [1, 3, 7, 12, 13, 27])
@pytest.mark.parametrize(("k", "group"), [*GROUPED, (129, 129), (512, 512)])
def test_linears_that_share_rows_scale_their_sums(target, m, k, group):
    rows, scale, weights, biases, oracles = make_linears(m, (70, 1, 64), k, group)
    for chosen in (biases, [None, biases[1], None]):
        outs = empty_outputs(oracles)
        Int4Linears(weights, chosen)(rows, scale, outs, threads=2, target=target)
        for out, oracle, bias, kept in zip(outs, oracles, biases, chosen, strict=True):
            expected = oracle if kept is not None else oracle - bias
            assert np.abs(out - expected).max() <= 1e-6 * np.abs(expected).max() * k**0.5


@pytest.mark.parametrize("m", [2, 40])
def test_with_one_scale_a_row_every_step_is_rounded_by_itself(target, m):
    rows, scale, weights, biases, _ = make_linears(m, (67,), 300, 300)
    sums = oracle(rows, weights[0].codes()).astype(np.float32)
    out = np.empty_like(sums)
    Int4Linears(weights, biases)(rows, scale, [out], target=target)
    np.testing.assert_array_equal(out, sums * scale * weights[0].scale.T + biases[0])


@pytest.mark.parametrize("m", [2, 40])
@pytest.mark.parametrize("stride", [64, 100, 512, 1024])
def test_rows_may_lie_apart(target, m, stride):
    rows, scale, weights, biases, oracles = make_linears(m, (5,), 64, 64)
    apart = np.full((m, stride), 77, dtype=np.int8)
    apart[:, :64] = rows
    (out,) = outs = empty_outputs(oracles)
    Int4Linears(weights, biases)(apart[:, :64], scale, outs, target=target)
    assert np.abs(out - oracles[0]).max() < 1e-3


@pytest.mark.parametrize("m", [3, 20])
def test_bfloat16_outputs_are_the_float32_ones_rounded(target, m):
    torch = pytest.importorskip("torch")
    rows, scale, weights, biases, oracles = make_linears(m, (37,), 256, 128)
    (exact,) = outs = empty_outputs(oracles)
    linears = Int4Linears(weights, biases)
    linears(rows, scale, outs, target=target)
    rounded = torch.empty(m, 37, dtype=torch.bfloat16)
    linears(torch.from_numpy(rows), torch.from_numpy(scale), [rounded], target=target)
    assert torch.equal(rounded, torch.from_numpy(exact).bfloat16())


def test_linears_know_the_arrays_that_they_were_made_with():
    _, _, weights, biases, _ = make_linears(1, (4, 4), 64, 64)
    linears = Int4Linears(weights, biases)
    arrays = [(w.data, w.scale, b) for w, b in zip(weights, biases, strict=True)]
    assert linears.reads(arrays)
    assert not linears.reads([arrays[0], (*arrays[1][:2], None)])
    assert not linears.reads(arrays[::-1])
    assert not linears.reads(arrays[:1])


def test_groups_are_whole_vectors_or_divide_them():
    assert takes_groups(100, 1)
    assert [takes_groups(384, 384 // group) for group in (8, 16, 32, 64, 96, 128, 192)] == [
        *(False, True, True, True, False, True, False)
    ]
    assert not takes_groups(100, 3)
    assert not takes_groups(100, 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"codes": np.ones((2, 64), np.int16)}, DtypeError, "codes must be int8, got int16"),
        ({"codes": np.ones((2, 63), np.int8)}, ShapeError, r"codes must have shape \(2, 64\)"),
        ({"codes": np.ones((2, 128), np.int8)[:, ::2]}, ShapeError, "codes must be neighbours"),
        ({"scale": np.ones((3, 1), np.float32)}, ShapeError, "scale must be 2 rows of 1 in C"),
        ({"scale": np.ones((2, 1))}, DtypeError, "scale must be float32, got float64"),
        ({"out": np.ones((2, 4), np.float64)}, DtypeError, "out must be float32 or bfloat16"),
        ({"out": np.ones((2, 5), np.float32)}, ShapeError, "out must be 2 rows of 4 in C"),
        ({"bias": np.ones(5, np.float32)}, ShapeError, "bias must be 1 rows of 4 in C"),
        ({"weight_scale": np.ones((4, 1))}, DtypeError, "weight_scale must be float32"),
        ({"weight_scale": np.ones((4, 8), np.float32)}, ShapeError, "8 scales a row"),
        ({"bits": 8}, ShapeError, "weights must be matrices of 4-bit codes"),
    ],
)
def test_linears_refuse_what_does_not_fit(change, error, message):
    bits = change.pop("bits", 4)
    weight_scale = change.pop("weight_scale", np.ones((4, 1), np.float32))
    weight = PackedTensor.from_codes(np.ones((4, 64), np.int8), weight_scale, bits=bits)
    given = {
        "codes": np.ones((2, 64), np.int8),
        "scale": np.ones((2, 1), np.float32),
        "out": np.ones((2, 4), np.float32),
    } | change
    with pytest.raises(error, match=message):
        Int4Linears([weight], [given.pop("bias", None)])(
            given["codes"], given["scale"], [given["out"]]
        )
