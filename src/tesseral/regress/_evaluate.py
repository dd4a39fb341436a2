"""One pass over the data: likelihood at a point, and the normal equations of one block there.

Nothing of the size of the data is kept. For mode k the score is contracted with the loadings of
the other modes, the weights with the products of pairs of their columns; what remains has d_k
rows. The core's equations are the same contraction over all modes. README.md derives this.
"""

from dataclasses import dataclass
from functools import partial, reduce
from math import inf
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from tesseral.core import multi_mode_product, unfold
from tesseral.core._arrays import Array, Namespace, array_namespace, to_float
from tesseral.regress._families import Family
from tesseral.regress._pairs import expand_pairs, pair_columns
from tesseral.regress._problem import Chunk, Penalty, Point, Problem

Block: TypeAlias = int | Literal["core"]
"""What is updated: the factor of a mode (and of the modes tied to it), or the core."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """The data seen from a point.

    Attributes
    ----------
    kernels : float
        Weighted sum of the family's kernels, and of the barrier.
    objective : float
        The same less the ridge penalty; -inf where the point is not allowed.
    largest : float
        Largest absolute linear predictor; 0 where it was not looked for, which it is without a
        bound only before the first block of a round.
    gradient : array or None
        Of the kernels: (d_k, r_k) with respect to the loadings of mode k, or (R,) with
        respect to the core, in C order.
    information : array or None
        Their expected second derivatives, negated: (d_k or 1, r_k, r_k), or (R, R).
    """

    kernels: float
    objective: float
    largest: float
    gradient: Array | None = None
    information: Array | None = None


class _Plan(NamedTuple):
    """What a pass computes, in terms that can be sent to where a chunk lies."""

    family: Family
    dispersion: float
    penalty: Penalty
    core: Array
    loadings: tuple[Array, ...]
    spread: Array
    pairs: tuple[Array, ...]
    block: Block | None
    with_largest: bool


class _Part(NamedTuple):
    """What a pass finds in one chunk."""

    kernels: float
    largest: float
    score: Array | None = None
    weight: Array | None = None


def evaluate(problem: Problem, point: Point, block: Block | None) -> Evaluation:
    """Return the objective at a point, and the normal equations of ``block`` if there is one."""
    xp = point.xp
    pairs = () if block is None else tuple(pair_columns(xp, a) for a in point.loadings)
    plan = _Plan(
        problem.family,
        point.dispersion,
        problem.penalty,
        point.core,
        point.loadings,
        point.spread,
        pairs,
        block,
        block in (None, problem.groups[0][0]),
    )
    parts = list(problem.run(partial(chunk_terms, plan), problem.chunks))
    kernels = float(sum(part.kernels for part in parts))
    largest = max(part.largest for part in parts)
    objective = kernels - ridge_penalty(problem, point) if np.isfinite(kernels) else -inf
    if block is None or objective == -inf:
        return Evaluation(kernels=kernels, objective=objective, largest=largest)
    gradient, information = _collect(xp, point, parts, block)
    return Evaluation(
        kernels=kernels,
        objective=objective,
        largest=largest,
        gradient=gradient,
        information=information,
    )


def ridge_penalty(problem: Problem, point: Point) -> float:
    """Return half the ridge times the squared norm of the coefficient tensor."""
    if not problem.penalty.ridge:
        return 0.0
    grams = metric_grams(problem, point)
    squared = to_float(point.xp.sum(point.core * multi_mode_product(point.core, grams)))
    return 0.5 * problem.penalty.ridge * squared


def metric_grams(problem: Problem, point: Point) -> list[Array]:
    """Return M_k' D_k M_k for every mode: how coefficients are measured in core coordinates."""
    return [
        factor.mT @ (factor if metric is None else metric[:, None] * factor)
        for factor, metric in zip(point.factors, problem.metrics, strict=True)
    ]


def chunk_terms(plan: _Plan, chunk: Chunk) -> _Part:
    """Return what one chunk adds to a pass."""
    xp = array_namespace("TensorResponseRegressor", chunk.tensor)
    loading = plan.loadings[0][chunk.rows, :]
    theta = xp.reshape(loading @ plan.spread, chunk.tensor.shape)
    bound = plan.penalty.max_theta
    largest = 0.0
    if bound is not None or plan.with_largest:
        largest = max(to_float(xp.max(theta)), -to_float(xp.min(theta)))
    if bound is not None and largest > bound * (1 + 1e-9):
        return _Part(-inf, largest)
    with np.errstate(all="ignore"):  # a step too far overflows; it is refused, not reported
        eta = theta if chunk.offset is None else theta + chunk.offset
        kernel, score, weight = plan.family.terms(xp, chunk.tensor, eta, plan.dispersion)
        if plan.penalty.barrier:
            kernel, score, weight = with_barrier(xp, plan.penalty, theta, kernel, score, weight)
        if chunk.weights is not None:
            kernel = kernel * chunk.weights
            score = score * chunk.weights
            weight = chunk.weights if weight is None else weight * chunk.weights
        kernels = to_float(xp.sum(kernel, dtype=xp.float64))
    if plan.block is None or not np.isfinite(kernels):
        return _Part(kernels, largest)
    return _Part(kernels, largest, *_contract(xp, plan, chunk.rows, score, weight))


def with_barrier(
    xp: Namespace, penalty: Penalty, theta: Array, kernel: Array, score: Array, weight: Array | None
) -> tuple[Array, Array, Array]:
    """Add the logarithmic barrier to the terms of every entry."""
    assert penalty.max_theta is not None
    squared, bound = theta * theta, penalty.max_theta**2
    room = bound - squared
    kernel = kernel + penalty.barrier * xp.log(room / bound)
    score = score - 2 * penalty.barrier * theta / room
    curvature = 2 * penalty.barrier * (bound + squared) / (room * room)
    return kernel, score, curvature + (1 if weight is None else weight)


def _contract(
    xp: Namespace, plan: _Plan, rows: slice, score: Array, weight: Array | None
) -> tuple[Array, Array | None]:
    """Contract score and weight of a chunk with the loadings of the modes not in ``block``."""
    skip = None if plan.block == "core" else plan.block
    loadings = [plan.loadings[0][rows, :], *plan.loadings[1:]]
    gradient = multi_mode_product(score, loadings, skip=skip, transpose=True)
    if skip is not None:
        gradient = unfold(gradient, skip) @ unfold(plan.core, skip).mT
    if weight is None:
        return gradient, None
    pairs = [plan.pairs[0][rows, :], *plan.pairs[1:]]
    information = multi_mode_product(weight, pairs, skip=skip, transpose=True)
    if skip == 0:  # done here because rows of mode 0 are not summed over chunks
        information = _between_rows(xp, plan.core, information, 0)
    return gradient, information


def _collect(xp: Namespace, point: Point, parts: list[_Part], block: Block) -> tuple[Array, Array]:
    """Put together what the chunks found."""
    scores: list[Array] = [part.score for part in parts]
    weights: list[Array] = [part.weight for part in parts]
    if block == 0:
        gradient = xp.concat(scores, axis=0)
        if weights[0] is None:
            return gradient, _even_information(xp, point, 0)
        return gradient, xp.concat(weights, axis=0)
    gradient = reduce(lambda a, b: a + b, scores)
    if block == "core":
        gradient = xp.reshape(gradient, (-1,))
    if weights[0] is None:
        return gradient, _even_information(xp, point, block)
    total = reduce(lambda a, b: a + b, weights)
    if block == "core":
        return gradient, expand_pairs(xp, total, point.rank, keep=None)
    return gradient, _between_rows(xp, point.core, total, block)


def _between_rows(xp: Namespace, core: Array, sums: Array, mode: int) -> Array:
    """Turn sums over pairs of the other modes into (d_k, r_k, r_k) information."""
    rows = unfold(core, mode)
    spread = expand_pairs(xp, sums, tuple(core.shape), keep=mode)
    return rows @ spread @ rows.mT


def kron(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the Kronecker product of two square matrices."""
    size = a.shape[0] * b.shape[0]
    return xp.reshape(a[:, None, :, None] * b[None, :, None, :], (size, size))


def _even_information(xp: Namespace, point: Point, block: Block) -> Array:
    """Return the information where every weight is 1: it needs no pass over the data."""
    grams = [loading.mT @ loading for loading in point.loadings]
    if block == "core":
        return reduce(partial(kron, xp), grams)
    rows = unfold(point.core, block)
    return (rows @ unfold(multi_mode_product(point.core, grams, skip=block), block).mT)[None, :, :]
