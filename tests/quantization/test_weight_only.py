"""Packed weights under inputs that are not quantised: the values of torch, whatever the backend."""

import pytest
import torch

from tesseral._errors import BackendError
from tesseral.core.packing import pack
from tesseral.quantization.kernels.weight_only import WEIGHT_ONLY, WeightOnlyProblem
from tesseral.quantization.linear import QuantizedInput, QuantizedLinear

GIVEN = {"device": "cpu", "dtype": "float32", "working_dtype": "float32", "in_features": 64}
GIVEN |= {"weight_bits": 4}


def make_layer(*, sizes=(4, 16), group_size=None, dtype=torch.float32):
    """Return a layer with random codes over an input with random orthogonal factors."""
    generator = torch.Generator().manual_seed(3)
    source = QuantizedInput(sizes, bits=16, dtype=dtype)
    for factor in source.transform.buffers():
        factor.copy_(torch.linalg.qr(torch.randn(factor.shape, generator=generator))[0])
    layer = QuantizedLinear(64, 9, source, bias=True, bits=4, group_size=group_size, dtype=dtype)
    codes = torch.randint(-8, 8, (9, 64), generator=generator, dtype=torch.int8)
    layer.weight_codes.copy_(pack(codes, 4))
    layer.weight_scale.uniform_(0.5, 1.5, generator=generator)
    layer.bias.normal_(generator=generator)
    return layer


def exact(layer, x):
    values = layer._source[0].transform.double()(x.double())
    return values @ layer.dense_weight().double().mT + layer.bias.double()


@pytest.mark.parametrize("name", ["cpu", "portable"])
@pytest.mark.parametrize("sizes", [(4, 16), (None, None)], ids=str)
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 30])
def test_a_layer_multiplies_dense_rows(name, sizes, group_size, dtype, tokens, monkeypatch):
    monkeypatch.setenv(WEIGHT_ONLY.env, name)
    layer = make_layer(sizes=sizes, group_size=group_size)
    x = torch.randn(2, tokens, 64).to(dtype)
    found = layer(x)
    expected = exact(layer, x)
    assert (found.dtype, found.shape) == (dtype, expected.shape)
    # bfloat16 rows are rounded once more after the transform
    step = 3e-5 if dtype == torch.float32 else 2**-6
    assert torch.allclose(found.double(), expected, rtol=step, atol=step * expected.abs().max())


def test_float64_and_gradients_go_through_torch():
    layer, x = make_layer(dtype=torch.float64), torch.randn(3, 64, dtype=torch.float64)
    assert torch.allclose(layer(x), exact(layer, x), rtol=1e-12)
    layer, x = make_layer(), torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_moved_weights_are_noticed():
    layer, x = make_layer(), torch.randn(1, 64)
    before = layer(x)
    layer.weight_scale = 2 * layer.weight_scale
    layer.bias = torch.zeros_like(layer.bias)
    assert not torch.allclose(layer(x.clone()), before)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "cuda"}, "got device 'cuda'"),
        ({"dtype": "float16"}, "got float16"),
        ({"working_dtype": "float64"}, "computes in float32"),
        ({"weight_bits": 8}, "got 8 bits"),
        ({"in_features": 96, "groups": 4}, "one scale a row or one for 16"),
        ({"gradient": True}, "no gradients"),
    ],
    ids=str,
)
def test_what_the_kernel_does_not_take_is_refused_with_a_reason(change, reason):
    assert reason in WEIGHT_ONLY.explain(WeightOnlyProblem(**GIVEN | change))["cpu"].reason


def test_a_backend_asked_for_by_name_runs_or_raises(monkeypatch):
    monkeypatch.setenv(WEIGHT_ONLY.env, "cpu")
    with pytest.raises(BackendError, match=r"TESSERAL_WEIGHT_ONLY_BACKEND"):
        make_layer()(torch.randn(1, 64).half())
