"""Layers that quantise what they read: the bits of both parts, on any number of threads."""

import numpy as np
import pytest

from tesseral.core.int4 import Int4Linears
from tesseral.core.packed import PackedTensor
from tesseral.core.quantized_linears import QuantizedLinears
from tesseral.core.rows import RowQuantizer
from tesseral.runtime.cpu import supported_targets


@pytest.fixture(params=supported_targets())
def target(request):
    return request.param


def make_parts(k, sizes, groups):
    rng = np.random.default_rng((k, *sizes))
    factors = [np.linalg.qr(rng.standard_normal((n, n)))[0].astype(np.float32) for n in (32, 32)]
    weights = [
        PackedTensor.from_codes(
            rng.integers(-8, 8, (n, k), dtype=np.int8),
            rng.uniform(0.5, 1.5, (n, groups)).astype(np.float32),
            bits=4,
        )
        for n in sizes
    ]
    return factors, np.ones(2, np.float32), weights


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("m", [1, 2, 12, 13])  # 12 rows are quantised on the threads of products
def test_any_number_of_threads_gives_the_bits_of_both_parts(target, m, groups):
    k, sizes = 1024, (6001, 3, 500)  # enough that three threads are woken for one row
    factors, clip, weights = make_parts(k, sizes, groups)
    biases = [None, np.ones(3, np.float32), None]
    rows = np.random.default_rng(m).standard_normal((m, k)).astype(np.float32)
    codes, scale = np.empty((m, k), np.int8), np.empty((m, 1), np.float32)
    RowQuantizer(factors, clip, 4)(rows, codes, scale, threads=1, target=target)
    expected = [np.empty((m, n), np.float32) for n in sizes]
    Int4Linears(weights, biases)(codes, scale, expected, threads=1, target=target)
    layers = QuantizedLinears(factors, clip, 4, weights, biases)
    for threads in (1, 2, 3, 3, 3, 8):
        outs = [np.full((m, n), np.nan, np.float32) for n in sizes]
        layers(rows, outs, threads=threads, target=target)
        for out, wanted in zip(outs, expected, strict=True):
            np.testing.assert_array_equal(out, wanted)


def test_a_row_that_is_not_finite_gives_nan(target):
    factors, clip, weights = make_parts(1024, (6001,), 1)
    rows, out = np.ones((2, 1024), np.float32), np.zeros((2, 6001), np.float32)
    rows[1, 7] = np.inf
    QuantizedLinears(factors, clip, 4, weights, [None])(rows, [out], threads=3, target=target)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()
