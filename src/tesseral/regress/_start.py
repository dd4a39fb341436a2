"""Where an iteration begins."""

from collections.abc import Callable
from math import prod

import numpy as np

from tesseral.core import StoppingRule, left_singular_vectors, multi_mode_product, unfold
from tesseral.core._arrays import Array, Namespace, array_namespace, like, to_float
from tesseral.core.random import Seed, standard_normal
from tesseral.core.stopping import Progress
from tesseral.core.ties import Ties, symmetrize
from tesseral.regress._problem import Point, Problem

_IMPUTATIONS = 5
"""How often missing entries are replaced by what the fit says of them."""

_REFITS = 2
"""The same for entries of which only a bound is known."""


def spectral_start(
    problem: Problem, rank: tuple[int, ...], working: Array, loose: Array | None = None
) -> Point:
    """Return the best low-rank fit of ``working``, values on the scale of eta, by least squares.

    Missing entries are filled with what the fit says of them, a few times over, and so are
    entries of which ``working`` is only an upper bound, where the fit is below it.

    Parameters
    ----------
    problem : Problem
        Gives bases and ties.
    rank : tuple of K int
    working : array of shape (d_0, ..., d_{K-1})
        NaN where an entry is missing.
    loose : boolean array of that shape, optional
        Where ``working`` is an upper bound.
    """
    xp = array_namespace("TensorResponseRegressor", working)
    missing = xp.isnan(working)
    n_missing = int(to_float(xp.sum(xp.astype(missing, xp.int64))))
    filled = working
    if n_missing:
        known = xp.where(missing, xp.zeros_like(working), working)
        mean = to_float(xp.sum(known)) / (prod(working.shape) - n_missing)
        filled = xp.where(missing, xp.full_like(working, mean), working)
    point = _low_rank(problem, rank, filled)
    for _ in range(_IMPUTATIONS if n_missing else 0 if loose is None else _REFITS):
        theta = point.theta()
        believed = missing if loose is None else missing | (loose & (theta < working))
        point = _low_rank(problem, rank, xp.where(believed, theta, working))
    return point


def random_start(
    problem: Problem, rank: tuple[int, ...], reference: Array, random_state: Seed
) -> Point:
    """Return random factors with a small random core; ``reference`` tells the framework."""
    xp = array_namespace("TensorResponseRegressor", reference)
    factors: list[Array] = [reference] * problem.order
    for group in problem.groups:
        width = problem.widths[group[0]]
        drawn = standard_normal(random_state, (width, rank[group[0]]), reference)
        basis, _ = xp.linalg.qr(drawn)
        for mode in group:
            factors[mode] = basis
    core = symmetrize(standard_normal(random_state, rank, reference), problem.groups)
    point = Point(core=core, factors=tuple(factors), bases=problem.bases)
    # a linear predictor of root mean square 1/2 is far from saturation in every family
    size = to_float(xp.sum(core * core)) ** 0.5 / prod(problem.shape) ** 0.5
    return point.scaled(0.5 / size)


def coefficient_start(problem: Problem, rank: tuple[int, ...], coef: Array) -> Point:
    """Return the low-rank tensor next to a coefficient tensor in basis coordinates."""
    return decomposed(coef, rank, problem.groups, problem.bases, rounds=5)


def least_squares(
    tensor: Array,
    rank: tuple[int, ...],
    rule: StoppingRule,
    bases: tuple[Array | None, ...],
    log_likelihood: Callable[[float], float],
    *,
    start: list[Array] | None = None,
) -> tuple[Point, Progress]:
    """Fit a tensor that is already projected on the bases; orthogonal iteration (HOOI).

    Parameters
    ----------
    tensor : array of shape (m_0, ..., m_{K-1})
    rank : tuple of K int
    rule : StoppingRule
    bases : tuple of (array or None)
        Passed on to the point.
    log_likelihood : callable
        From the squared norm that the fit keeps.
    start : list of K arrays of shape (m_k, r_k), optional
        Orthonormal factors to begin with; the default is the leading singular vectors.
    """
    xp = array_namespace("TensorResponseRegressor", tensor)
    factors = _leading(tensor, rank) if start is None else list(start)
    core = multi_mode_product(tensor, factors, transpose=True)
    progress = rule.start(log_likelihood(to_float(xp.sum(core * core))))
    while not progress.done:
        for mode in range(len(rank)):
            rest = multi_mode_product(tensor, factors, skip=mode, transpose=True)
            factors[mode] = left_singular_vectors(unfold(rest, mode), rank[mode])
        core = multi_mode_product(tensor, factors, transpose=True)
        progress = progress.update(log_likelihood(to_float(xp.sum(core * core))))
    return Point(core=core, factors=tuple(factors), bases=bases), progress


def projected(bases: tuple[Array | None, ...], tensor: Array) -> Array:
    """Return the coordinates of a tensor along the bases of its modes."""
    return multi_mode_product(tensor, bases, transpose=True)


def _low_rank(problem: Problem, rank: tuple[int, ...], values: Array) -> Point:
    small = projected(problem.bases, values)
    return decomposed(small, rank, problem.groups, problem.bases, rounds=2)


def decomposed(
    tensor: Array,
    rank: tuple[int, ...],
    groups: Ties,
    bases: tuple[Array | None, ...],
    *,
    rounds: int,
) -> Point:
    """Decompose a tensor in basis coordinates; tied modes get the same factor."""
    tensor = symmetrize(tensor, groups)
    factors = _leading(tensor, rank)
    for _ in range(rounds):
        for group in groups:
            mode = group[0]
            rest = multi_mode_product(tensor, factors, skip=mode, transpose=True)
            factor = left_singular_vectors(unfold(rest, mode), rank[mode])
            for tied in group:
                factors[tied] = factor
    core = multi_mode_product(tensor, factors, transpose=True)
    return Point(core=core, factors=tuple(factors), bases=bases)


def _leading(tensor: Array, rank: tuple[int, ...]) -> list[Array]:
    """Return leading singular vectors of every unfolding, from Gram matrices."""
    return [_mode_vectors(tensor, mode, size) for mode, size in enumerate(rank)]


def _mode_vectors(tensor: Array, mode: int, rank: int) -> Array:
    xp: Namespace = array_namespace("TensorResponseRegressor", tensor)
    matrix = unfold(tensor, mode)
    if rank <= min(matrix.shape):
        return left_singular_vectors(matrix, rank)
    # fewer columns than the rank: complete the basis with any orthonormal directions
    extra = like(np.eye(matrix.shape[0]), tensor)
    return xp.linalg.qr(xp.concat([matrix, extra], axis=1))[0][:, :rank]
