"""Sparse tensors as a source: everything is summed over the stored entries."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tesseral._errors import ParameterError
from tesseral.cluster._dense import IMPUTATIONS
from tesseral.cluster._source import Floats, Grouping, Rows, complete_exposures, outer
from tesseral.cluster._sparse_missing import WHOLE, shares_at, split, tucker_entries
from tesseral.cluster._sparse_start import marginal_rows
from tesseral.cluster._spectral import projected_rows
from tesseral.core.coo import CooTensor
from tesseral.core.linalg import leading_eigenvectors
from tesseral.core.ties import Ties
from tesseral.core.unfold import fold

PIECE = 2**21
"""Stored entries that are looked at together."""

PROJECTED_UP_TO = 2000
"""Nodes of a mode up to which the start is that of dense tensors, from Gram matrices."""

ROUNDING = 1e-12
"""Share of a block below which what is left of it, of all its entries less the missing, is none."""

_SERIES_UP_TO = 0.95
"""Largest mean of a 0 or 1 for which log(1 - mean) is summed as a power series."""

_MOST_POWERS = 1000

_TINY = np.finfo(np.float64).tiny


class CoordinateSource:
    """A sparse tensor of finite values; entries that are not stored are zeros.

    ``missing`` stores one less the weight of every entry that is not observed.
    """

    def __init__(self, tensor: CooTensor, missing: CooTensor | None = None) -> None:
        self.tensor = tensor
        self.missing = missing
        self.shape = tensor.shape
        self.complete = missing is None
        self.n_observed = float(prod(tensor.shape))
        if missing is not None:
            self.n_observed -= float(missing.values.sum())
        self.squared_norm = float(tensor.values @ tensor.values)
        self._grams: dict[int, Floats] = {}

    @classmethod
    def observed(cls, where: str, tensor: CooTensor) -> "CoordinateSource":
        """Return the source of a tensor as given, whose stored NaN are missing entries."""
        source = cls(*split(tensor))
        if source.n_observed == 0:
            raise ParameterError(f"{where}: every entry of the tensor is missing.")
        return source

    def pooled(self, ties: Ties) -> "CoordinateSource":
        """Return the source that averages over tied modes; the squared norm stays."""
        missing = None if self.missing is None else self.missing.symmetrized(ties)
        source = CoordinateSource(self.tensor.symmetrized(ties), missing)
        source.squared_norm = self.squared_norm
        return source

    def spectral_rows(
        self, ranks: Sequence[int], factor_of: Sequence[int], modes: Sequence[int]
    ) -> Rows:
        """Return rows of the tensor projected twice or, for many nodes, of its marginals."""
        if max(self.shape) > PROJECTED_UP_TO:
            return self._marginal_rows(ranks, modes)
        source = self if self.missing is None else self.filled(ranks)
        return projected_rows(source, ranks, factor_of, modes)

    def square_rows(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:  # noqa: ARG002
        """Refuse: a square unfolding has too many rows here."""
        raise ParameterError("projection='square' needs a dense array in memory.")

    def directions(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:
        """Return leading left singular vectors or, for many nodes, those of the marginals."""
        if max(self.shape) > PROJECTED_UP_TO:
            return self._marginal_rows(ranks, modes)
        source = self if self.missing is None else self.filled(ranks)
        return {mode: source.vectors(mode, ranks[mode]) for mode in modes}

    def _marginal_rows(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:
        return {k: marginal_rows(self.tensor, k, ranks[k], self.missing) for k in modes}

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
        """Return such sums of the weights; one row for all nodes if nothing is missing."""
        whole = complete_exposures(groupings, modes)
        if self.missing is None:
            return whole
        gone = CoordinateSource(self.missing).sums(groupings, modes)
        left = {mode: whole[mode] - gone[mode] for mode in modes}
        # what is left of a block that is missing is rounding
        return {k: np.where(left[k] > ROUNDING * whole[k], left[k], 0.0) for k in modes}

    def bernoulli(self, groupings: Sequence[Grouping], core: Floats) -> float:
        """Return the log-likelihood of 0 and 1; the many zeros are summed as a power series.

        Raises
        ------
        ParameterError
            If a mean is above 0.95: then the series is of no use, nor is the tensor sparse.
        """
        _check_largest(groupings, core)
        means = _means_at(groupings, core, self.tensor.coords)
        total = float((self.tensor.values * (np.log(means) - np.log1p(-means))).sum())
        if self.missing is not None:  # the series is over all entries
            means = _means_at(groupings, core, self.missing.coords)
            total -= float((self.missing.values * np.log1p(-means)).sum())
        for power in range(1, _MOST_POWERS):
            powered = [g.totals() for g in _powered(groupings, power)]
            term = float(_times_outer(core**power, powered).sum()) / power
            total -= term
            if term <= 1e-15 * abs(total):
                break
        return total

    def bernoulli_slopes(
        self, groupings: Sequence[Grouping], core: Floats, modes: Sequence[int]
    ) -> tuple[Rows, Rows]:
        """Return sums of slopes and information; those of the zeros as a power series."""
        _check_largest(groupings, core)
        plain = [grouping.unweighted() for grouping in groupings]
        means = _means_at(groupings, core, self.tensor.coords)
        shown = self._with(self.tensor.values / (1 - means)).sums(plain, modes)
        information = {mode: _odds(groupings, core, mode) for mode in modes}
        if self.missing is not None:
            means = _means_at(groupings, core, self.missing.coords)
            gone = CoordinateSource(self.missing)._with(self.missing.values * means / (1 - means))
            lost = gone.sums(plain, modes)
            information = {k: np.maximum(information[k] - lost[k], 0.0) for k in modes}
        return {mode: shown[mode] - information[mode] for mode in modes}, information

    def bernoulli_trials(
        self, groupings: Sequence[Grouping], core: Floats, mode: int, degrees: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return likelihood, slope and information of each node in each cluster."""
        clusters = np.moveaxis(core, mode, 0).reshape(core.shape[mode], -1)
        others = [g for k, g in enumerate(groupings) if k != mode]
        largest = (clusters * outer([_highest(g) for g in others])).max(axis=1)
        bounded = np.minimum(degrees, _SERIES_UP_TO / np.maximum(largest, _TINY))
        likelihood, information = _zeros_of_nodes(clusters, groupings, mode, bounded)
        slope = -information
        if self.missing is not None:
            for a, nodes, means in _moved(self.missing, groupings, core, mode, bounded):
                log_zero, odds = self.missing.values * np.log1p(-means), means / (1 - means)
                likelihood[:, a] -= np.bincount(nodes, log_zero, len(degrees))
                lost = np.bincount(nodes, self.missing.values * odds, len(degrees))
                information[:, a] -= lost
                slope[:, a] += lost
        for a, nodes, means in _moved(self.tensor, groupings, core, mode, bounded):
            one = self.tensor.values * (np.log(means) - np.log1p(-means))
            likelihood[:, a] += np.bincount(nodes, one, len(degrees))
            slope[:, a] += np.bincount(nodes, self.tensor.values / (1 - means), len(degrees))
        return likelihood, slope, np.maximum(information, 0.0)

    def _with(self, values: Floats) -> "CoordinateSource":
        """Return a source with other values in the same places."""
        return CoordinateSource(
            CooTensor(coords=self.tensor.coords, values=values, shape=self.shape)
        )

    def filled(self, ranks: Sequence[int]) -> "CoordinateSource":
        """Return a complete source whose missing entries come from a low-rank fit."""
        assert self.missing is not None
        ranks = [min(rank, size) for rank, size in zip(ranks, self.shape, strict=True)]
        shown = self.tensor.values / (1 - shares_at(self.missing, self.tensor.coords))
        gone = self.missing.coords[:, self.missing.values > WHOLE]
        coords = np.concatenate([self.tensor.coords, gone], axis=1)
        fit = np.full(gone.shape[1], self.tensor.values.sum() / self.n_observed)
        for _ in range(IMPUTATIONS):
            values = np.concatenate([shown, fit])
            current = CoordinateSource(CooTensor(coords=coords, values=values, shape=self.shape))
            factors = [current.vectors(mode, rank) for mode, rank in enumerate(ranks)]
            core = fold(factors[0].T @ current.project(factors, [0])[0], 0, ranks)
            fit = tucker_entries(core, factors, gone)
        values = np.concatenate([shown, fit])
        return CoordinateSource(CooTensor(coords=coords, values=values, shape=self.shape))

    def _flat(self, modes: Sequence[int]) -> NDArray[Any]:
        sizes = tuple(self.shape[k] for k in modes)
        coords = tuple(self.tensor.coords[k] for k in modes)
        return np.asarray(np.ravel_multi_index(coords, sizes))

    def _pieces(self, step: int) -> list[slice]:
        n = len(self.tensor.values)
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _check_largest(groupings: Sequence[Grouping], core: Floats) -> None:
    largest = _times_outer(core, [_highest(g) for g in groupings]).max()
    if largest > _SERIES_UP_TO:
        raise ParameterError(
            f"family='binomial': the model gives an entry the probability {largest:.3g}, too "
            "much for sparse data; give family='poisson' or a dense array."
        )


def _highest(grouping: Grouping) -> Floats:
    """Return the largest weight in each cluster."""
    top = np.zeros(grouping.size)
    np.maximum.at(top, grouping.labels, 1.0 if grouping.weights is None else grouping.weights)
    return top


def _powered(groupings: Sequence[Grouping], power: int) -> list[Grouping]:
    """Return the groupings with their weights raised to a power."""
    return [
        g if g.weights is None else Grouping(labels=g.labels, size=g.size, weights=g.weights**power)
        for g in groupings
    ]


def _odds(groupings: Sequence[Grouping], core: Floats, mode: int) -> Floats:
    """Return the sums of m / (1 - m) over the entries of each node of a mode in each block."""
    own, size = groupings[mode], core.shape[mode]
    total = np.zeros((len(own.labels), core.size // size))
    for power in range(1, _MOST_POWERS):
        powered = _powered(groupings, power)
        clusters = np.moveaxis(core**power, mode, 0).reshape(size, -1)
        term = (clusters * complete_exposures(powered, [mode])[mode])[own.labels]
        weights = powered[mode].weights
        term = term if weights is None else term * weights[:, None]
        total += term
        if term.max() <= 1e-12 * total.max():
            break
    return total


def _zeros_of_nodes(
    clusters: Floats, groupings: Sequence[Grouping], mode: int, degrees: Floats
) -> tuple[Floats, Floats]:
    """Return sums of log(1 - m) and of m / (1 - m) over all entries of each node."""
    likelihood, odds = np.zeros(degrees.shape), np.zeros(degrees.shape)
    for power in range(1, _MOST_POWERS):
        totals = complete_exposures(_powered(groupings, power), [mode])[mode]
        term = degrees**power * (clusters**power * totals).sum(axis=1)
        likelihood -= term / power
        odds += term
        if term.max() <= 1e-12 * odds.max():
            break
    return likelihood, odds


def _moved(
    tensor: CooTensor, groupings: Sequence[Grouping], core: Floats, mode: int, degrees: Floats
) -> Iterator[tuple[int, NDArray[Any], Floats]]:
    """Yield each cluster, the nodes of the stored entries, and their means if all were in it."""
    nodes = tensor.coords[mode]
    for a in range(core.shape[mode]):
        moved = list(groupings)
        labels = np.full(len(degrees), a)
        moved[mode] = Grouping(labels=labels, size=core.shape[mode], weights=degrees[:, a])
        yield a, nodes, _means_at(moved, core, tensor.coords)


def _means_at(groupings: Sequence[Grouping], core: Floats, coords: NDArray[Any]) -> Floats:
    """Return the means of the entries at some coordinates."""
    means = core[tuple(g.labels[nodes] for g, nodes in zip(groupings, coords, strict=True))]
    for g, nodes in zip(groupings, coords, strict=True):
        means = means if g.weights is None else means * g.weights[nodes]
    return np.asarray(np.maximum(means, _TINY))


def _times_outer(core: Floats, vectors: Sequence[Floats]) -> Floats:
    """Return a tensor with every mode multiplied by a vector."""
    for mode, vector in enumerate(vectors):
        shape = [1] * core.ndim
        shape[mode] = len(vector)
        core = core * vector.reshape(shape)
    return core
