"""The information about all coefficients at once, and what its inverse says of linear maps of them.

Parameters are the factors of all groups of modes and the core, in basis coordinates and C order.
Turning a factor and the core against one another changes nothing, so the information is singular
along these directions; they are filled in before it is inverted, which no function of the
coefficient tensor notices. All of this is float64 NumPy on the host.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular

from tesseral._errors import InformationError
from tesseral.core import multi_mode_product, unfold
from tesseral.core._arrays import to_numpy
from tesseral.regress._blocks import symmetric_basis
from tesseral.regress._evaluate import with_barrier
from tesseral.regress._pairs import expand_pairs, pair_columns
from tesseral.regress._problem import Penalty, Point, Problem

Floats = NDArray[np.float64]

_ROWS = 4096
"""Rows of a Jacobian that are formed at a time."""


def host(array: Any) -> Floats:
    """Return an array as float64 on the host."""
    return np.asarray(to_numpy(array), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Covariance:
    """Covariance of the maximum-likelihood coefficients, up to the dispersion.

    Attributes
    ----------
    core, factors : arrays
        The point that it was found at.
    groups : tuple of tuple of int
    scale : float
        What the inverse information is multiplied by.
    root : array of shape (P, P)
        Lower triangle L with L L' the information, gauge directions filled in.
    spread : array of shape (P_all, P), or None
        From free parameters to those of all modes, where some are tied.
    """

    core: Floats
    factors: tuple[Floats, ...]
    scale: float
    root: Floats
    spread: Floats | None

    def variances(self, rows: Sequence[Floats | None]) -> Floats:
        """Return the variance of every entry of the coefficients times ``rows``.

        Parameters
        ----------
        rows : sequence of K (array of shape (n_k, m_k), or None)
            For each mode a matrix in basis coordinates; None for the identity.

        Returns
        -------
        array of shape (n_0, ..., n_{K-1})
        """
        parts = [
            self.scale * (whitened**2).sum(axis=0) for whitened in self._whitened_jacobian(rows)
        ]
        shape = tuple(
            factor.shape[0] if row is None else row.shape[0]
            for factor, row in zip(self.factors, rows, strict=True)
        )
        return np.concatenate(parts).reshape(shape)

    def of(self, rows: Sequence[Floats | None]) -> Floats:
        """Return the whole covariance matrix of the entries in C order."""
        whitened = np.concatenate(list(self._whitened_jacobian(rows)), axis=1)
        return np.asarray(self.scale * (whitened.T @ whitened))

    def _whitened_jacobian(self, rows: Sequence[Floats | None]) -> Iterator[Floats]:
        for part in jacobian(self.core, self.factors, rows):
            free = part if self.spread is None else part @ self.spread
            yield solve_triangular(self.root, free.T, lower=True, check_finite=False)


def covariance(
    problem: Problem,
    point: Point,
    tensor: Any,
    weights: Any,
    offset: Any,
    *,
    scale: float,
    observed: bool = True,
    penalty: Penalty | None = None,
) -> Covariance:
    """Invert the information about the coefficients at a point.

    Parameters
    ----------
    problem, point
        The regression, and its coefficients.
    tensor, weights, offset : arrays of shape (d_0, ..., d_{K-1}), or None
        The data.
    scale : float
        Dispersion that multiplies the inverse.
    observed : bool
        Take second derivatives as they are at the data, not their expectation.
    penalty : Penalty, optional
        Its ridge and barrier add to the information.

    Raises
    ------
    InformationError
        If the information is singular or, if observed, not positive definite.
    """
    core = host(point.core)
    factors = tuple(host(factor) for factor in point.factors)
    bases = [None if basis is None else host(basis) for basis in problem.bases]
    theta = host(point.theta())
    y = host(tensor)
    eta = theta if offset is None else theta + host(offset)
    terms = problem.family.terms(np, y, eta, point.dispersion)
    weight = terms.weight if terms.weight is not None else np.ones_like(eta)
    if observed:
        weight = problem.family.curvature(np, y, eta, point.dispersion)
    score = terms.score
    if penalty is not None and penalty.barrier:
        _, score, weight = with_barrier(np, penalty, theta, terms.kernel, score, weight)
    if weights is not None:
        weight, score = weight * host(weights), score * host(weights)
    blocks = _information(core, factors, bases, weight, score if observed else None)
    if penalty is not None and penalty.ridge:
        ridge = _ridge_information(problem, core, factors, observed=observed)
        blocks = blocks + penalty.ridge * ridge
    gauge = _gauge(core, factors)
    spread = None
    if any(len(group) > 1 for group in problem.groups):
        spread = _tie(core, factors, problem)
        blocks = spread.T @ blocks @ spread
        turns = _tied_gauge(core, factors, problem)
        gauge = np.asarray(np.linalg.lstsq(spread, turns, rcond=None)[0], dtype=np.float64)
    fixed = np.linalg.qr(gauge)[0]
    size = np.trace(blocks) / len(blocks)
    try:
        root = cholesky(blocks + size * (fixed @ fixed.T), lower=True)
    except LinAlgError:
        raise InformationError(
            "TensorResponseRegressor: the information about the coefficients is not positive "
            "definite: the fit has not converged, the data are separated, or there are more "
            "parameters than they tell of. Use the bootstrap, a ridge or a lower rank."
        ) from None
    return Covariance(core=core, factors=factors, scale=scale, root=root, spread=spread)


def jacobian(
    core: Floats, factors: tuple[Floats, ...], rows: Sequence[Floats | None]
) -> Iterator[Floats]:
    """Yield derivatives of the entries of ``core x factors x rows``, some rows at a time.

    Each part has shape (n, P_all): entries in C order, factors and core in C order.
    """
    matrices = [
        np.eye(len(factor)) if row is None else row
        for factor, row in zip(factors, rows, strict=True)
    ]
    rest = prod(len(matrix) for matrix in matrices[1:])
    step = max(1, _ROWS // max(rest, 1))
    for low in range(0, len(matrices[0]), step):
        some = [matrices[0][low : low + step], *matrices[1:]]
        yield _jacobian(core, factors, some)


def _jacobian(core: Floats, factors: tuple[Floats, ...], rows: list[Floats]) -> Floats:
    loadings = [row @ factor for row, factor in zip(rows, factors, strict=True)]
    shape = tuple(len(row) for row in rows)
    order, total = len(shape), prod(shape)
    columns = []
    for mode, row in enumerate(rows):
        # the core along all modes but this one, which keeps its index s
        partial = np.moveaxis(multi_mode_product(core, loadings, skip=mode), mode, -1)
        partial = np.expand_dims(partial, mode)[..., None, :]
        own = row.reshape([len(row) if k == mode else 1 for k in range(order)] + [-1, 1])
        whole = np.broadcast_to(own * partial, (*shape, row.shape[1], core.shape[mode]))
        columns.append(whole.reshape(total, -1))
    product = np.ones((*(1 for _ in shape), 1))
    for mode, loading in enumerate(loadings):
        own = loading.reshape([len(loading) if k == mode else 1 for k in range(order)] + [1, -1])
        product = (product[..., :, None] * own).reshape(
            *np.broadcast_shapes(product.shape[:-1], own.shape[:-2]), -1
        )
    columns.append(np.broadcast_to(product, (*shape, core.size)).reshape(total, -1))
    return np.concatenate(columns, axis=1)


def _information(
    core: Floats,
    factors: tuple[Floats, ...],
    bases: list[Floats | None],
    weight: Floats,
    score: Floats | None,
) -> Floats:
    """Return minus the second derivatives: of all factors, and of the core."""
    order = core.ndim
    loadings = [
        factor if basis is None else basis @ factor
        for factor, basis in zip(factors, bases, strict=True)
    ]
    pairs = [pair_columns(np, loading) for loading in loadings]
    sizes = [factor.size for factor in factors] + [core.size]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    whole = np.zeros((starts[-1], starts[-1]))

    def place(a: int, b: int, block: Floats) -> None:
        whole[starts[a] : starts[a + 1], starts[b] : starts[b + 1]] = block
        whole[starts[b] : starts[b + 1], starts[a] : starts[a + 1]] = block.T

    for k in range(order):
        own = expand_pairs(
            np, multi_mode_product(weight, pairs, skip=k, transpose=True), core.shape, keep=k
        )
        rows = unfold(core, k)
        place(k, k, _diagonal_block(rows @ own @ rows.T, bases[k]))
        # with the core: [i, s, a_k, y]
        half = rows @ own
        cross = np.einsum("ia,isy->isay", loadings[k], half)
        if score is not None:
            pulled = unfold(multi_mode_product(score, loadings, skip=k, transpose=True), k)
            cross = cross - np.einsum("sa,iy->isay", np.eye(core.shape[k]), pulled)
        place(k, order, _core_columns(cross, bases[k], core.shape, k))
        for other in range(k + 1, order):
            block = _cross_block(core, loadings, pairs, weight, score, k, other)
            place(k, other, _in_bases(block, bases[k], bases[other]))
    total = multi_mode_product(weight, pairs, transpose=True)
    place(order, order, expand_pairs(np, total, core.shape, keep=None))
    return whole


def _cross_block(
    core: Floats,
    loadings: list[Floats],
    pairs: list[Floats],
    weight: Floats,
    score: Floats | None,
    k: int,
    other: int,
) -> Floats:
    """Return the block between two modes in loading coordinates: [i, s, j, t]."""
    order = core.ndim
    rest = [mode for mode in range(order) if mode not in (k, other)]
    sums = multi_mode_product(
        weight,
        [pairs[mode] if mode in rest else None for mode in range(order)],
        transpose=True,
    )
    sums = np.transpose(sums, (k, other, *rest))
    size = prod(core.shape[mode] for mode in rest)
    spread = expand_pairs(
        np,
        sums.reshape(-1, *sums.shape[2:]),
        (1, *(core.shape[mode] for mode in rest)),
        keep=0,
    ).reshape(sums.shape[0], sums.shape[1], size, size)
    ordered = np.transpose(core, (k, other, *rest)).reshape(core.shape[k], core.shape[other], size)
    first = np.einsum("svx,jv->jsx", ordered, loadings[other])
    second = np.einsum("uty,iu->iyt", ordered, loadings[k])
    block = first[None] @ spread @ second[:, None]  # [i, j, s, t]
    if score is not None:
        pulled = multi_mode_product(
            score,
            [loadings[mode] if mode in rest else None for mode in range(order)],
            transpose=True,
        )
        pulled = np.transpose(pulled, (k, other, *rest)).reshape(sums.shape[0], sums.shape[1], size)
        block = block - np.einsum("ijx,stx->ijst", pulled, ordered)
    return np.transpose(block, (0, 2, 1, 3))


def _diagonal_block(rows: Floats, basis: Floats | None) -> Floats:
    """Return the block of one factor from its (d_k, r_k, r_k) information of loadings."""
    size, rank = rows.shape[0], rows.shape[1]
    if basis is None:
        block = np.zeros((size, rank, size, rank))
        block[np.arange(size), :, np.arange(size), :] = rows
        return block.reshape(size * rank, size * rank)
    mixed: Floats = np.einsum("ia,ist,ib->asbt", basis, rows, basis, optimize=True)
    return mixed.reshape(basis.shape[1] * rank, basis.shape[1] * rank)


def _in_bases(block: Floats, left: Floats | None, right: Floats | None) -> Floats:
    if left is not None:
        block = np.tensordot(left, block, axes=(0, 0))
    if right is not None:
        block = np.moveaxis(np.tensordot(block, right, axes=(2, 0)), -1, 2)
    return block.reshape(block.shape[0] * block.shape[1], -1)


def _core_columns(cross: Floats, basis: Floats | None, rank: tuple[int, ...], mode: int) -> Floats:
    """Bring the core's index of [i, s, a_k, others] into C order, and i into the basis."""
    if basis is not None:
        cross = np.tensordot(basis, cross, axes=(0, 0))
    others = [size for k, size in enumerate(rank) if k != mode]
    cross = cross.reshape(cross.shape[0], cross.shape[1], rank[mode], *others)
    return np.moveaxis(cross, 2, 2 + mode).reshape(cross.shape[0] * cross.shape[1], -1)


def _ridge_information(
    problem: Problem, core: Floats, factors: tuple[Floats, ...], *, observed: bool
) -> Floats:
    """Return the second derivatives of half the squared norm of the coefficient tensor."""
    units = np.ones(problem.widths)
    for mode, metric in enumerate(problem.metrics):
        if metric is not None:
            axes = [-1 if k == mode else 1 for k in range(core.ndim)]
            units = units * host(metric).reshape(axes)
    pull = -units * multi_mode_product(core, factors) if observed else None
    return _information(core, factors, [None] * core.ndim, units, pull)


def _gauge(core: Floats, factors: tuple[Floats, ...]) -> Floats:
    """Return the directions along which the coefficient tensor does not change."""
    return np.stack(
        [
            _turn(core, factors, (mode,), a, b)
            for mode in range(core.ndim)
            for a in range(core.shape[mode])
            for b in range(core.shape[mode])
        ],
        axis=1,
    )


def _tied_gauge(core: Floats, factors: tuple[Floats, ...], problem: Problem) -> Floats:
    """Return these directions where modes are tied: all of a group turn at once."""
    return np.stack(
        [
            _turn(core, factors, group, a, b)
            for group in problem.groups
            for a in range(core.shape[group[0]])
            for b in range(core.shape[group[0]])
        ],
        axis=1,
    )


def _turn(
    core: Floats, factors: tuple[Floats, ...], group: tuple[int, ...], a: int, b: int
) -> Floats:
    """Return the derivative of M (I + e E_ab) and of the core turned back, for a group."""
    parts = [np.zeros_like(factor) for factor in factors]
    back = np.zeros_like(core)
    for mode in group:
        parts[mode][:, b] = factors[mode][:, a]
        unit = np.zeros((core.shape[mode], core.shape[mode]))
        unit[a, b] = 1.0
        back -= multi_mode_product(core, [unit if k == mode else None for k in range(core.ndim)])
    return np.concatenate([part.ravel() for part in (*parts, back)])


def _tie(core: Floats, factors: tuple[Floats, ...], problem: Problem) -> Floats:
    """Return the map from free parameters to those of all modes."""
    sizes = [factors[group[0]].size for group in problem.groups]
    free_core = symmetric_basis(core.shape, problem.groups)
    all_sizes = [factor.size for factor in factors]
    starts = np.concatenate([[0], np.cumsum(all_sizes)])
    spread = np.zeros((starts[-1] + core.size, sum(sizes) + free_core.shape[1]))
    column = 0
    for group, size in zip(problem.groups, sizes, strict=True):
        for mode in group:
            spread[starts[mode] : starts[mode + 1], column : column + size] = np.eye(size)
        column += size
    spread[starts[-1] :, column:] = free_core
    return spread
