import numpy as np
import pytest

from regress.oracles import draw, entry_log_likelihood
from support.frameworks import every_framework, to_numpy
from tesseral.core import multi_mode_product
from tesseral.regress._evaluate import evaluate
from tesseral.regress._families import family_named
from tesseral.regress._information import jacobian
from tesseral.regress._problem import Penalty, Point, Problem, cut

SHAPE, WIDTHS, RANK = (6, 5, 4), (3, None, 2), (2, 3, 2)


def problem_and_point(family, make=np.asarray, *, weighted=True, entries=45, penalty=None):
    """Return a small regression, and a point in it."""
    rng = np.random.default_rng(0)
    bases = [
        None if width is None else np.linalg.qr(rng.standard_normal((size, width)))[0]
        for size, width in zip(SHAPE, WIDTHS, strict=True)
    ]
    factors = [
        np.linalg.qr(rng.standard_normal((width or size, rank)))[0]
        for size, width, rank in zip(SHAPE, WIDTHS, RANK, strict=True)
    ]
    core = rng.standard_normal(RANK)
    offset = rng.normal(0, 0.3, SHAPE)
    theta = multi_mode_product(multi_mode_product(core, factors), bases)
    y = draw(family, theta + offset, rng)
    weights = rng.uniform(0, 2, SHAPE) if weighted else None
    chosen = family_named(family)
    problem = Problem(
        shape=SHAPE,
        chunks=cut(
            make(y), None if weights is None else make(weights), make(offset), entries=entries
        ),
        bases=tuple(None if basis is None else make(basis) for basis in bases),
        metrics=tuple(
            None if width is None else make(np.linspace(1, 2, width)) for width in WIDTHS
        ),
        groups=((0,), (1,), (2,)),
        family=chosen,
        seen=chosen.observations(y, weights),
        penalty=penalty or Penalty(),
    )
    point = Point(
        core=make(core),
        factors=tuple(make(factor) for factor in factors),
        bases=problem.bases,
        dispersion=0.5,
    )
    return problem, point, (y, weights, offset, core, factors, bases)


def dense(block, data):
    """Return the derivatives of theta with respect to loadings or core, explicitly."""
    _, _, _, core, factors, bases = data
    loadings = [f if b is None else b @ f for f, b in zip(factors, bases, strict=True)]
    whole = np.concatenate(list(jacobian(core, tuple(loadings), [None] * 3)))
    sizes = np.cumsum([0] + [loading.size for loading in loadings] + [core.size])
    position = 3 if block == "core" else block
    return whole[:, sizes[position] : sizes[position + 1]]


@every_framework
@pytest.mark.parametrize("block", [0, 1, 2, "core"])
@pytest.mark.parametrize("family", ["normal", "binomial", "negative_binomial"])
@pytest.mark.parametrize("weighted", [False, True])
def test_normal_equations_are_those_of_the_explicit_design(family, block, weighted, make):
    problem, point, data = problem_and_point(family, make, weighted=weighted)
    y, weights, offset, *_ = data
    eta = to_numpy(point.theta()) + offset
    terms = problem.family.terms(np, y, eta, 0.5)
    factor = 1.0 if weights is None else weights
    weight = np.broadcast_to((1.0 if terms.weight is None else terms.weight) * factor, SHAPE)
    design = dense(block, data)
    found = evaluate(problem, point, block)
    gradient = to_numpy(found.gradient).reshape(-1)
    np.testing.assert_allclose(gradient, design.T @ (terms.score * factor).ravel(), atol=1e-10)
    whole = design.T @ (weight.reshape(-1, 1) * design)
    information = to_numpy(found.information)
    if block == "core":
        np.testing.assert_allclose(information, whole, atol=1e-10)
        return
    size, rank = SHAPE[block], RANK[block]
    rows = np.broadcast_to(information, (size, rank, rank))
    for i, row in enumerate(rows):
        part = slice(i * rank, (i + 1) * rank)
        np.testing.assert_allclose(row, whole[part, part], atol=1e-10)


@pytest.mark.parametrize("entries", [1, 45, 10_000])
def test_the_objective_is_the_log_likelihood_whatever_the_chunks(entries):
    problem, point, (y, weights, offset, *_) = problem_and_point("binomial", entries=entries)
    expected = (weights * entry_log_likelihood("binomial", y, point.theta() + offset)).sum()
    assert evaluate(problem, point, None).objective == pytest.approx(expected, rel=1e-12)


def test_the_ridge_measures_the_coefficients_of_the_covariates():
    problem, point, _ = problem_and_point("binomial", penalty=Penalty(ridge=0.7))
    coef = multi_mode_product(point.core, point.factors)
    squared = coef**2 * problem.metrics[0][:, None, None] * problem.metrics[2]
    found = evaluate(problem, point, None)
    assert found.kernels - found.objective == pytest.approx(0.35 * squared.sum(), rel=1e-12)


def test_the_barrier_is_added_and_its_bound_is_kept():
    plain, point, (_, weights, *_) = problem_and_point("binomial")
    theta = point.theta()
    bound = 1.5 * np.abs(theta).max()
    bounded = plain.with_penalty(Penalty(max_theta=bound, barrier=0.2))
    added = 0.2 * (weights * np.log(1 - (theta / bound) ** 2)).sum()
    found = evaluate(bounded, point, "core")
    assert found.kernels == pytest.approx(evaluate(plain, point, None).kernels + added)
    outside = evaluate(bounded, point.scaled(1.6), "core")
    assert outside.objective == -np.inf
    assert outside.gradient is None


def test_the_barrier_is_part_of_the_normal_equations():
    plain, point, _ = problem_and_point("normal")
    bound = 1.5 * float(np.abs(point.theta()).max())
    problem = plain.with_penalty(Penalty(max_theta=bound, barrier=0.2))
    direction = np.random.default_rng(1).standard_normal(point.rank)

    def at(step):
        moved = Point(core=point.core + step * direction, factors=point.factors, bases=point.bases)
        return evaluate(problem, moved, None).kernels

    found = evaluate(problem, point, "core")
    slope = (at(1e-5) - at(-1e-5)) / 2e-5
    assert found.gradient @ direction.ravel() == pytest.approx(slope, rel=1e-5)
    bend = (at(1e-3) - 2 * at(0) + at(-1e-3)) / 1e-6
    assert direction.ravel() @ found.information @ direction.ravel() == pytest.approx(
        -bend, rel=1e-4
    )
