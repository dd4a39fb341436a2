"""Responses that are larger than memory: dask arrays, chunk by chunk along one mode.

Every pass sends the point to where the chunks lie, on a cluster if there is one, and gets back the
sums of the chunks; the mode they are cut along has no covariates, so its rows stand for themselves.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import ParameterError
from tesseral.core import as_generator, multi_mode_product
from tesseral.core.ties import check_tied, tie_modes
from tesseral.regress._covariates import basis_of, parse_covariates
from tesseral.regress._evaluate import evaluate
from tesseral.regress._families import Family, Observations, family_named
from tesseral.regress._fitting import REFIT, SEPARATED, Options, Separation, find_separation
from tesseral.regress._loop import Fit, maximise
from tesseral.regress._problem import Chunk, Penalty, Point, Problem
from tesseral.regress._response import labels_of
from tesseral.regress._setup import Setup, check_rank
from tesseral.regress._start import decomposed, random_start
from tesseral.runtime.extras import require

Floats = NDArray[np.float64]

_IN_MEMORY = 1 << 27
"""Entries of a projected response that may be gathered for the spectral start."""

_LOCATED = 1 << 24
"""Entries up to which linear predictors are all looked at to say which rows are separated."""


@dataclass(frozen=True, slots=True, eq=False)
class _Far:
    """A chunk that is not here: the rows it has, and how to compute it."""

    rows: slice
    block: Any


def is_dask(response: Any) -> bool:
    """Say whether a response is a dask array, or an xarray of one."""
    return hasattr(labels_of(response)[0], "dask")


def prepare_dask(
    where: str,
    response: Any,
    covariates: Any,
    *,
    family: str,
    symmetric: Any,
    dispersion: float | None,
    stacklevel: int,
) -> tuple[Setup, int]:
    """Check a dask response and its covariates.

    Returns
    -------
    setup : Setup
        Its tensor is the dask array itself; NaN in it stands for a missing entry.
    mode : int
        The mode that the chunks are cut along.
    """
    array, dims, row_names = labels_of(response)
    shape = tuple(int(size) for size in array.shape)
    if len(shape) < 2 or 0 in shape:
        raise ParameterError(f"{where}: needs a tensor with at least 2 modes, got shape {shape}.")
    modes = parse_covariates(where, covariates, shape, dims=dims, rows=row_names)
    groups = tie_modes(where, symmetric, len(shape))
    check_tied(where, "sizes", shape, groups)
    cut_modes = [mode for mode, sizes in enumerate(array.chunks) if len(sizes) > 1] or [
        next((k for k, mode in enumerate(modes) if mode.matrix is None), 0)
    ]
    if len(cut_modes) > 1 or modes[cut_modes[0]].matrix is not None or len(groups) < len(shape):
        raise ParameterError(
            f"{where}: a dask array must be cut into chunks along one mode without covariates, and "
            f"no modes be tied; it is cut along {cut_modes}. Rechunk it with -1 for other modes."
        )
    reference = np.zeros(0)
    bases = [
        basis_of(where, number, mode, reference, stacklevel=stacklevel + 1)
        for number, mode in enumerate(modes)
    ]
    chosen = family_named(family)
    problem = Problem(
        shape=shape,
        chunks=[],
        bases=tuple(basis.vectors for basis in bases),
        metrics=tuple(basis.metric for basis in bases),
        groups=groups,
        family=chosen,
        seen=Observations(total_weight=0.0),
        dispersion=dispersion,
    )
    setup = Setup(
        problem=problem,
        response=array,
        tensor=array,
        observed=None,
        weights=None,
        offset=None,
        covariates=modes,
        bases=bases,
        dims=dims or tuple(f"mode {mode}" for mode in range(len(shape))),
    )
    return setup, cut_modes[0]


def fit_dask(
    where: str, setup: Setup, mode: int, rank: Any, options: Options
) -> tuple[Setup, Fit, Penalty, Separation | None]:
    """Fit a regression chunk by chunk; everything returned is in the order of the modes given."""
    rank = check_rank(where, setup.problem, rank)
    order = (mode, *(k for k in range(len(rank)) if k != mode))
    chunks = _far_chunks(setup.tensor, mode, order)
    run = _runner(setup.problem.family.name)
    family = setup.problem.family
    seen = _combined(list(run(_Observe(where, family), chunks)))
    turned = replace(
        setup.problem,
        shape=tuple(setup.problem.shape[k] for k in order),
        bases=tuple(setup.problem.bases[k] for k in order),
        metrics=tuple(setup.problem.metrics[k] for k in order),
        chunks=chunks,
        seen=seen,
        run=run,
    )
    fit, penalty, escaped = _climb(turned, tuple(rank[k] for k in order), options)
    if penalty.barrier:  # the likelihood itself, without the barrier
        fit = replace(fit, found=evaluate(turned, fit.point, None))
    back = tuple(int(k) for k in np.argsort(order))
    point = _turned(fit.point, back)
    separation = None
    if escaped is not None:
        separation = Separation(mode=mode, rows=(), shares=())
        if prod(turned.shape) <= _LOCATED:
            separation = find_separation(_turned(escaped, back))
    problem = replace(setup.problem, seen=seen)
    return replace(setup, problem=problem), replace(fit, point=point), penalty, separation


def _climb(
    problem: Problem, rank: tuple[int, ...], options: Options
) -> tuple[Fit, Penalty, Point | None]:
    """Return the likeliest fit of all starts, its penalty, and a point that ran away if one did."""
    free = options.penalty == Penalty() and problem.family.separable
    fits = []
    for number, generator in enumerate(as_generator(options.random_state).spawn(options.n_init)):
        start = _start(problem, rank, options.start if number == 0 else "random", generator)
        if problem.family.has_dispersion and problem.dispersion is not None:
            start = replace(start, dispersion=problem.dispersion)
        limit = SEPARATED if free else inf
        fit = maximise(problem.with_penalty(options.penalty), start, options.rule, limit=limit)
        fits.append((fit, start))
    best, start = max(fits, key=lambda pair: (not pair[0].escaped, pair[0].result.history[-1]))
    if not best.escaped:
        return best, options.penalty, None
    bounded = maximise(problem.with_penalty(REFIT), start, options.rule)
    return bounded, REFIT, best.point


def _start(problem: Problem, rank: tuple[int, ...], kind: Any, generator: Any) -> Point:
    small = problem.shape[0] * prod(problem.widths[1:])
    if not isinstance(kind, str):
        raise ParameterError("TensorResponseRegressor: a dask array takes a start in words only.")
    if kind == "random" or small > _IN_MEMORY:
        return random_start(problem, rank, np.zeros(1), generator)
    parts = list(problem.run(_Project(problem.family, problem.bases), problem.chunks))
    gathered = np.concatenate(parts, axis=0)
    return decomposed(gathered, rank, problem.groups, problem.bases, rounds=2)


class _Observe:
    """Checks a chunk and says what the likelihood needs of it besides kernels."""

    def __init__(self, where: str, family: Family) -> None:
        self.where = where
        self.family = family

    def __call__(self, chunk: Chunk) -> Observations:
        if not np.isfinite(chunk.tensor).all():
            raise ParameterError(f"{self.where}: the tensor contains infinity.")
        self.family.check(chunk.tensor, self.where)
        if self.family.name == "gamma":
            seen = chunk.tensor if chunk.weights is None else chunk.tensor[chunk.weights > 0]
            if not (seen > 0).all():
                raise ParameterError(f"{self.where}: family 'gamma' needs positive values, got 0.")
        return self.family.observations(chunk.tensor, chunk.weights)


class _Project:
    """Brings a chunk to the bases of its other modes, on the scale of the linear predictor."""

    def __init__(self, family: Family, bases: tuple[Any, ...]) -> None:
        self.family = family
        self.bases = bases

    def __call__(self, chunk: Chunk) -> Floats:
        values = self.family.start(np, chunk.tensor)
        if chunk.weights is not None:
            kept = chunk.weights > 0
            values = np.where(kept, values, values[kept].mean() if kept.any() else 0.0)
        return np.asarray(multi_mode_product(values, [None, *self.bases[1:]], transpose=True))


def _far_chunks(array: Any, mode: int, order: tuple[int, ...]) -> list[Any]:
    turned = array.transpose(order)
    ends = np.cumsum((0, *array.chunks[mode])).tolist()
    return [_Far(slice(a, b), turned[a:b]) for a, b in pairwise(ends)]


def _runner(name: str) -> Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]:
    """Return what applies a function to every chunk where dask computes it."""
    dask = require("dask", extra="dask", purpose=f"regressing dask arrays ({name})")

    def run(function: Callable[..., Any], chunks: Iterable[Any]) -> list[Any]:
        call = dask.delayed(_apply, pure=False)
        return list(dask.compute(*[call(function, far.rows, far.block) for far in chunks]))

    return run


def _apply(function: Callable[[Chunk], Any], rows: slice, block: Any) -> Any:
    values = np.asarray(block, dtype=np.float64)
    missing = np.isnan(values)
    if not missing.any():
        return function(Chunk(rows=rows, tensor=values, weights=None, offset=None))
    filled = np.where(missing, 0.0, values)
    return function(
        Chunk(rows=rows, tensor=filled, weights=(~missing).astype(np.float64), offset=None)
    )


def _combined(parts: list[Observations]) -> Observations:
    """Add up what the chunks say."""
    counts, weights = None, None
    if parts[0].counts is not None:
        values = np.concatenate([part.counts for part in parts if part.counts is not None])
        shares = np.concatenate(
            [w for w in (part.count_weights for part in parts) if w is not None]
        )
        counts, inverse = np.unique(values, return_inverse=True)
        weights = np.asarray(np.bincount(inverse, weights=shares), dtype=np.float64)
    return Observations(
        total_weight=sum(part.total_weight for part in parts),
        constant=sum(part.constant for part in parts),
        saturated=sum(part.saturated for part in parts),
        counts=counts,
        count_weights=weights,
    )


def _turned(point: Point, axes: tuple[int, ...]) -> Point:
    """Return a point with its modes in another order."""
    return replace(
        point,
        core=np.transpose(point.core, axes),
        factors=tuple(point.factors[k] for k in axes),
        bases=tuple(point.bases[k] for k in axes),
    )
