"""How uncertain coefficients and means are: standard errors, intervals, tests, the bootstrap."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import stats

from tesseral._errors import TesseralWarning
from tesseral.core import multi_mode_product, unfold
from tesseral.core._arrays import like
from tesseral.core.random import Seed, spawn
from tesseral.regress._covariates import Basis
from tesseral.regress._fitting import Options, fit_rank
from tesseral.regress._information import Covariance, covariance, host
from tesseral.regress._problem import Penalty, Point, cut
from tesseral.regress._response import orbit_labels
from tesseral.regress._setup import Setup

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interval:
    """Bounds that hold the truth with a given probability.

    Attributes
    ----------
    low, high : arrays
    level : float
    """

    low: Floats
    high: Floats
    level: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WaldTests:
    """Tests that something is zero, for many things at once.

    Attributes
    ----------
    names : tuple of str
        What is tested, where it has names.
    statistic : array
        Wald statistics; chi-squared with ``df`` degrees of freedom if it is zero.
    df : int
    p_value : array
    adjusted : array
        p-values adjusted for the number of tests.
    correction : str
    """

    names: tuple[str, ...]
    statistic: Floats
    df: int
    p_value: Floats
    adjusted: Floats
    correction: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bootstrap:
    """Coefficients fitted to data drawn anew.

    Attributes
    ----------
    coef : array of shape (n_draws, p_0, ..., p_{K-1})
    kind : {"parametric", "entries"}
    """

    coef: Floats
    kind: str

    def standard_errors(self) -> Floats:
        """Return the standard deviation of every coefficient."""
        return np.asarray(self.coef.std(axis=0, ddof=1))

    def interval(self, level: float = 0.95) -> Interval:
        """Return quantiles of every coefficient."""
        return _quantiles(self.coef, level)


def scale_of(setup: Setup, dof: int, dispersion: float) -> float:
    """Return what the inverse information is multiplied by, corrected for the fitted parameters."""
    if setup.problem.family.name not in ("normal", "gamma"):
        return 1.0
    total = setup.problem.seen.total_weight
    return dispersion * total / max(total - dof, 1.0)


def information_covariance(
    setup: Setup, point: Point, penalty: Penalty, *, scale: float, observed: bool
) -> Covariance:
    """Return the covariance of the coefficients by the inverse information at the fit."""
    return covariance(
        setup.problem,
        point,
        setup.tensor,
        setup.weights,
        setup.offset,
        scale=scale,
        observed=observed,
        penalty=penalty,
    )


def coefficient_rows(bases: Sequence[Basis]) -> list[Floats | None]:
    """Return, for each mode, what turns basis coordinates into coefficients."""
    return [basis.back for basis in bases]


def mean_rows(bases: Sequence[Basis], matrices: Sequence[Floats | None]) -> list[Floats | None]:
    """Return, for each mode, what turns basis coordinates into linear predictors of rows."""
    return [
        None if basis.back is None or matrix is None else matrix @ basis.back
        for basis, matrix in zip(bases, matrices, strict=True)
    ]


def normal_interval(estimate: Floats, errors: Floats, level: float) -> Interval:
    """Return the estimate plus and minus normal quantiles of its standard error."""
    reach = stats.norm.ppf(0.5 + level / 2) * errors
    return Interval(low=estimate - reach, high=estimate + reach, level=level)


def wald_tests(
    found: Covariance,
    bases: Sequence[Basis],
    core: Floats,
    factors: Sequence[Floats],
    names: tuple[str, ...],
    mode: int,
    correction: str,
) -> WaldTests:
    """Test for every covariate of a mode whether all its coefficients are zero.

    A covariate's slice of the coefficients is its row of the factor times the core and the other
    factors; of these only the row can be zero, so there are r_k degrees of freedom. The slice is
    brought to r_k numbers by the other factors and the core as fitted, which is linear in the
    coefficients, whose covariance is known.
    """
    rows: list[Floats | None] = []
    for other, (basis, factor) in enumerate(zip(bases, factors, strict=True)):
        rows.append(
            None if other == mode else factor.T if basis.back is None else factor.T @ basis.back
        )
    turn = unfold(core, mode)
    statistic = np.empty(len(names))
    for number in range(len(names)):
        back = bases[mode].back
        own = np.eye(len(names))[number : number + 1] if back is None else back[number : number + 1]
        rows[mode] = own
        spread = turn @ found.of(rows) @ turn.T
        value = turn @ (factors[mode][number] @ turn)
        statistic[number] = value @ np.linalg.solve(spread, value)
    df = core.shape[mode]
    p_value = stats.chi2.sf(statistic, df)
    return WaldTests(
        names=names,
        statistic=statistic,
        df=df,
        p_value=p_value,
        adjusted=adjusted(p_value, correction),
        correction=correction,
    )


def adjusted(p_values: Floats, correction: str) -> Floats:
    """Return p-values adjusted for their number.

    ``"holm"`` and ``"bonferroni"`` bound the chance of any false discovery, ``"fdr"`` the share of
    false ones (Benjamini and Hochberg), ``"none"`` leaves them.
    """
    flat = p_values.ravel()
    if correction == "none":
        return p_values
    if correction == "bonferroni":
        return np.minimum(p_values * flat.size, 1.0)
    if correction == "fdr":
        return np.asarray(stats.false_discovery_control(flat)).reshape(p_values.shape)
    order = np.argsort(flat)
    steps = np.maximum.accumulate(flat[order] * np.arange(flat.size, 0, -1))
    result = np.empty_like(flat)
    result[order] = np.minimum(steps, 1.0)
    return result.reshape(p_values.shape)


def bootstrap(
    setup: Setup,
    options: Options,
    rank: tuple[int, ...],
    coef: Floats,
    mean: Floats,
    dispersion: float,
    *,
    kind: str,
    n_draws: int,
    n_jobs: int | None,
    random_state: Seed,
) -> Bootstrap:
    """Fit data drawn anew, each from the coefficients that were fitted.

    ``"parametric"`` draws every entry from its fitted distribution, ``"entries"`` draws entries
    with replacement; entries that symmetry makes one are drawn as one.
    """
    options = replace(options, start=coef, n_init=1)
    draw = delayed(_redrawn)
    generators = spawn(random_state, n_draws)
    coefs = Parallel(n_jobs=n_jobs)(
        draw(setup, options, rank, mean, dispersion, kind, generator) for generator in generators
    )
    return Bootstrap(coef=np.stack(coefs), kind=kind)


def _redrawn(
    setup: Setup,
    options: Options,
    rank: tuple[int, ...],
    mean: Floats,
    dispersion: float,
    kind: str,
    generator: np.random.Generator,
) -> Floats:
    """Return the coefficients fitted to one draw."""
    problem = setup.problem
    tensor, weights = setup.tensor, setup.weights
    labels = orbit_labels(problem.shape, problem.groups)
    if kind == "parametric":
        drawn = problem.family.draw(mean, dispersion, generator).ravel()[labels]
        tensor = like(drawn.reshape(problem.shape), tensor)
    else:
        counts = _entry_counts(setup, labels, generator)
        share = like(counts.reshape(problem.shape), tensor)
        weights = share if weights is None else weights * share
    entries = max(problem.chunks[0].tensor.shape[0], 1) * prod(problem.shape[1:])
    again = replace(
        setup,
        tensor=tensor,
        weights=weights,
        problem=replace(
            problem,
            chunks=cut(tensor, weights, setup.offset, entries=entries),
            seen=problem.family.observations(tensor, weights),
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TesseralWarning)
        fit, _, _ = fit_rank(again, rank, options)
    point = fit.point
    factors = [
        host(factor) if basis.back is None else basis.back @ host(factor)
        for factor, basis in zip(point.factors, setup.bases, strict=True)
    ]
    return np.asarray(multi_mode_product(host(point.core), factors))


def _entry_counts(
    setup: Setup, labels: NDArray[np.int64], generator: np.random.Generator
) -> Floats:
    """Return how often every entry is drawn; missing ones never."""
    firsts = np.unique(labels)
    if setup.observed is not None:
        firsts = firsts[host(setup.observed).ravel()[firsts] > 0]
    counts = np.zeros(labels.size)
    counts[firsts] = generator.multinomial(len(firsts), np.full(len(firsts), 1 / len(firsts)))
    return counts[labels]


def link_interval(drawn: Floats, level: float) -> Interval:
    """Return quantiles of linear predictors drawn anew."""
    return _quantiles(drawn, level)


def _quantiles(drawn: Any, level: float) -> Interval:
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return Interval(low=low, high=high, level=level)
