"""A regression of given rank: starts, the iteration, and what is done about separation."""

import warnings
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from tesseral._errors import ParameterError, SeparationWarning, ShapeError
from tesseral.core import StoppingRule, as_generator, multi_mode_product, unfold
from tesseral.core._arrays import Array, array_namespace, like, to_float, to_numpy
from tesseral.core.random import Seed
from tesseral.regress._evaluate import Evaluation
from tesseral.regress._loop import Fit, maximise
from tesseral.regress._problem import Penalty, Point, Problem
from tesseral.regress._setup import Setup, running
from tesseral.regress._start import (
    coefficient_start,
    least_squares,
    projected,
    random_start,
    spectral_start,
)

SEPARATED = 30.0
"""A linear predictor beyond which a probability or a mean is 0 or 1 for every purpose."""

REFIT = Penalty(max_theta=SEPARATED, barrier=0.1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Options:
    """How to fit.

    Attributes
    ----------
    penalty : Penalty
    start : str or array
        "spectral", "random", or a coefficient tensor.
    n_init : int
        Number of starts; those after the first are random.
    rule : StoppingRule
    random_state : seed
    guard : bool
        Whether to look for separation.
    """

    penalty: Penalty
    start: Any = "spectral"
    n_init: int = 1
    rule: StoppingRule
    random_state: Seed = None
    guard: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Separation:
    """Where linear predictors ran away.

    Attributes
    ----------
    mode : int
        The mode along which they are most concentrated.
    rows : tuple of int
        Its indices that they belong to.
    shares : tuple of float
        For each of these, the share of its entries that ran away.
    """

    mode: int
    rows: tuple[int, ...]
    shares: tuple[float, ...]


def fit_rank(
    setup: Setup, rank: tuple[int, ...], options: Options
) -> tuple[Fit, Penalty, Separation | None]:
    """Fit a regression of given rank from all starts and return the best of the fits.

    Returns
    -------
    fit : Fit
    penalty : Penalty
        That it was fitted under.
    separation : Separation or None
        What was found, if the likelihood has no maximum.
    """
    if _is_least_squares(setup, options):
        return _least_squares_fit(setup, rank, options), options.penalty, None
    with running(setup.problem) as problem:
        fit = _best(setup, problem.with_penalty(options.penalty), rank, options)
        if not fit.escaped:
            return fit, options.penalty, None
        separation = find_separation(fit.point)
        return _best(setup, problem.with_penalty(REFIT), rank, options), REFIT, separation


def warn_of_separation(
    where: str, setup: Setup, separation: Separation, *, stacklevel: int
) -> None:
    """Say that the likelihood has no maximum, and where."""
    names = setup.covariates[separation.mode].rows
    shown = ", ".join(names[row] for row in separation.rows[:6])
    more = "" if len(separation.rows) <= 6 else f" and {len(separation.rows) - 6} more"
    warnings.warn(
        f"{where}: the data are separated: the likelihood grows for ever along linear predictors "
        f"of {setup.dims[separation.mode]}, rows {shown}{more}. Fitted again under "
        f"max|theta| <= {SEPARATED:g}; set constraint, ridge or a lower rank to choose otherwise.",
        SeparationWarning,
        stacklevel=stacklevel + 1,
    )


def find_separation(point: Point) -> Separation:
    """Return where the linear predictors of a point are beyond half the limit."""
    beyond = np.abs(to_numpy(point.theta())) > SEPARATED / 2
    shares = [
        beyond.mean(axis=tuple(k for k in range(beyond.ndim) if k != mode))
        for mode in range(beyond.ndim)
    ]
    mode = int(np.argmax([share.max() for share in shares]))
    ranked = np.argsort(-shares[mode], kind="stable")
    rows = tuple(int(row) for row in ranked if shares[mode][row] >= 0.5 * shares[mode].max())
    return Separation(mode=mode, rows=rows, shares=tuple(float(shares[mode][row]) for row in rows))


def _best(setup: Setup, problem: Problem, rank: tuple[int, ...], options: Options) -> Fit:
    """Return the fit of highest likelihood; one that did not run away, if there is one."""
    guarded = (
        options.guard
        and problem.family.separable
        and problem.penalty.max_theta is None
        and problem.penalty.ridge == 0
    )
    limit = SEPARATED if guarded else inf
    fits = []
    for number, generator in enumerate(as_generator(options.random_state).spawn(options.n_init)):
        start = _start(setup, problem, rank, options if number == 0 else None, generator)
        if problem.family.has_dispersion and problem.dispersion is not None:
            start = replace(start, dispersion=problem.dispersion)
        fits.append(maximise(problem, start, options.rule, limit=limit))
    return max(fits, key=lambda fit: (not fit.escaped, fit.result.history[-1]))


def _start(
    setup: Setup,
    problem: Problem,
    rank: tuple[int, ...],
    options: Options | None,
    generator: np.random.Generator,
) -> Point:
    if options is None or (isinstance(options.start, str) and options.start == "random"):
        return random_start(problem, rank, setup.tensor, generator)
    if not isinstance(options.start, str):
        return coefficient_start(problem, rank, _coordinates(setup, options.start))
    xp = array_namespace("TensorResponseRegressor", setup.tensor)
    working = problem.family.start(xp, setup.tensor)
    if setup.offset is not None:
        working = working - setup.offset
    if setup.observed is not None:
        working = xp.where(setup.observed, working, xp.full_like(working, xp.nan))
    loose = setup.tensor == 0 if problem.family.zero_is_bound else None
    return spectral_start(problem, rank, working, loose)


def _coordinates(setup: Setup, coef: Array) -> Array:
    """Return a coefficient tensor of the covariates as one of their orthonormal bases."""
    wanted = tuple(len(mode.names) for mode in setup.covariates)
    coef = like(to_numpy(coef), setup.tensor)
    if tuple(coef.shape) != wanted:
        raise ShapeError(
            f"TensorResponseRegressor: start needs a coefficient tensor of shape {wanted}, got "
            f"{tuple(coef.shape)}."
        )
    if not array_namespace("start", coef).all(array_namespace("start", coef).isfinite(coef)):
        raise ParameterError("TensorResponseRegressor: start must be finite.")
    turns = [
        None if basis.back is None else like(np.linalg.pinv(basis.back), setup.tensor)
        for basis in setup.bases
    ]
    return multi_mode_product(coef, turns)


def _is_least_squares(setup: Setup, options: Options) -> bool:
    """Say whether the fit is one of least squares to all entries alike."""
    return (
        setup.problem.family.name == "normal"
        and setup.weights is None
        and options.penalty == Penalty()
        and all(len(group) == 1 for group in setup.problem.groups)
        and setup.problem.run is map
    )


def _least_squares_fit(setup: Setup, rank: tuple[int, ...], options: Options) -> Fit:
    """Project the data on the bases once, and iterate on what is left of them."""
    xp = array_namespace("TensorResponseRegressor", setup.tensor)
    problem = setup.problem
    values = setup.tensor if setup.offset is None else setup.tensor - setup.offset
    flat = xp.reshape(values, (-1,))
    squared = to_float(flat @ flat)
    small = projected(problem.bases, values)
    kept = to_float(xp.sum(small * small))

    def log_likelihood(fitted: float) -> float:
        return problem.family.total(-0.5 * max(squared - fitted, 0.0), problem.seen, 1.0)

    best = None
    for number, generator in enumerate(as_generator(options.random_state).spawn(options.n_init)):
        factors = _least_squares_start(setup, rank, options if number == 0 else None, generator)
        found = least_squares(
            small, rank, options.rule, problem.bases, log_likelihood, start=factors
        )
        if best is None or found[1].history[-1] > best[1].history[-1]:
            best = found
    assert best is not None
    point, progress = best
    # the residual of the projection is added to that of the fit: their difference would lose
    # digits where the fit is almost perfect
    residual = small - multi_mode_product(point.core, point.factors)
    kernels = -0.5 * (max(squared - kept, 0.0) + to_float(xp.sum(residual * residual)))
    evaluation = Evaluation(kernels=kernels, objective=kernels, largest=0.0)
    return Fit(point=point, found=evaluation, result=progress.result)


def _least_squares_start(
    setup: Setup, rank: tuple[int, ...], options: Options | None, generator: np.random.Generator
) -> list[Array] | None:
    """Return factors to start from; None for the leading singular vectors."""
    if options is not None and isinstance(options.start, str) and options.start == "spectral":
        return None
    return list(_start(setup, setup.problem, rank, options, generator).factors)


def canonical(point: Point, setup: Setup) -> tuple[Array, list[Array]]:
    """Return core and orthonormal factors of the coefficients of the covariates themselves.

    The rows of every unfolding of the core are orthogonal, the longest first, so that factors
    are determined up to signs; these are chosen so that the largest entry is positive.
    """
    xp = point.xp
    factors: list[Array] = list(point.factors)
    core = point.core
    for group in setup.problem.groups:
        back = setup.bases[group[0]].back
        factor = point.factors[group[0]]
        if back is not None:
            factor = like(back, factor) @ factor
        basis, triangle = xp.linalg.qr(factor)
        core = multi_mode_product(
            core, [triangle if mode in group else None for mode in range(core.ndim)]
        )
        for mode in group:
            factors[mode] = basis
    for group in setup.problem.groups:
        turn, _, _ = xp.linalg.svd(unfold(core, group[0]), full_matrices=False)
        factor = factors[group[0]] @ turn
        positive = xp.max(factor, axis=0) >= -xp.min(factor, axis=0)
        signs = 2 * xp.astype(positive, factor.dtype) - 1
        turn, factor = turn * signs, factor * signs
        core = multi_mode_product(
            core,
            [turn if mode in group else None for mode in range(core.ndim)],
            transpose=True,
        )
        for mode in group:
            factors[mode] = factor
    return core, factors
