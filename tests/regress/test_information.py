import numpy as np
import pytest

from regress.oracles import draw
from tesseral._errors import InformationError
from tesseral.core import multi_mode_product
from tesseral.regress import _information as info
from tesseral.regress._families import family_named
from tesseral.regress._problem import Penalty, Point, Problem, cut

SHAPE, WIDTHS, RANK = (5, 4, 6, 3), (3, None, 4, None), (2, 2, 2, 2)


def model(family="binomial", seed=0):
    rng = np.random.default_rng(seed)
    bases = [
        None if width is None else np.linalg.qr(rng.standard_normal((size, width)))[0]
        for size, width in zip(SHAPE, WIDTHS, strict=True)
    ]
    factors = tuple(
        np.linalg.qr(rng.standard_normal((width or size, rank)))[0]
        for size, width, rank in zip(SHAPE, WIDTHS, RANK, strict=True)
    )
    core = rng.standard_normal(RANK)
    theta = multi_mode_product(multi_mode_product(core, factors), bases)
    return core, factors, bases, draw(family, theta, rng), theta


def split(vector, factors):
    parts, start = [], 0
    for factor in factors:
        parts.append(vector[start : start + factor.size].reshape(factor.shape))
        start += factor.size
    return vector[start:].reshape(RANK), tuple(parts)


@pytest.mark.parametrize("family", ["binomial", "negative_binomial"])
def test_the_observed_information_is_the_second_derivative(family):
    core, factors, bases, y, theta = model(family)
    chosen = family_named(family)

    def gradient(vector):
        there, parts = split(vector, factors)
        jacobian = np.concatenate(list(info.jacobian(there, parts, bases)))
        eta = multi_mode_product(multi_mode_product(there, parts), bases)
        return jacobian.T @ chosen.terms(np, y, eta, 0.5).score.ravel()

    vector = np.concatenate([part.ravel() for part in (*factors, core)])
    numeric = np.stack(
        [
            (gradient(vector - 1e-5 * unit) - gradient(vector + 1e-5 * unit)) / 2e-5
            for unit in np.eye(len(vector))
        ]
    )
    score = chosen.terms(np, y, theta, 0.5).score
    found = info._information(core, factors, bases, chosen.curvature(np, y, theta, 0.5), score)
    np.testing.assert_allclose(found, numeric, atol=1e-7)


def test_the_jacobian_is_the_derivative_whatever_the_rows_at_a_time(monkeypatch):
    core, factors, bases, _, _ = model()
    vector = np.concatenate([part.ravel() for part in (*factors, core)])

    def theta(there):
        middle, parts = split(there, factors)
        return multi_mode_product(multi_mode_product(middle, parts), bases).ravel()

    numeric = np.stack(
        [(theta(vector + 1e-6 * u) - theta(vector - 1e-6 * u)) / 2e-6 for u in np.eye(len(vector))]
    ).T
    monkeypatch.setattr(info, "_ROWS", 100)
    parts = list(info.jacobian(core, factors, bases))
    assert len(parts) > 1
    np.testing.assert_allclose(np.concatenate(parts), numeric, atol=1e-8)


def test_turning_factors_against_the_core_is_no_information():
    core, factors, bases, _, theta = model()
    weight = np.exp(theta)
    found = info._information(core, factors, bases, weight, None)
    gauge = info._gauge(core, factors)
    np.testing.assert_allclose(found @ gauge, 0, atol=1e-10)
    assert np.linalg.matrix_rank(found) == len(found) - gauge.shape[1]


def problem_of(y, bases, family, groups, **options):
    chosen = family_named(family)
    return Problem(
        shape=y.shape,
        chunks=cut(y, None, None, entries=10**6),
        bases=tuple(bases),
        metrics=(None,) * y.ndim,
        groups=groups,
        family=chosen,
        seen=chosen.observations(y, None),
        **options,
    )


def test_variances_are_those_of_the_pseudo_inverse():
    core, factors, bases, y, theta = model()
    point = Point(core=core, factors=factors, bases=tuple(bases))
    problem = problem_of(y, bases, "binomial", tuple((k,) for k in range(4)))
    found = info.covariance(problem, point, y, None, None, scale=2.0, observed=False)
    weight = family_named("binomial").curvature(np, y, theta, 1.0)
    inverse = np.linalg.pinv(info._information(core, factors, bases, weight, None), rcond=1e-10)
    rows = np.concatenate(list(info.jacobian(core, factors, bases)))
    whole = 2.0 * rows @ inverse @ rows.T
    np.testing.assert_allclose(found.of(bases), whole, atol=1e-8)
    np.testing.assert_allclose(found.variances(bases).ravel(), np.diag(whole), atol=1e-8)


def test_a_matrix_that_fills_its_rank_has_the_variances_of_a_plain_regression():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 3))
    basis, triangle = np.linalg.qr(x)
    y = (rng.random((30, 2)) < 0.5) * 1.0
    factors = (np.eye(3)[:, :2] + 0.1, np.eye(2))
    factors = tuple(np.linalg.qr(factor)[0] for factor in factors)
    point = Point(core=np.array([[1.0, 0.2], [0.3, 0.7]]), factors=factors, bases=(basis, None))
    problem = problem_of(y, (basis, None), "binomial", ((0,), (1,)))
    # rank 2 of a 3 x 2 matrix is no restriction: each column is a logistic regression
    found = info.covariance(problem, point, y, None, None, scale=1.0, observed=False)
    variances = found.variances([np.linalg.inv(triangle), None])
    for column in range(2):
        mean = problem.family.mean(np, point.theta()[:, column])
        expected = np.linalg.inv(x.T @ ((mean * (1 - mean))[:, None] * x))
        np.testing.assert_allclose(variances[:, column], np.diag(expected), rtol=1e-8)


def test_tied_modes_share_their_information():
    rng = np.random.default_rng(0)
    factor, _ = np.linalg.qr(rng.standard_normal((5, 2)))
    core = rng.standard_normal((2, 2))
    core = core + core.T
    point = Point(core=core, factors=(factor, factor), bases=(None, None))
    y = rng.poisson(np.exp(point.theta())) * 1.0
    problem = problem_of(y, (None, None), "poisson", ((0, 1),))
    found = info.covariance(problem, point, y, None, None, scale=1.0, observed=False)
    # all ways to change the symmetric matrix: M S M' with symmetric S, and K S M' + M S K'
    units = (np.diag([1.0, 0.0]), np.diag([0.0, 1.0]), 1.0 - np.eye(2))
    directions = [
        *(
            (k @ core @ factor.T + factor @ core @ k.T).ravel()
            for k in np.eye(10).reshape(10, 5, 2)
        ),
        *((factor @ unit @ factor.T).ravel() for unit in units),
    ]
    rows = np.stack(directions, axis=1)
    inverse = np.linalg.pinv(rows.T @ (np.exp(point.theta()).reshape(-1, 1) * rows), rcond=1e-10)
    np.testing.assert_allclose(found.of([None, None]), rows @ inverse @ rows.T, atol=1e-9)


def test_a_ridge_adds_to_the_information():
    core, factors, bases, y, _ = model()
    point = Point(core=core, factors=factors, bases=tuple(bases))
    problem = problem_of(y, bases, "binomial", tuple((k,) for k in range(4)))
    plain, less = (
        info.covariance(
            problem, point, y, None, None, scale=1.0, observed=False, penalty=Penalty(ridge=ridge)
        ).variances(bases)
        for ridge in (0.0, 5.0)
    )
    assert (less < plain).all()


def test_too_little_information_is_said():
    core, factors, bases, y, _ = model()
    point = Point(core=core, factors=factors, bases=tuple(bases))
    problem = problem_of(y, bases, "binomial", tuple((k,) for k in range(4)))
    with pytest.raises(InformationError, match="not positive definite"):
        info.covariance(problem, point, y, np.zeros(SHAPE), None, scale=1.0)
