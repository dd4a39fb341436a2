"""Linear layers over packed weights: exact integer sums, whatever the backend."""

import pytest
import torch

from tesseral._errors import BackendError
from tesseral.core.packed import PackedTensor
from tesseral.core.packing import pack, storage_bits
from tesseral.quantization.kernels.problem import LinearProblem, RowsProblem
from tesseral.quantization.kernels.registry import BACKENDS, ROWS
from tesseral.quantization.linear import QuantizedActivation, QuantizedInput, QuantizedLinear
from tesseral.quantization.numerics import symmetric_range

SIZES = [(1, 1), (7, 3), (16, 16), (33, 5), (128, 9)]


def codes(*shape, bits, seed=0):
    """Return codes that reach both ends of their range."""
    low, high = symmetric_range(bits)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int8)
    drawn[..., 0] = low
    return drawn


def problem(**changes):
    known = {"device": "cpu", "weight_bits": 4, "activation_bits": 4, "in_features": 16}
    return LinearProblem(**known | changes)


def able(registry, asked):
    """Return the backends that take a problem."""
    return [name for name, verdict in registry.explain(asked).items() if verdict.ok]


def packed(weight, bits):
    return PackedTensor.from_codes(weight, torch.ones(len(weight), 1), bits=bits)


def linear_and_source(n_in, n_out, *, weight_bits=4, activation_bits=4, bias=True, dtype=None):
    """Return a layer with random codes, scales and bias, and the input it reads."""
    dtype = torch.float32 if dtype is None else dtype
    source = QuantizedInput((None, None), bits=activation_bits, dtype=dtype)
    linear = QuantizedLinear(n_in, n_out, source, bias=bias, bits=weight_bits, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    state = {"weight": torch.empty(0)}
    if weight_bits == 16:
        state["weight_values"] = torch.randn(n_out, n_in, generator=generator)
    else:
        drawn = codes(n_out, n_in, bits=weight_bits)
        state["weight_codes"] = pack(drawn, storage_bits(weight_bits))
        state["weight_scale"] = torch.rand(n_out, 1, generator=generator) + 0.1
    if bias:
        state["bias"] = torch.randn(n_out, generator=generator)
    linear.load_state_dict(state)
    return linear, source


def rows(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("activation_bits", range(2, 9))
@pytest.mark.parametrize("weight_bits", [2, 4, 8])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_are_exact_on_every_backend(size, weight_bits, activation_bits):
    n_in, n_out = size
    asked = problem(weight_bits=weight_bits, activation_bits=activation_bits, in_features=n_in)
    x, weight = codes(2, 3, n_in, bits=activation_bits), codes(n_out, n_in, bits=weight_bits)
    for name, verdict in BACKENDS.explain(asked).items():
        if verdict.ok:
            sums = BACKENDS.choose(asked, name).linear(x, packed(weight, weight_bits))
            assert torch.equal(sums.long(), x.long() @ weight.long().mT)


@pytest.mark.parametrize("weight_bits", [4, 8])
def test_portable_sums_stay_exact_past_what_float32_holds(weight_bits):
    n_in = 20_001
    x = torch.full((1, n_in), 127, dtype=torch.int8)
    weight = torch.full((1, n_in), 2 ** (weight_bits - 1) - 1, dtype=torch.int8)
    weight[0, 0] -= 1
    asked = problem(weight_bits=weight_bits, activation_bits=8, in_features=n_in)
    sums = BACKENDS.choose(asked, "portable").linear(x, packed(weight, weight_bits))
    assert sums.item() == (x.long() * weight.long()).sum().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_layer_gives_the_same_bits_on_every_backend(size, dtype, monkeypatch):
    linear, _ = linear_and_source(*size, dtype=dtype)
    outputs = []
    for name in able(BACKENDS, problem()):
        monkeypatch.setenv(BACKENDS.env, name)
        outputs.append(linear(rows(2, 3, size[0], dtype=dtype)))
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation_bits", [3, 4, 8, 16])
@pytest.mark.parametrize("weight_bits", [2, 3, 4, 5, 8, 16])
def test_a_layer_multiplies_the_values_that_its_codes_stand_for(weight_bits, activation_bits, bias):
    linear, source = linear_and_source(
        13, 5, weight_bits=weight_bits, activation_bits=activation_bits, bias=bias
    )
    x = rows(4, 13)
    prepared = source.quantize(x)
    values = prepared.dequantize() if isinstance(prepared, QuantizedActivation) else prepared
    expected = values.double() @ linear.dense_weight().double().mT
    if bias:
        expected = expected + linear.bias.double()
    assert linear.dense_weight().shape == (5, 13)
    assert torch.allclose(linear(x).double(), expected, atol=1e-5)


@pytest.mark.parametrize("bits", [(4, 4), (4, 16), (16, 4), (16, 16)], ids=str)
def test_the_output_has_the_type_of_the_input(bits):
    linear, _ = linear_and_source(16, 3, weight_bits=bits[0], activation_bits=bits[1])
    assert linear(rows(2, 16).to(torch.bfloat16)).dtype == torch.bfloat16


def test_a_layer_holds_four_bits_a_weight():
    linear, _ = linear_and_source(128, 9)
    assert linear.weight_codes.nbytes == 128 * 9 // 2
    assert "in=128" not in repr(linear)
    assert "128, 9, bits=4" in repr(linear)


def test_siblings_share_one_quantised_input():
    source = QuantizedInput((4, 4), bits=4)
    layers = [QuantizedLinear(16, n, source, bias=False, bits=4) for n in (3, 5)]
    assert source.readers == 2
    assert all("transform" not in name for layer in layers for name in layer.state_dict())
    calls = []
    source.compute, original = lambda x: calls.append(x) or original(x), source.compute
    x = rows(2, 16)
    for layer in layers:
        layer(x)
    assert len(calls) == 1


def test_the_portable_backend_supports_everything_and_the_cpu_four_bits_on_the_cpu():
    verdicts = BACKENDS.explain(problem())
    assert verdicts["portable"].ok
    assert verdicts["cpu"].ok
    assert "4-bit weights, got 8 bits" in BACKENDS.explain(problem(weight_bits=8))["cpu"].reason
    assert "got device 'cuda'" in BACKENDS.explain(problem(device="cuda"))["cpu"].reason


def test_a_backend_asked_for_by_name_runs_or_raises(monkeypatch):
    monkeypatch.setenv(BACKENDS.env, "cpu")
    linear, _ = linear_and_source(16, 3, weight_bits=8)
    with pytest.raises(BackendError, match=r"'cpu' \(from TESSERAL_LINEAR_BACKEND\) cannot run"):
        linear(rows(1, 16))


def make_siblings(*, sizes=(24, 5, 7), group_size=None, dtype=torch.float32):
    """Return an input with random factors and layers over it."""
    generator = torch.Generator().manual_seed(3)
    source = QuantizedInput((4, 16), bits=4, dtype=dtype)
    for name in ("factor0", "factor1"):
        factor = source.transform.get_buffer(name)
        factor.copy_(torch.linalg.qr(torch.randn(*factor.shape, generator=generator))[0])
    layers = []
    for n in sizes:
        layer = QuantizedLinear(
            64, n, source, bias=True, bits=4, group_size=group_size, dtype=dtype
        )
        layer.weight_codes.copy_(pack(codes(n, 64, bits=4, seed=n), 4))
        layer.weight_scale.uniform_(0.5, 1.5, generator=generator)
        layer.bias.normal_(generator=generator)
        layers.append(layer)
    return source, layers


@pytest.mark.parametrize("rows_backend", ["cpu", "portable"])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_siblings_are_computed_in_one_call_and_give_what_each_gives_alone(
    group_size, dtype, rows_backend, monkeypatch
):
    monkeypatch.setenv(ROWS.env, rows_backend)
    _, layers = make_siblings(group_size=group_size)
    joined = rows_backend == "cpu"  # quantises in the same call, so for all layers at once
    method, place = ("linears_of_rows", 5) if joined else ("linears", 3)
    backend, calls = type(BACKENDS.choose(layers[0]._problem())), []
    original = getattr(backend, method)
    monkeypatch.setattr(backend, method, lambda *a: calls.append(len(a[place])) or original(*a))
    x = rows(2, 3, 64).to(dtype)
    together = [layer(x) for layer in layers]
    assert calls == [3]
    assert layers[0]._source[0]._now.x is None
    # in another order
    alone = [layer(x.clone()) for layer in reversed(layers)][::-1]
    assert calls[1:] == ([3, 3, 3] if joined else [1, 1, 3])
    assert all(torch.equal(a, b) and a.dtype == dtype for a, b in zip(together, alone, strict=True))


def test_the_joined_call_gives_the_bits_of_its_two_parts(monkeypatch):
    source, layers = make_siblings()
    x = rows(3, 7, 128)[..., 5:69]  # tokens that are farther apart than they are long
    joined = [layer(x) for layer in layers]
    activation = source.quantize(x)
    stored = [layer.stored for layer in layers]
    parts = BACKENDS.get("cpu").linears(activation.codes, activation.scale, stored, x.dtype, {})
    assert all(torch.equal(a, b) for a, b in zip(joined, parts, strict=True))


def test_a_layer_called_twice_with_one_input_gives_its_output_twice():
    _, layers = make_siblings()
    x = rows(2, 64)
    assert torch.equal(layers[0](x), layers[0](x))


def test_siblings_notice_that_weights_were_moved():
    _, layers = make_siblings()
    x = rows(2, 64)
    first = [layer(x) for layer in layers]
    for layer in layers:
        layer.weight_codes = layer.weight_codes.clone()
        layer.weight_scale = 2 * layer.weight_scale
        layer.bias = torch.zeros_like(layer.bias)
    moved = [layer(rows(2, 64)) for layer in layers]
    assert all(not torch.allclose(a, b) for a, b in zip(first, moved, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_rows_backends_agree(dtype):
    source, _ = make_siblings()
    asked = RowsProblem(
        device="cpu", dtype=str(dtype).removeprefix("torch."), working_dtype="float32", bits=4
    )
    x = rows(2, 5, 64).to(dtype)
    found = {
        name: ROWS.choose(asked, name).quantize(x, source.transform.factors, source.clip, 4, {})
        for name in able(ROWS, asked)
        if name != "triton"  # able where it is interpreted, and tested on its own
    }
    (codes_a, scale_a), (codes_b, scale_b) = found.values()
    # the kernels may transform bfloat16 rows by products of 16 bits
    assert torch.allclose(scale_a, scale_b, rtol=2**-9 if dtype == torch.bfloat16 else 1e-5)
    assert codes_a.shape == codes_b.shape == (2, 5, 64)
    assert (codes_a != codes_b).float().mean() < 0.01


def test_a_watched_transform_is_called_and_changes_little():
    source, layers = make_siblings(sizes=(9,))
    x, seen = rows(2, 64), []
    expected = layers[0](x)
    with torch.no_grad():
        handle = source.transform.register_forward_hook(lambda _, __, y: seen.append(y))
        watched = layers[0](x)
    handle.remove()
    assert len(seen) == 1
    assert torch.allclose(watched, expected, rtol=0.2, atol=0.2 * expected.abs().max().item())


def test_what_the_native_kernels_do_not_take_goes_to_torch():
    reasons = BACKENDS.explain(problem(in_features=96, groups=4))
    assert "one scale a row or one for 16" in reasons["cpu"].reason
    given = {"device": "cpu", "dtype": "float32", "working_dtype": "float32", "bits": 4}
    for change, reason in (
        ({"device": "cuda"}, "got device 'cuda'"),
        ({"dtype": "float64"}, "got float64"),
        ({"working_dtype": "float64"}, "computes in float32, got float64"),
    ):
        assert reason in ROWS.explain(RowsProblem(**given | change))["cpu"].reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_gives_the_same_bits_whoever_shares_the_call(dtype):
    _, layers = make_siblings()
    x = rows(40, 64).to(dtype)
    together = [layer(x) for layer in layers]
    for count in (1, 3, 5, 13):  # read as stored, or unpacked
        alone = [layer(x[7 : 7 + count].clone()) for layer in layers]
        for all_of_them, some in zip(together, alone, strict=True):
            assert torch.equal(all_of_them[7 : 7 + count], some)
