"""Rows of numbers times packed weights by Triton's kernels, against float64."""

import dataclasses

import pytest
import torch

from support.kernels import DEVICE, kernels, needs_kernels
from tesseral._errors import BackendError
from tesseral.core.kronecker import kronecker_apply
from tesseral.core.packing import pack
from tesseral.quantization.kernels.problem import StoredWeight
from tesseral.quantization.kernels.weight_only import WEIGHT_ONLY, WeightOnlyProblem
from tesseral.quantization.linear import QuantizedInput, QuantizedLinear
from tesseral.runtime import triton as runtime_triton
from tesseral.runtime.cuda import device as cuda

DTYPES = [torch.float16] if DEVICE == "cpu" else [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def _kernels():
    with kernels():
        yield


@pytest.fixture
def _poison():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def made(m, length, outputs, *, bias=True):
    """Return rows of very different sizes, and a weight of all codes."""
    generator = torch.Generator().manual_seed(m + length)
    x = torch.randn(m, length, generator=generator) * 10.0 ** (torch.arange(m) % 5 - 3)[:, None]
    codes = torch.randint(-8, 8, (outputs, length), generator=generator, dtype=torch.int8)
    codes[:, 0] = -8
    scale = torch.rand(outputs, 1, generator=generator) + 0.1
    added = torch.randn(outputs, generator=generator) if bias else None
    stored = StoredWeight(pack(codes, 4), scale, added, 4, length)
    return x.to(DEVICE), StoredWeight(*(a.to(DEVICE) if torch.is_tensor(a) else a for a in stored))


def exact(x, weight):
    y = x.double() @ weight.packed.dequantize(torch.float64).mT
    return y if weight.bias is None else y + weight.bias.double()


def assert_rows(found, expected, loose):
    apart = (found.double() - expected).norm(dim=1)
    assert (apart <= loose * expected.norm(dim=1)).all()


@needs_kernels
@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "length", "outputs", "options"),
    [
        (1, 64, 33, {"block": (8, 16, 16)}),
        (5, 192, 20, {"block": (8, 16, 16), "splits": 3, "stages": 2}),
        (19, 128, 48, {"block": (16, 32, 32), "splits": 1}),
        (3, 320, 16, {"splits": 2}),
    ],
)
def test_few_rows_are_as_exact_as_their_type(m, length, outputs, options, dtype):
    from tesseral.quantization.kernels.triton.weight_only import few_rows, spread

    x, weight = made(m, length, outputs, bias=m != 3)
    x = x.to(dtype)
    for _ in range(2):  # the second finds what the first left behind
        found = few_rows(spread(x), weight, dtype, **options)
        assert found.dtype == dtype
        assert_rows(found, exact(x, weight), 1e-3 if dtype == torch.float16 else 4e-3)
    # sums themselves are those of float32
    assert_rows(few_rows(spread(x), weight, torch.float32, **options), exact(x, weight), 2e-6)


@needs_kernels
@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("m", [0, 1, 70])
def test_the_backend_gives_what_torch_gives(m):
    x, weight = made(m, 64, 24)
    x = x.half().double()  # as a transform may leave them
    backend = WEIGHT_ONLY.get("triton")
    found = backend.linear(x[None], weight, torch.float16, {})
    assert found.shape == (1, m, 24)
    assert_rows(found[0], exact(x, weight), 2e-3)


@needs_kernels
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_and_in_its_row(bad):
    x, weight = made(3, 64, 8)
    x[1, 5] = bad
    found = WEIGHT_ONLY.get("triton").linear(x, weight, torch.float16, {})
    assert found.isfinite().all(1).tolist() == [True, False, True]


@needs_kernels
def test_values_of_codes_are_those_that_they_stand_for():
    from tesseral.quantization.kernels.triton.weight_only import values_of

    weight = made(1, 64, 24)[1]
    expected = weight.packed.dequantize(torch.float32).half()
    assert torch.equal(values_of(weight, torch.float16), expected)


@needs_kernels
def test_a_layer_of_packed_weights_alone_asks_the_backends(monkeypatch):
    source = QuantizedInput((8, 8), bits=16).to(DEVICE)
    layer = QuantizedLinear(64, 24, source, bias=True, bits=4).to(DEVICE)
    x, weight = made(2, 64, 24)
    layer.weight_codes.copy_(weight.codes)
    layer.weight_scale.copy_(weight.scale)
    x = x.half()
    found = {}
    for name in ("triton", "portable"):
        monkeypatch.setenv(WEIGHT_ONLY.env, name)
        with torch.no_grad():
            found[name] = layer(x)
    assert found["triton"].dtype == torch.float16
    assert_rows(found["triton"], found["portable"].double(), 2e-3)


@needs_kernels
@pytest.mark.parametrize("sizes", [(8, 16), (12, 16), (16, None), (None, 16), (32, 2)])
@pytest.mark.parametrize("m", [1, 3, 70])
def test_siblings_read_rows_that_were_transformed_once(m, sizes, monkeypatch):
    width = (sizes[0] or 12) * (sizes[1] or 12)
    source = QuantizedInput(sizes, bits=16).to(DEVICE)
    for seed, factor in enumerate(source.transform.buffers()):
        generator = torch.Generator().manual_seed(seed)
        factor.copy_(torch.randn(factor.shape, generator=generator) * 0.1 * (1 + 9 * seed))
    layers = [QuantizedLinear(width, n, source, bias=False, bits=4).to(DEVICE) for n in (24, 40)]
    x, _ = made(m, width, 8)
    x = x.half()
    for layer in layers:
        weight = made(1, width, layer.out_features)[1]
        layer.weight_codes.copy_(weight.codes)
        layer.weight_scale.copy_(weight.scale)
    monkeypatch.setenv(WEIGHT_ONLY.env, "triton")
    with torch.no_grad():
        found = [layer(x) for layer in layers]
    factors = [None if f is None else f.double() for f in source.transform.factors]
    transformed = kronecker_apply(x.double(), factors)
    for layer, y in zip(layers, found, strict=True):
        assert y.dtype == torch.float16
        assert_rows(y, exact(transformed, layer.stored), 4e-3)


PROBLEM = WeightOnlyProblem(
    device="cuda", dtype="float16", working_dtype="float32", weight_bits=4, in_features=64
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "mps"}, "runs on CUDA devices"),
        ({"working_dtype": "float64"}, "reads scales in float32"),
        ({"dtype": "float32"}, "gives float16 and bfloat16, not float32"),
        ({"weight_bits": 8}, "reads 4-bit weights, got 8 bits"),
        ({"groups": 4}, "takes one scale a row, got 4"),
        ({"in_features": 96}, "takes multiples of 64 columns up to 32768, got 96"),
        ({"gradient": True}, "gives no gradients"),
    ],
    ids=str,
)
def test_what_the_kernel_does_not_take_is_said(change, reason, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(cuda, "capability", lambda _: (9, 0))
    monkeypatch.setattr(runtime_triton, "installed", lambda *_: True)
    assert WEIGHT_ONLY.get("triton").supports(PROBLEM).ok
    refused = dataclasses.replace(PROBLEM, **change)
    assert reason in WEIGHT_ONLY.get("triton").supports(refused).reason
    assert WEIGHT_ONLY.choose(refused).name == "portable"
    with pytest.raises(BackendError, match="triton"):
        WEIGHT_ONLY.choose(refused, "triton")
