"""Heads that the native kernel transforms and encodes: those of torch's operations, to the bit."""

import pytest
import torch

from tesseral._errors import BackendError, DtypeError, ParameterError, ShapeError
from tesseral.core.head_rows import encode_heads, transform_heads
from tesseral.quantization.kernels.heads import HEADS, HeadsProblem, new_places
from tesseral.quantization.kvcodec import KVCodec
from tesseral.runtime.cpu import supported_targets

TYPES = [torch.float32, torch.bfloat16, torch.float16]


def heads(*shape, dtype, seed=0):
    """Return heads with some that are constant, huge or tiny."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x.flatten(0, -2)[::7] *= 1e5 if dtype != torch.float16 else 1e2
    x.flatten(0, -2)[1::7] *= 1e-6
    x.flatten(0, -2)[2::7] = 3.0
    return x.to(dtype)


def of_torch(x, factor, clip, bits):
    places = new_places(x, bits)
    HEADS.get("portable").encode(x, factor, clip, bits, places)
    return places


@pytest.mark.parametrize("target", supported_targets())
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_codes_are_those_of_torch(target, bits, dtype):
    clip = torch.tensor([0.9, 0.7])
    for shape in ((1, 1, 1, 16), (2, 3, 5, 48), (1, 2, 33, 64)):
        x = heads(*shape, dtype=dtype, seed=bits)
        # a cache's rows are farther apart than they are long
        room = new_places(torch.empty(*shape[:2], shape[2] + 4, shape[3]), bits)
        for array in room:
            array.view(torch.uint8).fill_(99)
        places = [array[:, :, 2:-2] for array in room]
        encode_heads(x, None, clip, bits, *places, threads=2, target=target)
        for got, expected in zip(places, of_torch(x, None, clip, bits), strict=True):
            assert torch.equal(got, expected)
        assert all((array[:, :, :2].view(torch.uint8) == 99).all() for array in room)
        assert all((array[:, :, -2:].view(torch.uint8) == 99).all() for array in room)


@pytest.mark.parametrize("target", supported_targets())
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_transformed_heads_are_products_rounded_once(target, dtype):
    x = torch.randn(2, 3, 9, 64).transpose(1, 2).to(dtype)
    factor = torch.randn(64, 64)
    out = torch.full(x.shape, torch.nan, dtype=dtype)
    transform_heads(x, factor, out, threads=2, target=target)
    exact = x.double() @ factor.double()
    bound = (
        torch.finfo(dtype).eps * exact.abs() + 64 * 2.0**-22 * x.abs().max() * factor.abs().max()
    )
    assert ((out.double() - exact).abs() <= bound).all()
    codes = new_places(x, 4)
    encode_heads(x, factor, torch.ones(2), 4, *codes, target=target)
    for got, expected in zip(codes, of_torch(out, None, torch.ones(2), 4), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", HEADS.names)
def test_a_codec_gives_the_same_on_every_backend(name, monkeypatch):
    codec = KVCodec(32, key_bits=4, value_bits=8)
    for transform in (codec.key_transform, codec.query_transform):
        transform.factor0.copy_(torch.linalg.qr(torch.randn(32, 32))[0])
    key, value = torch.randn(2, 2, 3, 5, 32).unbind()
    expected = [side.dequantize(torch.float32) for side in codec.encode(key, value)]
    monkeypatch.setenv(HEADS.env, name)
    for side, other in zip(codec.encode(key, value), expected, strict=True):
        assert torch.allclose(side.dequantize(torch.float32), other, atol=0.2)
    query = torch.randn(2, 6, 5, 32)
    exact = query @ codec.query_transform.factor0
    assert torch.allclose(codec.transform_query(query), exact, atol=1e-5)


def test_queries_pass_gradients():
    codec = KVCodec(32, key_bits=4, value_bits=4)
    query = torch.randn(1, 2, 3, 32, requires_grad=True)
    codec.transform_query(query).sum().backward()
    assert torch.equal(query.grad, torch.ones_like(query))


def test_what_the_kernel_does_not_take_is_refused_with_a_reason(monkeypatch):
    given = {"device": "cpu", "dtype": "float32", "working_dtype": "float32", "head_dim": 64}
    for change, reason in (
        ({"device": "cuda"}, "got device 'cuda'"),
        ({"dtype": "float64"}, "got float64"),
        ({"working_dtype": "float64"}, "computes in float32, got float64"),
        ({"head_dim": 72}, "a multiple of 16 elements, got 72"),
        ({"gradient": True}, "no gradients"),
    ):
        assert reason in HEADS.explain(HeadsProblem(**given | change))["cpu"].reason
    monkeypatch.setenv(HEADS.env, "cpu")
    with pytest.raises(BackendError, match="72"):
        KVCodec(72, key_bits=4, value_bits=4).transform_query(torch.randn(1, 1, 1, 72))


def test_arrays_that_do_not_fit_are_named():
    x, places = torch.randn(1, 2, 3, 16), new_places(torch.empty(1, 2, 3, 16), 4)
    clip = torch.ones(2)
    with pytest.raises(ParameterError, match="bits=9"):
        encode_heads(x, None, clip, 9, *places)
    with pytest.raises(DtypeError, match="float64"):
        encode_heads(x.double(), None, clip, 4, *places)
    with pytest.raises(ShapeError, match="multiple of 16"):
        encode_heads(x[..., :15], None, clip, 4, *places)
    with pytest.raises(ShapeError, match="data must have shape"):
        encode_heads(x, None, clip, 8, *places)
    with pytest.raises(ShapeError, match="neighbours"):
        encode_heads(x.mT.contiguous().mT, None, clip, 4, *places)
    with pytest.raises(DtypeError, match="factor must be float32"):
        transform_heads(x, torch.eye(16).double(), x.clone())
    with pytest.raises(ShapeError, match="C order"):
        transform_heads(x, torch.eye(32)[:16, :16], x.clone())
    with pytest.raises(ShapeError, match="same steps"):
        encode_heads(
            x,
            None,
            clip,
            4,
            *places[:2],
            places.offset.expand(1, 2, 3, 1).mT.mT[:, :1].expand(1, 2, 3, 1),
        )
