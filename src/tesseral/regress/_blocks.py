"""Newton steps of one block: the factor of a mode, or the core."""

from functools import partial, reduce
from math import prod

import numpy as np
from numpy.typing import NDArray

from tesseral.core import multi_mode_product, unfold
from tesseral.core._arrays import Array, Namespace, like, to_float
from tesseral.core.ties import Ties
from tesseral.regress._evaluate import Block, Evaluation, kron, metric_grams
from tesseral.regress._problem import Point, Problem

_JITTER = 1e-11
"""Share of the mean diagonal that is added to one, so that a singular system can be solved."""


def block_step(problem: Problem, point: Point, block: Block, found: Evaluation) -> Array:
    """Return the Newton step of a block: what to add to its factor, or to the core."""
    if block == "core":
        return _core_step(problem, point, found)
    return _factor_step(problem, point, block, found)


def moved(problem: Problem, point: Point, block: Block, step: Array) -> Point:
    """Return the point after a step of one block, its factors orthonormal again."""
    if block == "core":
        return Point(
            core=point.core + step,
            factors=point.factors,
            bases=point.bases,
            dispersion=point.dispersion,
        )
    group = next(group for group in problem.groups if block in group)
    return point.with_factor(group, point.factors[block] + step)


def _factor_step(problem: Problem, point: Point, mode: int, found: Evaluation) -> Array:
    xp = point.xp
    assert found.gradient is not None
    assert found.information is not None
    basis, factor = problem.bases[mode], point.factors[mode]
    gradient = found.gradient if basis is None else basis.mT @ found.gradient
    metric, gram = None, None
    if problem.penalty.ridge:
        grams = metric_grams(problem, point)
        other = multi_mode_product(point.core, grams, skip=mode)
        gram = problem.penalty.ridge * (unfold(point.core, mode) @ unfold(other, mode).mT)
        metric = problem.metrics[mode]
        pull = factor if metric is None else metric[:, None] * factor
        gradient = gradient - pull @ gram
    if basis is None:
        information = found.information if gram is None else found.information + gram
        return _solve_rows(xp, information, gradient)
    if found.information.shape[0] == 1 and gram is None:
        # equal weights: the basis is orthonormal, so its vectors do not mix
        return _solve_rows(xp, found.information, gradient)
    whole = _mixed(xp, basis, found.information)
    if gram is not None:
        assert metric is not None
        whole = whole + kron(xp, like(np.eye(metric.shape[0]), gram) * metric, gram)
    return xp.reshape(_solve(xp, whole, xp.reshape(gradient, (-1,))), gradient.shape)


def _core_step(problem: Problem, point: Point, found: Evaluation) -> Array:
    xp = point.xp
    assert found.gradient is not None
    information, gradient = found.information, found.gradient
    if problem.penalty.ridge:
        grams = metric_grams(problem, point)
        ridge = problem.penalty.ridge
        pull = ridge * xp.reshape(multi_mode_product(point.core, grams), (-1,))
        whole = reduce(partial(kron, xp), grams)
        information, gradient = information + ridge * whole, gradient - pull
    if all(len(group) == 1 for group in problem.groups):
        return xp.reshape(_solve(xp, information, gradient), point.rank)
    spread = like(symmetric_basis(point.rank, problem.groups), point.core)
    free = _solve(xp, spread.mT @ information @ spread, spread.mT @ gradient)
    return xp.reshape(spread @ free, point.rank)


def symmetric_basis(rank: tuple[int, ...], groups: Ties) -> NDArray[np.float64]:
    """Return the map from the free entries of a core to all of them, for tied modes.

    Returns
    -------
    array of shape (R, n)
        One column of 0 and 1 for each set of entries that tied modes make equal.
    """
    indices = np.indices(rank)
    for group in groups:
        ordered = np.sort(indices[list(group)], axis=0)
        indices[list(group)] = ordered
    labels = np.ravel_multi_index(tuple(indices.reshape(len(rank), -1)), rank)
    _, columns = np.unique(labels, return_inverse=True)
    spread = np.zeros((prod(rank), int(columns.max()) + 1))
    spread[np.arange(len(columns)), columns] = 1.0
    return spread


def _mixed(xp: Namespace, basis: Array, information: Array) -> Array:
    """Return the information of a factor: sum over rows of (u u') kron (information of the row).

    Shape (m r, m r), the index of a basis vector first.
    """
    width, rank = basis.shape[1], information.shape[1]
    blocks = [
        [
            basis.mT @ (information[:, s, t][:, None] * basis) if s <= t else None
            for t in range(rank)
        ]
        for s in range(rank)
    ]
    full = [[blocks[min(s, t)][max(s, t)] for t in range(rank)] for s in range(rank)]
    stacked = xp.stack([xp.stack(row) for row in full])  # [rank, rank, width, width]
    return xp.reshape(xp.permute_dims(stacked, (2, 0, 3, 1)), (width * rank, width * rank))


def _solve(xp: Namespace, matrix: Array, vector: Array) -> Array:
    """Solve a positive semidefinite system, in float64 whatever the data are."""
    wide = xp.astype(matrix, xp.float64)
    size = wide.shape[0]
    lift = _JITTER * to_float(xp.sum(xp.linalg.diagonal(wide))) / size + 1e-290
    wide = wide + lift * xp.eye(size, dtype=xp.float64, device=_device(matrix))
    solved = xp.linalg.solve(wide, xp.astype(vector, xp.float64)[:, None])[:, 0]
    return xp.astype(solved, vector.dtype)


def _solve_rows(xp: Namespace, matrices: Array, rows: Array) -> Array:
    """Solve one small system for each row; a single matrix counts for all of them."""
    wide = xp.astype(matrices, xp.float64)
    rank = wide.shape[-1]
    traces = xp.sum(xp.linalg.diagonal(wide), axis=-1)[:, None, None]
    identity = xp.eye(rank, dtype=xp.float64, device=_device(matrices))
    wide = wide + (_JITTER * traces / rank + 1e-290) * identity
    right = xp.astype(rows, xp.float64)
    if wide.shape[0] == 1:
        return xp.astype(xp.linalg.solve(wide[0], right.mT).mT, rows.dtype)
    return xp.astype(xp.linalg.solve(wide, right[:, :, None])[:, :, 0], rows.dtype)


def _device(array: Array) -> object:
    import array_api_compat

    return array_api_compat.device(array)
