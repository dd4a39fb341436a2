"""Packed weights under floating rows: within a bound of float64 on every target, at every edge."""

import numpy as np
import pytest
import torch

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core.kronecker import kronecker_apply
from tesseral.core.packed import PackedTensor
from tesseral.core.packing import pack
from tesseral.core.quantized_linears import QuantizedLinears
from tesseral.core.rows import transform_rows
from tesseral.core.weight_only import WeightOnlyLinears
from tesseral.runtime.cpu import supported_targets

UNIT = 2.0**-24


@pytest.fixture(params=supported_targets())
def target(request):
    return request.param


def stored(n, k, groups=1, seed=0):
    """Return a weight that holds every code, and its values in float64."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (n, k), generator=generator, dtype=torch.int8)
    scale = torch.rand(n, groups, generator=generator) + 0.01
    values = codes.double() * scale.double().repeat_interleave(k // groups, 1)
    return PackedTensor(data=pack(codes, 4), scale=scale, bits=4, length=k), values


def assert_within_bound(out, x, values, bias=None):
    exact = x.double() @ values.mT
    sizes = x.double().abs() @ values.abs().mT
    if bias is not None:
        exact, sizes = exact + bias.double(), sizes + bias.double().abs()
    step = torch.finfo(out.dtype).eps / 2
    bound = (x.shape[1] + 4) * UNIT * sizes + (step + UNIT) * exact.abs()
    assert out.isfinite().all()
    assert ((out.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 7, 9, 40])
def test_products_are_within_the_bound(target, m, dtype, kind):
    generator = torch.Generator().manual_seed(m)
    for n, k, groups in (
        (1, 1, 1),
        (5, 33, 1),
        (70, 64, 4),
        (3, 127, 1),
        (9, 384, 3),
        (66, 256, 4),
        (5, 320, 5),
        (4, 2432, 19),
        (2, 1537, 1),
    ):
        x = torch.randn(m, k, generator=generator).to(dtype)
        weight, values = stored(n, k, groups, seed=k)
        bias = torch.randn(n, generator=generator) if n % 2 else None
        out = torch.full((m, n), torch.nan, dtype=kind)
        WeightOnlyLinears([weight], [bias])(x, [out], threads=2, target=target)
        assert_within_bound(out, x, values, bias)


@pytest.mark.parametrize("m", [1, 3, 300])
def test_tiles_threads_and_siblings_join_without_a_seam(target, m):
    weights, values = zip(*(stored(n, 192, seed=n) for n in (130, 3, 64)), strict=True)
    room = torch.randn(m, 200)
    x = room[:, 4:196]
    for threads in (1, 3):
        outs = [torch.full((m, len(v)), torch.nan) for v in values]
        WeightOnlyLinears(weights, [None] * 3)(x, outs, threads=threads, target=target)
        for out, dense in zip(outs, values, strict=True):
            assert_within_bound(out, x, dense)


@pytest.mark.parametrize("m", [1, 12])
def test_the_nibble_past_an_odd_row_is_ignored(target, m):
    weight, values = stored(3, 7)
    weight.data[:, -1] |= 0x70
    x, out = torch.randn(m, 7), torch.empty(m, 3)
    WeightOnlyLinears([weight], [None])(x, [out], target=target)
    assert_within_bound(out, x, values)


@pytest.mark.parametrize("m", [1, 12])
def test_what_is_not_finite_stays_so(target, m):
    weight, _ = stored(4, 32)
    x = torch.ones(m, 32)
    x[-1, 5] = torch.nan
    out = torch.empty(m, 4)
    WeightOnlyLinears([weight], [None])(x, [out], target=target)
    assert out[-1].isnan().all()
    assert out[:-1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_transformed_rows_are_products_rounded_once(target, dtype):
    for sizes in ((4, 5), (32, 64), (None, 16), (16, None), (None, None), (3, 33)):
        n = 48 if None in sizes else sizes[0] * sizes[1]
        factors = [None if size is None else torch.randn(size, size) for size in sizes]
        x = torch.randn(7, n + 3)[:, :n].to(dtype)
        out = torch.full((7, n), torch.nan, dtype=dtype)
        transform_rows(x, factors, out, threads=2, target=target)
        if sizes == (None, None):
            assert torch.equal(out, x)
            continue
        exact = kronecker_apply(x.double(), [None if f is None else f.double() for f in factors])
        sizes_of = kronecker_apply(
            x.double().abs(), [None if f is None else f.double().abs() for f in factors]
        )
        bound = torch.finfo(dtype).eps / 2 * exact.abs() + (n + 4) * 2 * UNIT * sizes_of
        assert ((out.double() - exact).abs() <= bound).all()


def test_numpy_arrays_are_taken_too():
    codes = np.array([[1, -8, 7], [0, 2, 0]], dtype=np.int8)
    weight = PackedTensor(
        data=pack(codes, bits=4), scale=np.full((2, 1), 0.5, np.float32), bits=4, length=3
    )
    out = np.empty((1, 2), np.float32)
    WeightOnlyLinears([weight], [None])(np.array([[1, 2, 3]], np.float32), [out])
    np.testing.assert_array_equal(out, [[3, 2]])


def test_layers_that_quantise_their_rows_name_what_does_not_fit():
    layer = QuantizedLinears([None, None], torch.ones(2), 4, [stored(4, 32)[0]], [None])
    x, out = torch.ones(2, 32), torch.empty(2, 4)
    with pytest.raises(DtypeError, match=r"QuantizedLinears: rows must be one of .* got float64"):
        layer(x.double(), [out])
    with pytest.raises(ShapeError, match="QuantizedLinears: rows must have shape"):
        layer(x[:, :31], [out])
    with pytest.raises(ShapeError, match="QuantizedLinears: out must be 2 rows of 4"):
        layer(x, [out.T])


def test_arrays_that_do_not_fit_are_named():
    layer = WeightOnlyLinears([stored(4, 32)[0]], [None])
    x, out = torch.ones(2, 32), torch.empty(2, 4)
    with pytest.raises(DtypeError, match=r"WeightOnlyLinears: rows must be one of .* got float16"):
        layer(x.half(), [out])
    with pytest.raises(DtypeError, match=r"outs one of .* got float32 and float16"):
        layer(x, [out.half()])
    with pytest.raises(ShapeError, match="WeightOnlyLinears: rows must have shape"):
        layer(x[:, :31], [out])
    with pytest.raises(ShapeError, match="WeightOnlyLinears: out must be 2 rows of 4"):
        layer(x, [out.T])
    with pytest.raises(ParameterError, match="threads"):
        layer(x, [out], threads=0)
    with pytest.raises(ShapeError, match="factors of sizes"):
        transform_rows(x, [torch.eye(3), torch.eye(4)], x.clone())
    with pytest.raises(DtypeError, match="float64"):
        transform_rows(x.double(), [None, None], x.double())
