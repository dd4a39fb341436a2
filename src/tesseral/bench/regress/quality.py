"""What fits are worth: errors against the information bound, ranks, holes, intervals."""

import warnings
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import TesseralWarning
from tesseral.core import as_generator, multi_mode_product
from tesseral.datasets import TensorResponse, make_tensor_response
from tesseral.regress import TensorResponseRegressor
from tesseral.regress._information import Covariance, covariance
from tesseral.regress._problem import Point
from tesseral.regress._setup import prepare

FAMILIES = ("normal", "binomial", "poisson")
SIZES = (30, 35, 40, 45, 50, 55, 60)
RANKS = (2, 4, 6)


def redrawn(planted: TensorResponse, family: str, seed: int) -> NDArray[np.float64]:
    """Draw another response from a planted truth; normal noise has variance 1."""
    rng = as_generator(seed)
    if family == "binomial":
        return (rng.random(planted.mean.shape) < planted.mean).astype(np.float64)
    if family == "poisson":
        return rng.poisson(planted.mean).astype(np.float64)
    return planted.mean + rng.standard_normal(planted.mean.shape)


def truth_covariance(planted: TensorResponse, family: str) -> tuple[Covariance, list[object]]:
    """Return the inverse expected information at a planted truth, and its bases."""
    setup = prepare("bound", planted.tensor, list(planted.covariates), family=family)
    core, factors = planted.core, []
    for mode, (factor, basis) in enumerate(zip(planted.factors, setup.bases, strict=True)):
        x = planted.covariates[mode]
        inside = factor if basis.vectors is None else basis.vectors.T @ (x @ factor)
        q, triangle = np.linalg.qr(inside)
        factors.append(q)
        core = multi_mode_product(core, [triangle if k == mode else None for k in range(core.ndim)])
    point = Point(core=core, factors=tuple(factors), bases=setup.problem.bases)
    found = covariance(setup.problem, point, setup.tensor, None, None, scale=1.0, observed=False)
    return found, [basis.back for basis in setup.bases]


def bound(planted: TensorResponse, family: str) -> float:
    """Return tr(J I^-1 J') / p^K at the truth: no regular estimator of B does better."""
    found, rows = truth_covariance(planted, family)
    return float(found.variances(rows).mean())  # type: ignore[arg-type]


def error_cell(family: str, d: int, rank: int, *, truths: int, draws: int) -> dict[str, object]:
    """Return the mean squared error of B for a family, size and rank, and its bound."""
    errors, bounds = [], []
    for truth in range(truths):
        planted = make_tensor_response(
            (d,) * 3,
            rank,
            (round(0.4 * d),) * 3,
            family=family,
            signal=10.0,
            random_state=1000 * truth + 10 * d + rank,
        )
        bounds.append(bound(planted, family))
        for draw in range(draws):
            y = redrawn(planted, family, 7919 * truth + draw)
            errors.append(squared_error(y, planted, family, rank))
    error, least = float(np.mean(errors)), float(np.mean(bounds))
    return {
        "family": family,
        "d": d,
        "rank": rank,
        "error": error,
        "bound": least,
        "ratio": error / least,
    }


def squared_error(y: NDArray[np.float64], planted: TensorResponse, family: str, rank: int) -> float:
    """Return the mean squared error of the coefficients fitted to a response."""
    model = TensorResponseRegressor(rank=rank, family=family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TesseralWarning)
        model.fit(y, list(planted.covariates))
    return float(((np.asarray(model.coef_) - planted.coef) ** 2).mean())


def exact_ranks(replicates: int) -> float:
    """Return how often BIC finds rank (3, 3, 3) at d=40, p=16, signal 4."""
    exact = 0
    for seed in range(replicates):
        planted = make_tensor_response((40,) * 3, 3, (16,) * 3, signal=4.0, random_state=seed)
        model = TensorResponseRegressor(rank="bic").fit(planted.tensor, list(planted.covariates))
        exact += model.rank_ == (3, 3, 3)
    return exact / replicates


def holes(family: str, replicates: int, *, share: float = 0.3) -> float:
    """Return the squared error with a share of entries missing, relative to none missing."""
    complete, incomplete = 0.0, 0.0
    for seed in range(replicates):
        signal = 3.0 if family in ("poisson", "negative_binomial", "gamma") else 6.0
        planted = make_tensor_response((30,) * 3, 3, (8,) * 3, signal=signal, random_state=seed)
        y = draw_family(planted.linear_predictor, family, seed)
        gone = as_generator(seed + 1).random(y.shape) < share
        complete += squared_error(y, planted, family, 3)
        incomplete += squared_error(np.where(gone, np.nan, y), planted, family, 3)
    return incomplete / complete


def draw_family(theta: NDArray[np.float64], family: str, seed: int) -> NDArray[np.float64]:
    """Draw a response of any family; unit variance, dispersion 1/2."""
    from tesseral.regress._families import family_named

    chosen = family_named(family)
    dispersion = 1.0 if family == "normal" else 0.5
    return chosen.draw(chosen.mean(np, theta), dispersion, as_generator(seed))


def coverage(family: str, draws: int) -> float:
    """Return how often 95% intervals hold the true mean: d=30, p=8, rank 3, over entries."""
    signal = 3.0 if family == "poisson" else 5.0
    planted = make_tensor_response(
        (30,) * 3, 3, (8,) * 3, family=family, signal=signal, random_state=0
    )
    inside = []
    for draw in range(draws):
        drawn = replace(planted, tensor=redrawn(planted, family, draw + 1))
        model = TensorResponseRegressor(rank=3, family=family)
        model.fit(drawn.tensor, list(planted.covariates))
        found = model.mean_interval()
        inside.append(((found.low <= planted.mean) & (planted.mean <= found.high)).mean())
    return float(np.mean(inside))
