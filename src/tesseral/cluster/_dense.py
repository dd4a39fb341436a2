"""Dense tensors of any framework as a source."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from tesseral.cluster._source import Floats, Grouping, Rows, complete_exposures
from tesseral.cluster._spectral import projected_rows, square_rows
from tesseral.core._arrays import Array, array_namespace, like, to_float, to_numpy
from tesseral.core.linalg import leading_eigenvectors, left_singular_vectors, mode_gram
from tesseral.core.modeprod import mode_product, multi_mode_product
from tesseral.core.ties import Ties, symmetrize
from tesseral.core.unfold import unfold

IMPUTATIONS = 5
"""How often missing entries are replaced by the low-rank fit before the spectral start."""

SLAB_ENTRIES = 2**20
"""Entries whose means are held at a time."""

SINGLE_FROM = 2**20
"""Entries from which the Gram matrices of several modes are made from a copy in float32.

For 200^3 on two cores, three took 81 ms in float64, and 52 in float32 with the copy. Only
directions to project on come from them; labels, degrees and block means are then found in float64.
"""

DISTINCT = 1e-3
"""Smallest share of the largest eigenvalue that such a Gram matrix shows well enough."""

CLIP = 1e-6
"""How far the mean of a 0 or 1 is kept from both; degrees may push it beyond."""


class DenseSource:
    """A dense tensor; where entries are missing, it is zero and so is its weight."""

    def __init__(
        self, tensor: Array, weights: Array | None = None, squared_norm: float | None = None
    ) -> None:
        xp = array_namespace("DenseSource", tensor)
        self.shape = tuple(tensor.shape)
        self.complete = weights is None
        # every product reads it in C order; another order would be copied each time
        self.tensor = xp.reshape(xp.reshape(tensor, (-1,)), self.shape)
        self.weights = weights
        self.n_observed = float(prod(self.shape)) if weights is None else to_float(xp.sum(weights))
        if squared_norm is None:
            flat = xp.reshape(self.tensor, (-1,))
            squared_norm = to_float(xp.matmul(flat, flat))
        self.squared_norm = squared_norm
        self._eigenvectors: dict[int, Array] = {}

    def pooled(self, ties: Ties) -> "DenseSource":
        """Return the source that averages over tied modes; the squared norm stays."""
        weights = None if self.weights is None else symmetrize(self.weights, ties)
        return DenseSource(symmetrize(self.tensor, ties), weights, self.squared_norm)

    def spectral_rows(
        self, ranks: Sequence[int], factor_of: Sequence[int], modes: Sequence[int]
    ) -> Rows:
        """Return rows of the tensor projected twice; missing entries filled by its fit."""
        source = self if self.complete else self.filled(ranks)
        source._find_in_single(sorted(set(factor_of)))
        return projected_rows(source, ranks, factor_of, modes)

    def square_rows(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:
        """Return rows of the tensor after its square unfolding is cut to low rank."""
        source = self if self.complete else self.filled(ranks)
        found = square_rows(source.tensor, ranks)
        return {mode: _as_floats(found[mode]) for mode in modes}

    def directions(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:
        """Return leading left singular vectors; missing entries filled by a low-rank fit."""
        source = self if self.complete else self.filled(ranks)
        return {mode: _as_floats(source.vectors(mode, ranks[mode])) for mode in modes}

    def vectors(self, mode: int, rank: int) -> Array:
        """Return leading left singular vectors of an unfolding; one Gram matrix for all ranks."""
        size, others = self.shape[mode], prod(self.shape) // self.shape[mode]
        if size > others:
            return left_singular_vectors(unfold(self.tensor, mode), min(rank, others))
        if mode not in self._eigenvectors or self._eigenvectors[mode].shape[1] < rank:
            self._eigenvectors[mode] = leading_eigenvectors(mode_gram(self.tensor, mode), size)
        return self._eigenvectors[mode][:, :rank]

    def _find_in_single(self, modes: Sequence[int]) -> None:
        """Keep the singular vectors of large tensors that float32 shows well enough."""
        xp = array_namespace("DenseSource", self.tensor)
        size = prod(self.shape)
        new = [k for k in modes if k not in self._eigenvectors and self.shape[k] ** 2 <= size]
        fits = 1e-24 < self.squared_norm / size < 1e24  # squares stay in the range of float32
        if len(new) < 2 or size < SINGLE_FROM or self.tensor.dtype != xp.float64 or not fits:
            return
        single = xp.astype(self.tensor, xp.float32)
        for mode in new:
            gram = xp.astype(mode_gram(single, mode), xp.float64)
            found = leading_eigenvectors(gram, self.shape[mode])
            values = xp.sum(found * xp.matmul(gram, found), axis=0)
            shown = int(xp.sum(xp.astype(values >= DISTINCT * values[0], xp.int64)))
            self._eigenvectors[mode] = found[:, :shown]

    def project(self, matrices: Sequence[Array], modes: Sequence[int]) -> dict[int, Array]:
        """Return, for each of ``modes``, its unfolding after products with the other matrices.

        ``matrices`` has one array of shape (d_k, m_k) for each mode.
        """
        return dict(_branches(self.tensor, matrices, list(range(len(matrices))), list(modes)))

    def sums(self, groupings: Sequence[Grouping], modes: Sequence[int]) -> Rows:
        """Return sums of the entries of each node of ``modes`` over blocks of the others."""
        return _block_sums(self.tensor, groupings, modes)

    def exposures(self, groupings: Sequence[Grouping], modes: Sequence[int]) -> Rows:
        """Return such sums of the weights; one row for all nodes if nothing is missing."""
        if self.weights is None:
            return complete_exposures(groupings, modes)
        return _block_sums(self.weights, groupings, modes)

    def bernoulli(self, groupings: Sequence[Grouping], core: Floats) -> float:
        """Return the log-likelihood of 0 and 1; means are kept ``CLIP`` away from both."""
        xp = array_namespace("DenseSource", self.tensor)
        total = 0.0
        for part, mean in self._means(groupings, core):
            ones, seen = self.tensor[part, ...], self._weights(part)
            likelihood = ones * xp.log(mean) + (seen - ones) * xp.log1p(-mean)
            total += to_float(xp.sum(likelihood))
        return total

    def bernoulli_slopes(
        self, groupings: Sequence[Grouping], core: Floats, modes: Sequence[int]
    ) -> tuple[Rows, Rows]:
        """Return sums of slopes and information; none where a mean has reached its bound."""
        xp = array_namespace("DenseSource", self.tensor)
        plain = [grouping.unweighted() for grouping in groupings]
        widths = {k: prod(g.size for g in plain) // plain[k].size for k in modes}
        found = tuple({k: np.zeros((self.shape[k], widths[k])) for k in modes} for _ in range(2))
        for part, mean in self._means(groupings, core):
            ones, seen = self.tensor[part, ...], self._weights(part)
            free = xp.astype(mean < 1 - CLIP, mean.dtype)
            slope, information = (
                free * above / (1 - mean) for above in (ones - seen * mean, seen * mean)
            )
            own = [Grouping(labels=plain[0].labels[part], size=plain[0].size), *plain[1:]]
            for rows, terms in zip(found, (slope, information), strict=True):
                for mode, sums in _block_sums(terms, own, modes).items():
                    rows[mode][part if mode == 0 else slice(None)] += sums
        return found  # type: ignore[return-value]  # there are two

    def bernoulli_trials(
        self, groupings: Sequence[Grouping], core: Floats, mode: int, degrees: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return likelihood, slope and information of each node in each cluster."""
        xp = array_namespace("DenseSource", self.tensor)
        matrices = [grouping.matrix(self.tensor) for grouping in groupings]
        clusters = unfold(multi_mode_product(like(core, self.tensor), matrices, skip=mode), mode)
        step = max(SLAB_ENTRIES // clusters.shape[1], 1)
        given = like(degrees, self.tensor)
        found = np.empty((3, *degrees.shape))
        for start in range(0, self.shape[mode], step):
            part = slice(start, start + step)
            place = (*[slice(None)] * mode, part, ...)
            ones = unfold(self.tensor[place], mode)
            seen = 1.0 if self.weights is None else unfold(self.weights[place], mode)
            for a in range(clusters.shape[0]):
                mean = xp.clip(given[part, a][:, None] * clusters[a, :], CLIP, 1 - CLIP)
                free = xp.astype(mean < 1 - CLIP, mean.dtype) / (1 - mean)
                likelihood = ones * xp.log(mean) + (seen - ones) * xp.log1p(-mean)
                terms = (likelihood, free * (ones - seen * mean), free * seen * mean)
                for rows, term in zip(found, terms, strict=True):
                    rows[part, a] = to_numpy(xp.sum(term, axis=1))
        return found[0], found[1], found[2]

    def _means(self, groupings: Sequence[Grouping], core: Floats) -> Iterator[tuple[slice, Array]]:
        """Yield slabs of the first mode, and the means of their entries off 0 and 1."""
        xp = array_namespace("DenseSource", self.tensor)
        matrices = [grouping.matrix(self.tensor) for grouping in groupings]
        inner = multi_mode_product(like(core, self.tensor), [None, *matrices[1:]])
        step = max(SLAB_ENTRIES // prod(self.shape[1:]), 1)
        for start in range(0, self.shape[0], step):
            part = slice(start, start + step)
            yield part, xp.clip(mode_product(inner, matrices[0][part, :], 0), CLIP, 1 - CLIP)

    def _weights(self, part: slice) -> Any:
        return 1.0 if self.weights is None else self.weights[part, ...]

    def filled(self, ranks: Sequence[int]) -> "DenseSource":
        """Return a complete source whose missing entries come from a low-rank fit."""
        assert self.weights is not None
        xp = array_namespace("DenseSource", self.tensor)
        seen = self.weights > 0
        values = self.tensor / xp.where(seen, self.weights, xp.ones_like(self.weights))
        fit: Array = xp.sum(self.tensor) / xp.sum(self.weights)
        ranks = [min(rank, size) for rank, size in zip(ranks, self.shape, strict=True)]
        for _ in range(IMPUTATIONS):
            current = DenseSource(xp.where(seen, values, fit), squared_norm=0.0)
            factors = [current.vectors(mode, rank) for mode, rank in enumerate(ranks)]
            core = multi_mode_product(current.tensor, factors, transpose=True)
            fit = multi_mode_product(core, factors)
        return DenseSource(xp.where(seen, values, fit))


def _block_sums(tensor: Array, groupings: Sequence[Grouping], modes: Sequence[int]) -> Rows:
    matrices = [grouping.matrix(tensor) for grouping in groupings]
    found = _branches(tensor, matrices, list(range(len(matrices))), list(modes))
    return {mode: _as_floats(rows) for mode, rows in found}


def _branches(
    tensor: Array, matrices: Sequence[Array], pending: list[int], wanted: list[int]
) -> list[tuple[int, Array]]:
    """Contract the modes of ``pending`` but one, for each of ``wanted`` in turn.

    What two wanted modes share is contracted once: their modes are halved, and each half is
    reached by contracting the other, so the whole tensor is read twice however many there are.
    """
    if len(wanted) == 1:
        contracted = [mode for mode in pending if mode != wanted[0]]
        return [(wanted[0], unfold(_contract(tensor, matrices, contracted), wanted[0]))]
    half = len(pending) // 2
    left, right = pending[:half], pending[half:]
    found = []
    for kept, contracted in ((left, right), (right, left)):
        inside = [mode for mode in wanted if mode in kept]
        if inside:
            part = _contract(tensor, matrices, contracted)
            found += _branches(part, matrices, kept, inside)
    return found


def _contract(tensor: Array, matrices: Sequence[Array], modes: list[int]) -> Array:
    """Multiply some modes, the one that shrinks most first; among equals the first.

    For 200^3 and five columns on two cores, the first mode takes 3.4 ms, the second 5.5 and the
    third 7.2: the library multiplies a few long rows better than many short ones.
    """
    shrink = {k: 1 / tensor.shape[k] - 1 / matrices[k].shape[1] for k in modes}
    for mode in sorted(modes, key=lambda k: (shrink[k], k)):
        tensor = mode_product(tensor, matrices[mode], mode, transpose=True)
    return tensor


def _as_floats(array: Array) -> Floats:
    values: np.ndarray[Any, Any] = to_numpy(array)
    return values.astype(np.float64, copy=False)
