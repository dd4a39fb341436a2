"""The native transform of rows into codes: against float64, on every target, at every edge."""

import numpy as np
import pytest

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core.kronecker import kronecker_apply
from tesseral.core.rows import quantize_rows
from tesseral.runtime.cpu import supported_targets

TARGETS = supported_targets()
SIZES = [(1, 1), (1, 5), (3, 7), (8, 16), (5, 33), (13, 20), (64, 64), (12, 80), (7, 148)]


@pytest.fixture(params=TARGETS)
def target(request):
    return request.param


def oracle_scale(low, high, bits):
    """Return the scale of a range, in the type of the range."""
    far, near = np.maximum(-low, high), np.minimum(-low, high)
    size = np.maximum(np.maximum(far / 2 ** (bits - 1), near / (2 ** (bits - 1) - 1)), 2.0**-60)
    return np.where(high > -low, -size, size).astype(low.dtype)


def oracle(rows, factors, clip, bits):
    """Return values and scales in the type of the rows."""
    values = rows if factors[0] is factors[1] is None else kronecker_apply(rows, factors)
    clip = clip.astype(rows.dtype)
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    return values, oracle_scale(low * clip[0], high * clip[1], bits)


def run(rows, factors=(None, None), clip=(1, 1), bits=4, *, apart=0, **options):
    m, n = rows.shape
    codes = np.full((m, n + apart), 99, dtype=np.int8)
    scale = np.full((m, 1), np.nan, dtype=np.float32)
    clip = np.asarray(clip, dtype=np.float32)
    quantize_rows(rows, factors, clip, bits, codes[:, :n], scale, **options)
    assert (codes[:, n:] == 99).all()
    return codes[:, :n], scale


def make_inputs(left, right, m, *, with_left, with_right):
    rng = np.random.default_rng((left, right, m))
    rows = rng.standard_normal((m, left * right)).astype(np.float32)
    sizes = (left if with_left else None, right if with_right else None)
    return rows, tuple(
        None if n is None else rng.standard_normal((n, n)).astype(np.float32) for n in sizes
    )


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("clip", [(1, 1), (0.9, 0.6)], ids=str)
def test_without_factors_codes_and_scales_are_those_of_the_formula(target, bits, clip):
    for n in (1, 3, 15, 16, 17, 100, 4096):
        rows = np.random.default_rng(n).standard_normal((3, n)).astype(np.float32)
        values, expected = oracle(rows, (None, None), np.array(clip, np.float32), bits)
        codes, scale = run(rows, clip=clip, bits=bits, target=target)
        np.testing.assert_array_equal(scale, expected)
        limits = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        np.testing.assert_array_equal(codes, np.rint(values / expected).clip(*limits))


@pytest.mark.parametrize("factors", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize(("left", "right"), SIZES)
def test_transformed_rows_are_within_half_a_step(target, left, right, factors):
    for m in (1, 5):
        rows, matrices = make_inputs(left, right, m, with_left=factors[0], with_right=factors[1])
        wide = tuple(None if f is None else f.astype(np.float64) for f in matrices)
        values, expected = oracle(rows.astype(np.float64), wide, np.ones(2), 8)
        codes, scale = run(rows, matrices, bits=8, apart=3, threads=2, target=target)
        assert np.abs(scale / expected - 1).max() < 1e-5
        assert (np.abs(codes * scale.astype(np.float64) - values) <= 0.501 * np.abs(scale)).all()


def test_rounding_takes_ties_to_even(target):
    rows = np.array([[-8, 7, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0, 3]], dtype=np.float32)
    codes, scale = run(rows, target=target)
    assert scale == 1
    assert codes.tolist() == [[-8, 7, 0, 2, 2, 0, -2, -2, 0, 3]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gets_no_scale_and_spoils_no_other(target, value):
    rows, factors = make_inputs(4, 5, 3, with_left=True, with_right=True)
    clean = run(rows, factors, target=target)
    rows[1, 7] = value
    codes, scale = run(rows, factors, target=target)
    assert np.isnan(scale[1])
    np.testing.assert_array_equal(codes[[0, 2]], clean[0][[0, 2]])
    np.testing.assert_array_equal(scale[[0, 2]], clean[1][[0, 2]])


def test_a_row_of_zeros_has_a_scale(target):
    codes, scale = run(np.zeros((1, 9), np.float32), target=target)
    assert scale == 2.0**-60
    assert not codes.any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_types_are_widened_exactly(target, dtype):
    torch = pytest.importorskip("torch")
    wide, factors = make_inputs(5, 33, 2, with_left=True, with_right=False)
    rows = torch.from_numpy(wide).to(getattr(torch, dtype))
    expected = run(rows.float().numpy(), factors, target=target)
    codes, scale = torch.empty(2, 165, dtype=torch.int8), torch.empty(2, 1)
    matrices = (torch.from_numpy(factors[0]), None)
    quantize_rows(rows, matrices, torch.ones(2), 4, codes, scale, target=target)
    np.testing.assert_array_equal(codes.numpy(), expected[0])
    np.testing.assert_array_equal(scale.numpy(), expected[1])


def test_rows_may_lie_apart_and_threads_change_nothing(target):
    rows, factors = make_inputs(16, 20, 400, with_left=True, with_right=True)
    apart = np.full((400, 333), np.nan, dtype=np.float32)
    apart[:, :320] = rows
    expected = run(rows, factors, threads=1, target=target)
    found = run(apart[:, :320], factors, threads=3, target=target)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": np.ones((2, 6))}, DtypeError, "rows must be one of .* got float64"),
        ({"rows": np.ones(6, np.float32)}, ShapeError, "rows must be a matrix"),
        ({"rows": np.ones((2, 12), np.float32)[:, ::2]}, ShapeError, "must be neighbours"),
        ({"bits": 9}, ParameterError, "bits=9 do not fit int8 codes"),
        ({"factors": (np.ones((4, 4), np.float32), None)}, ShapeError, "do not fit 6 columns"),
        (
            {"factors": (np.ones((2, 3), np.float32), None)},
            ShapeError,
            "factor must be 2 rows of 2",
        ),
        ({"factors": (np.ones((3, 3)), None)}, DtypeError, "factor must be float32, got float64"),
        ({"codes": np.ones((2, 6), np.uint8)}, DtypeError, "codes must be int8, got uint8"),
        ({"codes": np.ones((2, 5), np.int8)}, ShapeError, r"codes must have shape \(2, 6\)"),
        (
            {"scale": np.ones((2, 2), np.float32)[:, :1]},
            ShapeError,
            "scale must be 2 rows of 1 in C",
        ),
        ({"clip": np.ones(1, np.float32)}, ShapeError, r"clip must have shape \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    given = {
        "rows": np.ones((2, 6), np.float32),
        "factors": (None, None),
        "clip": np.ones(2, np.float32),
        "bits": 4,
        "codes": np.ones((2, 6), np.int8),
        "scale": np.ones((2, 1), np.float32),
    } | change
    with pytest.raises(error, match=message):
        quantize_rows(**given)


@pytest.mark.parametrize(
    ("left", "right"),
    [(2, 32), (7, 32), (10, 64), (32, 64), (64, 64), (12, 96), (86, 32), (48, 64)],
)
@pytest.mark.parametrize("with_right", [True, False])
def test_bfloat16_rows_are_within_a_rounding_of_each_product(target, left, right, with_right):
    torch = pytest.importorskip("torch")
    given, matrices = make_inputs(left, right, 9, with_left=True, with_right=with_right)
    orthogonal = [None if f is None else np.linalg.qr(f)[0].astype(np.float32) for f in matrices]
    rows = torch.from_numpy(given).bfloat16()
    factors = tuple(None if f is None else np.ascontiguousarray(f) for f in orthogonal)
    wide = tuple(None if f is None else f.astype(np.float64) for f in factors)
    values, expected = oracle(rows.double().numpy(), wide, np.ones(2), 8)
    codes, scale = torch.empty(rows.shape, dtype=torch.int8), torch.empty(9, 1)
    as_tensor = tuple(None if f is None else torch.from_numpy(f) for f in factors)
    quantize_rows(rows, as_tensor, torch.ones(2), 8, codes, scale, threads=2, target=target)
    # three roundings of 2^-9, averaged over the terms of a product, and that of the code
    error = np.abs(codes.numpy() * scale.numpy().astype(np.float64) - values)
    lengths = np.linalg.norm(values, axis=1, keepdims=True) / np.sqrt(left * right)
    assert (error <= 0.501 * np.abs(scale.numpy()) + 0.03 * lengths).all()
    assert np.abs(np.abs(scale.numpy() / expected) - 1).max() < 0.02  # signs may differ
    rows[4, 3] = float("inf")
    quantize_rows(rows, as_tensor, torch.ones(2), 8, codes, scale, target=target)
    assert np.isnan(scale.numpy()[4])
    assert np.isfinite(np.delete(scale.numpy(), 4)).all()
    rows[4, 3] = 3e38
    quantize_rows(rows, as_tensor, torch.ones(2), 8, codes, scale, target=target)
    assert np.isfinite(scale.numpy()).all()
    as_tensor[0][1, 1] = float("nan")
    quantize_rows(rows, as_tensor, torch.ones(2), 8, codes, scale, target=target)
    assert np.isnan(scale.numpy()).all()
