import numpy as np
import pytest

from tesseral._errors import ParameterError, ShapeError
from tesseral.datasets import make_tensor_response


def apply_to_all(tensor, matrices):
    """Multiply mode by mode with einsum."""
    for mode, matrix in enumerate(matrices):
        if matrix is not None:
            tensor = np.moveaxis(np.tensordot(matrix, tensor, axes=(1, mode)), 0, mode)
    return tensor


@pytest.mark.parametrize(
    ("shape", "rank", "n_covariates"),
    [
        ((8, 9, 10), (2, 3, 2), (4, 5, 6)),
        ((8, 9, 10), 2, (4, None, 3)),
        ((8, 9), 2, None),
        ((5, 6, 7, 4), 2, 3),
    ],
)
def test_coefficients_and_predictor_follow_from_the_parts(shape, rank, n_covariates):
    planted = make_tensor_response(shape, rank, n_covariates, random_state=0)
    coef = apply_to_all(planted.core, planted.factors)
    np.testing.assert_allclose(planted.coef, coef, atol=1e-12)
    theta = apply_to_all(planted.coef, planted.covariates)
    np.testing.assert_allclose(planted.linear_predictor, theta, atol=1e-12)
    assert np.abs(planted.linear_predictor).max() == pytest.approx(3.0)


def test_coefficients_have_the_rank_asked_for_and_factors_are_orthonormal():
    planted = make_tensor_response((12, 11, 10), (2, 3, 2), (6, 6, None), random_state=0)
    for mode, rank in enumerate((2, 3, 2)):
        unfolded = np.moveaxis(planted.coef, mode, 0).reshape(planted.coef.shape[mode], -1)
        assert np.linalg.matrix_rank(unfolded) == rank
        factor = planted.factors[mode]
        np.testing.assert_allclose(factor.T @ factor, np.eye(rank), atol=1e-12)


def test_a_mode_without_covariates_has_none():
    planted = make_tensor_response((8, 9, 10), 2, (4, None, 3), random_state=0)
    assert planted.covariates[1] is None
    assert planted.coef.shape == (4, 9, 3)


def test_covariates_have_columns_of_length_about_one():
    x = make_tensor_response((4000, 5), 2, (3, None), random_state=0).covariates[0]
    np.testing.assert_allclose(np.linalg.norm(x, axis=0), 1.0, atol=0.05)


@pytest.mark.parametrize(
    ("family", "mean", "variance"),
    [
        ("normal", lambda theta: theta, np.ones_like),
        ("binomial", lambda theta: 1 / (1 + np.exp(-theta)), lambda mean: mean * (1 - mean)),
        ("poisson", np.exp, lambda mean: mean),
    ],
)
def test_observations_scatter_around_the_mean_as_the_family_says(family, mean, variance):
    planted = make_tensor_response((50, 50, 50), 2, (4, 4, 4), family=family, random_state=0)
    np.testing.assert_allclose(planted.mean, mean(planted.linear_predictor), rtol=1e-12)
    residual = planted.tensor - planted.mean
    expected = variance(planted.mean).sum()
    assert abs(residual.sum()) < 5 * np.sqrt(expected)
    assert (residual**2).sum() == pytest.approx(expected, rel=0.05)


def test_tied_modes_share_covariates_and_factors_and_the_mean_is_symmetric():
    planted = make_tensor_response(
        (9, 9, 12), 2, (4, 4, 3), symmetric=[(0, 1)], family="binomial", random_state=0
    )
    assert planted.covariates[0] is planted.covariates[1]
    np.testing.assert_array_equal(planted.factors[0], planted.factors[1])
    np.testing.assert_allclose(planted.mean, planted.mean.transpose(1, 0, 2), atol=1e-14)
    assert not np.array_equal(planted.tensor, planted.tensor.transpose(1, 0, 2))


def test_symmetric_noise_makes_the_data_exactly_symmetric():
    planted = make_tensor_response(
        (9, 9, 9), 2, None, symmetric=True, symmetric_noise=True, random_state=0
    )
    for axes in [(0, 2, 1), (1, 0, 2), (2, 0, 1)]:
        np.testing.assert_array_equal(planted.tensor, planted.tensor.transpose(axes))


def test_without_noise_the_tensor_is_its_mean():
    planted = make_tensor_response((5, 6), 1, None, noise=0.0, random_state=0)
    np.testing.assert_array_equal(planted.tensor, planted.mean)


def test_a_seed_gives_the_same_tensor_every_time():
    draws = [make_tensor_response((6, 6), 2, 3, random_state=seed).tensor for seed in (3, 3, 4)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ParameterError, "shape must be a sequence of at least two", {"shape": ()}),
        (ParameterError, "rank must be .* of length 3", {"rank": (2, 2)}),
        (ParameterError, "n_covariates must be", {"n_covariates": (4, 4, 0)}),
        (ParameterError, "n_covariates must be .* or None", {"n_covariates": (4, 4)}),
        (ShapeError, "rank 5 of mode 0 must be at most its 4 covariates", {"rank": (5, 5, 5)}),
        (ShapeError, "at most the product 1 of the other ranks", {"rank": (2, 1, 1)}),
        (ShapeError, "are tied and need equal sizes", {"symmetric": [(0, 2)]}),
        (
            ShapeError,
            "are tied and need equal n_covariates",
            {"symmetric": [(0, 1)], "n_covariates": (4, None, 4)},
        ),
        (ShapeError, "need equal rank", {"symmetric": [(0, 1)], "rank": (2, 1, 2)}),
        (ParameterError, "symmetric must be", {"symmetric": "yes"}),
        (ParameterError, "symmetric_noise must be a boolean", {"symmetric_noise": None}),
        (ParameterError, "family must be", {"family": "gaussian"}),
        (ParameterError, "signal must be a finite number at least 0", {"signal": -1.0}),
        (ParameterError, "noise must be a finite number at least 0", {"noise": np.inf}),
        (ParameterError, "random_state must be a seed", {"random_state": -1}),
    ],
)
def test_what_does_not_fit_is_refused(error, message, change):
    arguments = {"shape": (8, 8, 9), "rank": 2, "n_covariates": 4, "random_state": 0}
    with pytest.raises(error, match=f"make_tensor_response: .*{message}"):
        make_tensor_response(**(arguments | change))
