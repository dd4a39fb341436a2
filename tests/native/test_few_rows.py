"""Norms and dense products of few rows: against float64, on every target, at every edge."""

import numpy as np
import pytest
import torch

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core.few_rows import DENSE_MOST, dense_rows, norm_rows
from tesseral.runtime.cpu import supported_targets


@pytest.fixture(params=supported_targets())
def target(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", [1, 7, 16, 33, 300])
def test_norms_are_within_two_roundings(target, dtype, n):
    generator = torch.Generator().manual_seed(n)
    room = torch.randn(5, n + 3, generator=generator).to(dtype)
    rows, weight = room[:, :n], torch.randn(n, generator=generator).to(dtype)
    out = torch.full((5, n), torch.nan, dtype=dtype)
    norm_rows(rows, weight, 1e-5, out, threads=2, target=target)
    x = rows.double()
    exact = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    step = max(torch.finfo(dtype).eps, 1e-6)
    assert ((out.double() - exact).abs() <= 2.1 * step * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("m", range(1, DENSE_MOST + 1))
def test_dense_products_are_within_a_rounding(target, dtype, m):
    generator = torch.Generator().manual_seed(m)
    for n, k in ((1, 32), (5, 96), (300, 64)):
        rows = torch.randn(m, k, generator=generator).to(dtype)
        weight = torch.randn(n, k, generator=generator).to(dtype)
        out = torch.full((m, n), torch.nan, dtype=dtype)
        dense_rows(rows, weight, out, threads=2, target=target)
        exact = rows.double() @ weight.double().mT
        sizes = rows.double().abs() @ weight.double().abs().mT
        bound = torch.finfo(dtype).eps * exact.abs() + k * 2.0**-23 * sizes
        assert ((out.double() - exact).abs() <= bound).all()


def test_numpy_arrays_are_taken_too():
    rows, weight = np.ones((2, 32), np.float32), np.ones(32, np.float32)
    out = np.empty_like(rows)
    norm_rows(rows, weight, 0.0, out)
    np.testing.assert_allclose(out, 1, rtol=1e-6)
    products = np.empty((2, 3), np.float32)
    dense_rows(rows, np.ones((3, 32), np.float32), products)
    assert (products == 32).all()


def test_arrays_that_do_not_fit_are_named():
    x, weight = torch.ones(2, 32), torch.ones(32)
    with pytest.raises(DtypeError, match="float64"):
        norm_rows(x.double(), weight, 1e-5, x.double())
    with pytest.raises(ShapeError, match="a matrix"):
        norm_rows(x[0], weight, 1e-5, x[0])
    with pytest.raises(ShapeError, match="norm_rows: weight must have shape"):
        norm_rows(x, weight[:5], 1e-5, x.clone())
    with pytest.raises(ShapeError, match="norm_rows: out must be 2 rows of 32"):
        norm_rows(x, weight, 1e-5, torch.ones(32, 2).T)
    with pytest.raises(DtypeError, match="float16"):
        dense_rows(x.half(), x.half(), torch.empty(2, 2).half())
    with pytest.raises(ParameterError, match="at most 4 rows"):
        dense_rows(torch.ones(5, 32), x, torch.empty(5, 2))
    with pytest.raises(ParameterError, match="multiple of 32"):
        dense_rows(x[:, :31], x[:, :31], torch.empty(2, 2))
    with pytest.raises(DtypeError, match="dense_rows: weight must be float32"):
        dense_rows(x, x.bfloat16(), torch.empty(2, 2))
