"""A regression stated in arrays, and a point in the space of its coefficients.

Inside the room covariates are orthonormal: with X = U S V', a mode's linear predictor runs over
the columns of U, and its coefficients are turned back by V S^-1 at the end. That is the
minimum-norm solution where X is rank deficient.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, TypeAlias

from tesseral.core import multi_mode_product, unfold
from tesseral.core._arrays import Array, Namespace, array_namespace
from tesseral.core.ties import Ties
from tesseral.regress._families import Family, Observations

Map: TypeAlias = Callable[[Callable[..., Any], Iterable[Any]], Iterable[Any]]
"""Applies a function to every chunk, like the builtin ``map``; results in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalty:
    """What is taken from the log-likelihood, and what is forbidden.

    Attributes
    ----------
    ridge : float
        Half of it times the squared norm of the coefficient tensor is taken off.
    max_theta : float or None
        Bound on the largest absolute linear predictor.
    barrier : float
        Weight of log(1 - (theta / max_theta)^2), added for every entry; 0 rescales instead.
    """

    ridge: float = 0.0
    max_theta: float | None = None
    barrier: float = 0.0

    @property
    def rescales(self) -> bool:
        """Whether a point outside the bound is shrunk into it."""
        return self.max_theta is not None and self.barrier == 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chunk:
    """Some rows of mode 0 of the data.

    Attributes
    ----------
    rows : slice
    tensor : array of shape (n, d_1, ..., d_{K-1})
    weights, offset : arrays of that shape, or None
    """

    rows: slice
    tensor: Array
    weights: Array | None
    offset: Array | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Data, family and design of one regression.

    Attributes
    ----------
    shape : tuple of K int
    chunks : list of Chunk
        The data; missing entries are 0 and have weight 0.
    bases : tuple of (array of shape (d_k, m_k) or None)
        Orthonormal covariates; None stands for the identity.
    metrics : tuple of (array of shape (m_k,) or None)
        Squared norm of a coefficient for each unit along a basis vector: 1 / s^2.
    groups : Ties
        Modes that share factors.
    family : Family
    seen : Observations
    penalty : Penalty
    dispersion : float or None
        A dispersion that is given; None for one that is estimated.
    run : Map
        How chunks are gone through.
    """

    shape: tuple[int, ...]
    chunks: Sequence[Chunk]
    bases: tuple[Array | None, ...]
    metrics: tuple[Array | None, ...]
    groups: Ties
    family: Family
    seen: Observations
    penalty: Penalty = field(default_factory=Penalty)
    dispersion: float | None = None
    run: Map = map

    @property
    def order(self) -> int:
        """The number of modes."""
        return len(self.shape)

    @property
    def widths(self) -> tuple[int, ...]:
        """The number m_k of basis vectors of each mode."""
        return tuple(
            size if basis is None else basis.shape[1]
            for size, basis in zip(self.shape, self.bases, strict=True)
        )

    def with_penalty(self, penalty: Penalty) -> "Problem":
        """Return the same regression under another penalty."""
        return replace(self, penalty=penalty)


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """Coefficients in basis coordinates: a core and orthonormal factors.

    Attributes
    ----------
    core : array of shape (r_0, ..., r_{K-1})
    factors : tuple of arrays of shape (m_k, r_k)
    bases : tuple of (array of shape (d_k, m_k) or None)
    dispersion : float
        Of the negative binomial family; 1 for the others, which profile theirs out.
    """

    core: Array
    factors: tuple[Array, ...]
    bases: tuple[Array | None, ...]
    dispersion: float = 1.0

    @property
    def rank(self) -> tuple[int, ...]:
        """Shape of the core."""
        return tuple(self.core.shape)

    @property
    def xp(self) -> Namespace:
        """The array functions that fit the coefficients."""
        return array_namespace("TensorResponseRegressor", self.core)

    @cached_property
    def loadings(self) -> tuple[Array, ...]:
        """The matrices A_k of shape (d_k, r_k): covariates times factors."""
        return tuple(
            factor if basis is None else basis @ factor
            for factor, basis in zip(self.factors, self.bases, strict=True)
        )

    @cached_property
    def spread(self) -> Array:
        """The core along all modes but the first: (r_0, d_1 ... d_{K-1}), rows for mode 0."""
        return unfold(multi_mode_product(self.core, self.loadings, skip=0), 0)

    def theta(self) -> Array:
        """Return the linear predictor of every entry."""
        shape = tuple(loading.shape[0] for loading in self.loadings)
        return self.xp.reshape(self.loadings[0] @ self.spread, shape)

    def scaled(self, factor: float) -> "Point":
        """Return the point of ``factor`` times its linear predictor."""
        return replace(self, core=self.core * factor)

    def with_factor(self, group: tuple[int, ...], factor: Array) -> "Point":
        """Return the point with another factor, orthonormalised, for the modes of ``group``."""
        basis, triangle = self.xp.linalg.qr(factor)
        changes = [triangle if mode in group else None for mode in range(len(self.factors))]
        core = multi_mode_product(self.core, changes)
        factors = tuple(basis if mode in group else old for mode, old in enumerate(self.factors))
        return replace(self, core=core, factors=factors)


def cut(tensor: Array, weights: Array | None, offset: Array | None, *, entries: int) -> list[Chunk]:
    """Cut the data along mode 0 into chunks of about ``entries`` entries, views all of them."""
    size = tensor.shape[0]
    rows = max(1, entries // max(prod(tensor.shape[1:]), 1))
    n_chunks = -(-size // rows)
    bounds = [round(size * i / n_chunks) for i in range(n_chunks + 1)]
    return [
        Chunk(
            rows=slice(low, high),
            tensor=tensor[low:high, ...],
            weights=None if weights is None else weights[low:high, ...],
            offset=None if offset is None else offset[low:high, ...],
        )
        for low, high in pairwise(bounds)
    ]
