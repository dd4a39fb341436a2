"""Sparse tensors as a source: everything is summed over the stored entries."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tesseral._errors import ParameterError
from tesseral.cluster._source import Floats, Grouping, Rows, complete_exposures
from tesseral.cluster._sparse_start import marginal_rows
from tesseral.cluster._spectral import projected_rows
from tesseral.core.coo import CooTensor
from tesseral.core.linalg import leading_eigenvectors
from tesseral.core.ties import Ties

PIECE = 2**21
"""Stored entries that are looked at together."""

PROJECTED_UP_TO = 2000
"""Nodes of a mode up to which the start is that of dense tensors, from Gram matrices."""

_SERIES_UP_TO = 0.95
"""Largest mean of a 0 or 1 for which log(1 - mean) is summed as a power series."""


class CoordinateSource:
    """A sparse tensor; entries that are not stored are zeros, none is missing."""

    def __init__(self, tensor: CooTensor) -> None:
        self.tensor = tensor
        self.shape = tensor.shape
        self.complete = True
        self.n_observed = float(prod(tensor.shape))
        self.squared_norm = float(tensor.values @ tensor.values)
        self._grams: dict[int, Floats] = {}

    def pooled(self, ties: Ties) -> "CoordinateSource":
        """Return the source that averages over tied modes; the squared norm stays."""
        source = CoordinateSource(self.tensor.symmetrized(ties))
        source.squared_norm = self.squared_norm
        return source

    def spectral_rows(
        self, ranks: Sequence[int], factor_of: Sequence[int], modes: Sequence[int]
    ) -> Rows:
        """Return rows of the tensor projected twice or, for many nodes, of its marginals."""
        if max(self.shape) <= PROJECTED_UP_TO:
            return projected_rows(self, ranks, factor_of, modes)
        return {mode: marginal_rows(self.tensor, mode, ranks[mode]) for mode in modes}

    def square_rows(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:  # noqa: ARG002
        """Refuse: a square unfolding has too many rows here."""
        raise ParameterError("projection='square' needs a dense array in memory.")

    def directions(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:
        """Return leading left singular vectors or, for many nodes, those of the marginals."""
        if max(self.shape) <= PROJECTED_UP_TO:
            return {mode: self.vectors(mode, ranks[mode]) for mode in modes}
        return {mode: marginal_rows(self.tensor, mode, ranks[mode]) for mode in modes}

    def vectors(self, mode: int, rank: int) -> Floats:
        """Return leading left singular vectors of an unfolding."""
        if mode not in self._grams:
            others = [k for k in range(len(self.shape)) if k != mode]
            columns = np.unique(self._flat(others), return_inverse=True)[1]
            unfolding = csr_array(
                (self.tensor.values, (self.tensor.coords[mode], columns)),
                shape=(self.shape[mode], int(columns.max()) + 1),
            )
            self._grams[mode] = (unfolding @ unfolding.T).toarray()
        return np.asarray(leading_eigenvectors(self._grams[mode], rank))

    def project(self, matrices: Sequence[Floats], modes: Sequence[int]) -> dict[int, Floats]:
        """Return unfoldings along ``modes`` after products along all other modes."""
        found = {}
        for mode in modes:
            others = [k for k in range(len(self.shape)) if k != mode]
            width = prod(matrices[k].shape[1] for k in others)
            rows = np.zeros((self.shape[mode], width))
            for part in self._pieces(max(PIECE // width, 1)):
                products = self.tensor.values[part, None]
                for k in others:
                    factor = matrices[k][self.tensor.coords[k, part]]
                    products = (products[:, :, None] * factor[:, None, :]).reshape(len(factor), -1)
                members = csr_array(
                    (
                        np.ones(len(products)),
                        (self.tensor.coords[mode, part], np.arange(len(products))),
                    ),
                    shape=(self.shape[mode], len(products)),
                )
                rows += members @ products
            found[mode] = rows
        return found

    def sums(self, groupings: Sequence[Grouping], modes: Sequence[int]) -> Rows:
        """Return sums of the entries of each node of ``modes`` over blocks of the others."""
        found = {}
        for mode in modes:
            others = [k for k in range(len(self.shape)) if k != mode]
            width = prod(groupings[k].size for k in others)
            rows = np.zeros(self.shape[mode] * width)
            # summing a piece touches every row once, so pieces are not to be much smaller
            for part in self._pieces(max(PIECE, len(rows) // 4)):
                place = self.tensor.coords[mode, part].astype(np.int64)
                weight = self.tensor.values[part]
                for k in others:
                    nodes = self.tensor.coords[k, part]
                    place = place * groupings[k].size + groupings[k].labels[nodes]
                    weights = groupings[k].weights
                    weight = weight if weights is None else weight * weights[nodes]
                rows += np.bincount(place, weight, len(rows))
            found[mode] = rows.reshape(self.shape[mode], width)
        return found

    def exposures(self, groupings: Sequence[Grouping], modes: Sequence[int]) -> Rows:
        """Return the same sums of a tensor of ones: one row for all nodes."""
        return complete_exposures(groupings, modes)

    def bernoulli(self, groupings: Sequence[Grouping], core: Floats) -> float:
        """Return the log-likelihood of 0 and 1; the many zeros are summed as a power series.

        Raises
        ------
        ParameterError
            If a mean is above 0.95: then the series is of no use, nor is the tensor sparse.
        """
        degrees = [np.ones(len(g.labels)) if g.weights is None else g.weights for g in groupings]
        highest = [np.zeros(g.size) for g in groupings]
        for top, g, theta in zip(highest, groupings, degrees, strict=True):
            np.maximum.at(top, g.labels, theta)
        largest = _times_outer(core, highest).max()
        if largest > _SERIES_UP_TO:
            raise ParameterError(
                f"family='binomial': the model gives an entry the probability {largest:.3g}, too "
                "much for sparse data; give family='poisson' or a dense array."
            )
        means = self._means(groupings, core)
        total = float((self.tensor.values * (np.log(means) - np.log1p(-means))).sum())
        for power in range(1, 1000):
            powered = [
                np.bincount(g.labels, theta**power, g.size).astype(np.float64)
                for g, theta in zip(groupings, degrees, strict=True)
            ]
            term = float(_times_outer(core**power, powered).sum()) / power
            total -= term
            if term <= 1e-15 * abs(total):
                break
        return total

    def _means(self, groupings: Sequence[Grouping], core: Floats) -> Floats:
        """Return the mean of every stored entry."""
        coords = self.tensor.coords
        means = core[tuple(g.labels[nodes] for g, nodes in zip(groupings, coords, strict=True))]
        for g, nodes in zip(groupings, coords, strict=True):
            means = means if g.weights is None else means * g.weights[nodes]
        return np.asarray(np.maximum(means, np.finfo(np.float64).tiny))

    def _flat(self, modes: Sequence[int]) -> NDArray[Any]:
        sizes = tuple(self.shape[k] for k in modes)
        coords = tuple(self.tensor.coords[k] for k in modes)
        return np.asarray(np.ravel_multi_index(coords, sizes))

    def _pieces(self, step: int) -> list[slice]:
        n = len(self.tensor.values)
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _times_outer(core: Floats, vectors: Sequence[Floats]) -> Floats:
    """Return a tensor with every mode multiplied by a vector."""
    for mode, vector in enumerate(vectors):
        shape = [1] * core.ndim
        shape[mode] = len(vector)
        core = core * vector.reshape(shape)
    return core
