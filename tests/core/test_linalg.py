import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.frameworks import every_framework, to_numpy
from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core import (
    fix_signs,
    leading_eigenvectors,
    left_singular_vectors,
    linalg,
    mode_gram,
    orthonormality_error,
    randomized_svd,
    truncated_svd,
    unfold,
)


def matrix_with_spectrum(values, shape, dtype="float64", seed=0):
    """Return a matrix of known singular values, and its left singular vectors."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((shape[0], len(values))))
    v, _ = np.linalg.qr(rng.standard_normal((shape[1], len(values))))
    return ((u * values) @ v.T).astype(dtype), u


def angle(u, v):
    """Return the sine of the largest angle between two spans."""
    return np.linalg.norm(u - v @ (v.T @ u), 2)


@every_framework
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)], ids=str)
def test_triplets_are_the_leading_ones(make, dtype, shape):
    matrix, _ = matrix_with_spectrum([5.0, 3.0, 2.0, 1.0], shape, dtype)
    u, s, vh = (to_numpy(part) for part in truncated_svd(make(matrix), rank=3))
    assert {u.dtype, s.dtype, vh.dtype} == {np.dtype(dtype)}
    tolerance = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(s, [5, 3, 2], rtol=tolerance)
    np.testing.assert_allclose(matrix @ vh.T, u * s, atol=5 * tolerance)
    assert orthonormality_error(u) < tolerance
    assert orthonormality_error(vh.T) < tolerance


@every_framework
@pytest.mark.parametrize("shape", [(60, 90), (90, 60)], ids=str)
def test_randomized_triplets_of_a_matrix_of_low_rank_are_exact(make, shape):
    matrix, _ = matrix_with_spectrum([5.0, 3.0, 2.0], shape)
    got = randomized_svd(make(matrix), rank=3, power_iterations=0, random_state=0)
    for part, expected in zip(got, truncated_svd(matrix, rank=3), strict=True):
        np.testing.assert_allclose(to_numpy(part), expected, atol=1e-12)


def test_power_iterations_bring_the_error_near_the_best_possible():
    # singular values that fall slowly, where one pass is known to be poor
    matrix, _ = matrix_with_spectrum(1 / np.sqrt(np.arange(1, 101)), (100, 100))

    def error(power_iterations):
        u, s, vh = randomized_svd(
            matrix, 10, oversampling=2, power_iterations=power_iterations, random_state=0
        )
        return np.linalg.norm(matrix - (u * s) @ vh, 2)

    best = 1 / np.sqrt(11)
    assert error(0) > 1.2 * best
    assert error(4) < 1.05 * best


def test_oversampling_lowers_the_error():
    matrix, _ = matrix_with_spectrum(0.8 ** np.arange(50), (60, 50))

    def error(oversampling):
        u, _, _ = randomized_svd(
            matrix, 5, oversampling=oversampling, power_iterations=0, random_state=0
        )
        return np.linalg.norm(matrix - u @ (u.T @ matrix))

    assert error(20) < error(0)


def test_a_seed_gives_the_same_triplets_in_every_framework():
    matrix = np.random.default_rng(0).standard_normal((20, 30))
    first, second, other = (randomized_svd(matrix, 2, random_state=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-12
    by_torch = randomized_svd(torch.from_numpy(matrix), 2, random_state=0)[0]
    np.testing.assert_allclose(by_torch.numpy(), first, atol=1e-12)


@every_framework
@pytest.mark.parametrize("method", ["auto", "exact", "randomized"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(8, 100), (100, 8)], ids=str)
def test_left_vectors_agree_whatever_the_method(make, method, dtype, shape):
    matrix, u = matrix_with_spectrum([8.0, 4.0, 2.0, 1.0], shape, dtype)
    got = to_numpy(left_singular_vectors(make(matrix), 3, method=method, random_state=0))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, fix_signs(u[:, :3])[0], atol=2e3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_directions_that_a_gram_matrix_would_blur_are_found_exactly(dtype):
    eps = np.finfo(dtype).eps
    values = [1.0, 30 * eps**0.75, eps**0.8]
    matrix, u = matrix_with_spectrum(values, (10, 200), dtype)
    got = left_singular_vectors(matrix, 2)
    assert angle(got, u[:, :2]) < 0.2
    by_gram = np.linalg.eigh(matrix @ matrix.T)[1][:, -2:]
    assert angle(by_gram, u[:, :2]) > 0.3  # the test can tell


def test_the_gram_matrix_serves_where_it_is_good_enough(monkeypatch):
    matrix, _ = matrix_with_spectrum([8.0, 4.0, 2.0], (8, 100))
    monkeypatch.setattr(np.linalg, "svd", None)
    assert left_singular_vectors(matrix, 2).shape == (8, 2)


def test_a_matrix_of_zeros_has_orthonormal_left_vectors():
    assert orthonormality_error(left_singular_vectors(np.zeros((3, 40)), 2)) < 1e-15


@given(st.integers(0, 2**32 - 1))
def test_signs_do_not_depend_on_those_found(seed):
    rng = np.random.default_rng(seed)
    u, vh = rng.standard_normal((5, 3)), rng.standard_normal((3, 4))
    flips = rng.choice([-1.0, 1.0], size=3)
    fixed_u, fixed_vh = fix_signs(u, vh)
    again_u, again_vh = fix_signs(u * flips, vh * flips[:, None])
    np.testing.assert_array_equal(again_u, fixed_u)
    np.testing.assert_array_equal(again_vh, fixed_vh)
    np.testing.assert_allclose(fixed_u @ fixed_vh, u @ vh, rtol=1e-13, atol=1e-13)
    assert (np.take_along_axis(fixed_u, np.abs(u).argmax(0)[None], 0) > 0).all()


def low_rank_part(u, s, vh):
    return (u * s) @ vh


def test_gradients_pass_through_every_method():
    wide = torch.tensor(matrix_with_spectrum([4.0, 2.0, 1.0], (3, 9))[0], requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: low_rank_part(*truncated_svd(x, 2)), wide)
    assert torch.autograd.gradcheck(
        lambda x: low_rank_part(*randomized_svd(x, 2, random_state=0)), wide
    )
    for method in ("auto", "exact", "randomized"):
        assert torch.autograd.gradcheck(
            lambda x, method=method: left_singular_vectors(x, 2, method=method, random_state=0),
            wide,
        )


@pytest.mark.parametrize(
    "function", [truncated_svd, randomized_svd, left_singular_vectors], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(
    ("matrix", "rank", "error", "message"),
    [
        (np.ones(3), 1, ShapeError, r"needs a matrix that is not empty, got shape \(3,\)"),
        (np.ones((0, 3)), 1, ShapeError, r"got shape \(0, 3\)"),
        (np.ones((3, 3), dtype=int), 1, DtypeError, "floating-point array, got int64"),
        (np.ones((3, 4)), 4, ParameterError, "rank must be an integer from 1 to 3; got 4"),
        (np.ones((3, 4)), 0, ParameterError, "rank must be an integer from 1 to 3; got 0"),
        (np.ones((3, 4)), 1.0, ParameterError, "rank must be an integer from 1 to 3; got 1.0"),
    ],
)
def test_what_has_no_such_triplets_is_refused(function, matrix, rank, error, message):
    with pytest.raises(error, match=f"^{function.__name__}: .*{message}"):
        function(matrix, rank)


def test_options_out_of_range_are_refused():
    with pytest.raises(ParameterError, match="oversampling must be an integer at least 0; got -1"):
        randomized_svd(np.ones((3, 4)), 1, oversampling=-1)
    with pytest.raises(ParameterError, match="power_iterations must be an integer at least 0"):
        randomized_svd(np.ones((3, 4)), 1, power_iterations=0.5)
    with pytest.raises(ParameterError, match="'auto' or 'exact' or 'randomized'; got 'fast'"):
        left_singular_vectors(np.ones((3, 4)), 1, method="fast")


@every_framework
@pytest.mark.parametrize("piece", [1, 40, 2**20])
@pytest.mark.parametrize("shape", [(5, 4), (4, 5, 3), (3, 4, 2, 5)], ids=str)
def test_the_gram_matrix_of_every_unfolding_is_found_in_pieces(make, piece, shape, monkeypatch):
    monkeypatch.setattr(linalg, "_GRAM_PIECE", piece)
    tensor = np.random.default_rng(0).standard_normal(shape)
    for mode in range(-1, len(shape)):
        rows = unfold(tensor, mode)
        got = to_numpy(mode_gram(make(tensor), mode))
        np.testing.assert_allclose(got, rows @ rows.T, atol=1e-13)
        turned = np.asfortranarray(tensor)
        np.testing.assert_allclose(mode_gram(turned, mode), rows @ rows.T, atol=1e-13)


def test_a_gram_matrix_needs_a_mode_and_floating_numbers():
    with pytest.raises(ShapeError, match=r"^mode_gram: mode=2 does not exist"):
        mode_gram(np.ones((2, 3)), 2)
    with pytest.raises(DtypeError, match=r"^mode_gram: needs a real floating-point array"):
        mode_gram(np.ones((2, 3), dtype=int), 0)


@every_framework
def test_leading_eigenvectors_of_a_gram_matrix_are_left_singular_vectors(make):
    matrix, u = matrix_with_spectrum([5.0, 3.0, 2.0, 1.0], (6, 9))
    got = to_numpy(leading_eigenvectors(make(matrix @ matrix.T), 3))
    np.testing.assert_allclose(got, fix_signs(u[:, :3])[0], atol=1e-13)
