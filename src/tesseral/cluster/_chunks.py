"""Dask arrays as a source: larger than memory, one batch of chunks after the other.

Every question is a sum over chunks. Chunks are computed by whatever scheduler dask would use, a
cluster too, as many at a time as it has threads; only sums come back.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
from scipy.special import gammaln

from tesseral._errors import ParameterError
from tesseral.cluster._dense import DenseSource
from tesseral.cluster._source import Floats, Grouping, Rows, complete_exposures
from tesseral.cluster._spectral import projected_rows
from tesseral.core.linalg import leading_eigenvectors, mode_gram
from tesseral.core.ties import Ties, reorderings
from tesseral.runtime.cpu import cpu_threads
from tesseral.runtime.extras import require

Slices = tuple[slice, ...]


class ChunkSource:
    """A dask array of complete numbers."""

    def __init__(self, array: Any, squared_norm: float | None = None) -> None:
        self.array = array
        self.shape = tuple(int(size) for size in array.shape)
        self.complete = True
        self.n_observed = float(prod(self.shape))
        if squared_norm is None:
            squared_norm = sum(float(part) for part, _ in self._each(_squares, self._chunks()))
        if not np.isfinite(squared_norm):
            raise ParameterError(
                "a dask array must be finite; missing entries are known in arrays in memory only."
            )
        self.squared_norm = squared_norm
        self._grams: dict[int, Floats] = {}

    def pooled(self, ties: Ties) -> "ChunkSource":
        """Return the source that averages over tied modes, chunk by chunk."""
        axes_of = reorderings(ties)
        if len(axes_of) == 1:
            return self
        total = sum(self.array.transpose(axes) for axes in axes_of)
        # only squares of the data themselves measure what a fit leaves
        return ChunkSource(total / len(axes_of), self.squared_norm)

    def find_ties(self) -> Ties:
        """Return the groups of modes in which the array is exactly symmetric."""
        groups: list[list[int]] = []
        for mode in range(len(self.shape)):
            for group in groups:
                if self._swap_changes_nothing(group[0], mode):
                    group.append(mode)
                    break
            else:
                groups.append([mode])
        return tuple(tuple(group) for group in groups)

    def spectral_rows(
        self, ranks: Sequence[int], factor_of: Sequence[int], modes: Sequence[int]
    ) -> Rows:
        """Return rows of the tensor projected twice."""
        return projected_rows(self, ranks, factor_of, modes)

    def square_rows(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:  # noqa: ARG002
        """Refuse: a square unfolding has too many rows here."""
        raise ParameterError("projection='square' needs a dense array in memory.")

    def directions(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:
        """Return leading left singular vectors of the unfoldings along ``modes``."""
        return {mode: self.vectors(mode, ranks[mode]) for mode in modes}

    def vectors(self, mode: int, rank: int) -> Floats:
        """Return leading left singular vectors of an unfolding, from its Gram matrix."""
        if mode not in self._grams:
            gram = np.zeros((self.shape[mode],) * 2)
            slabs = self._chunks(whole=mode)
            for part, _ in self._each(lambda slab: mode_gram(slab, mode), slabs):
                gram += part
            self._grams[mode] = gram
        return np.asarray(leading_eigenvectors(self._grams[mode], rank))

    def project(self, matrices: Sequence[Floats], modes: Sequence[int]) -> dict[int, Floats]:
        """Return unfoldings along ``modes`` after products along all other modes."""
        widths = [matrix.shape[1] for matrix in matrices]
        rows = {mode: np.zeros((self.shape[mode], prod(widths) // widths[mode])) for mode in modes}

        def products(chunk: Floats, place: Slices) -> dict[int, Floats]:
            own = [matrix[part] for matrix, part in zip(matrices, place, strict=True)]
            return DenseSource(chunk, squared_norm=0.0).project(own, modes)

        for found, place in self._each(products, self._chunks(), placed=True):
            for mode in modes:
                rows[mode][place[mode]] += found[mode]
        return rows

    def sums(self, groupings: Sequence[Grouping], modes: Sequence[int]) -> Rows:
        """Return sums of the entries of each node of ``modes`` over blocks of the others."""
        return self.project([grouping.matrix(np.empty(0)) for grouping in groupings], modes)

    def exposures(self, groupings: Sequence[Grouping], modes: Sequence[int]) -> Rows:
        """Return the same sums of a tensor of ones: one row for all nodes."""
        return complete_exposures(groupings, modes)

    def bernoulli(self, groupings: Sequence[Grouping], core: Floats) -> float:
        """Return the log-likelihood of entries 0 and 1 under a block model."""

        def likelihood(chunk: Floats, place: Slices) -> float:
            own = [
                Grouping(
                    labels=g.labels[part],
                    size=g.size,
                    weights=None if g.weights is None else g.weights[part],
                )
                for g, part in zip(groupings, place, strict=True)
            ]
            return DenseSource(chunk, squared_norm=0.0).bernoulli(own, core)

        return sum(float(part) for part, _ in self._each(likelihood, self._chunks(), placed=True))

    def is_binary(self) -> bool:
        """Say whether every entry is 0 or 1."""
        return all(part for part, _ in self._each(_all_binary, self._chunks()))

    def smallest(self) -> float:
        """Return the smallest entry."""
        return min(float(part) for part, _ in self._each(np.min, self._chunks()))

    def log_factorials(self) -> float:
        """Return the sum of log(y!)."""
        return sum(float(part) for part, _ in self._each(_log_factorials, self._chunks()))

    def _swap_changes_nothing(self, first: int, second: int) -> bool:
        if self.shape[first] != self.shape[second]:
            return False
        corner = self.array[tuple(slice(0, min(size, 20)) for size in self.shape)]
        for part in (corner, self.array):  # most arrays differ in the corner already
            if not bool((part == part.swapaxes(first, second)).all().compute()):
                return False
        return True

    def _chunks(self, whole: int | None = None) -> list[Slices]:
        """Return where the chunks lie; with ``whole``, each runs along all of that mode."""
        ranges = []
        for mode, sizes in enumerate(self.array.chunks):
            ends = np.cumsum((0, *sizes)).tolist()
            pieces = [slice(a, b) for a, b in pairwise(ends)]
            ranges.append([slice(0, self.shape[mode])] if mode == whole else pieces)
        return list(product(*ranges))

    def _each(
        self, function: Callable[..., Any], places: list[Slices], *, placed: bool = False
    ) -> Any:
        """Yield what a function says of every part of the array, and where the part lies."""
        dask = require("dask", extra="dask", purpose="clustering dask arrays")
        call = dask.delayed(_apply)
        at_once = _threads()
        for start in range(0, len(places), at_once):
            batch = places[start : start + at_once]
            tasks = [
                call(function, self.array[place], *([place] if placed else ())) for place in batch
            ]
            yield from zip(dask.compute(*tasks), batch, strict=True)


def _apply(function: Callable[..., Any], chunk: Any, *place: Slices) -> Any:
    return function(np.asarray(chunk, dtype=np.float64), *place)


def _threads() -> int:
    """Return how many chunks are worked on at a time: threads of dask's cluster, or our own."""
    try:
        from distributed import default_client

        client = default_client()  # type: ignore[no-untyped-call]
        return max(sum(int(n) for n in client.ncores().values()), 1)
    except (ImportError, ValueError):  # not installed, or no cluster is there
        return cpu_threads()


def _squares(chunk: Floats) -> float:
    return float(np.vdot(chunk, chunk))


def _all_binary(chunk: Floats) -> bool:
    return bool(((chunk == 0) | (chunk == 1)).all())


def _log_factorials(chunk: Floats) -> float:
    return float(gammaln(chunk + 1.0).sum())


def is_chunked(given: Any) -> bool:
    """Say whether something is a dask array."""
    return hasattr(given, "__dask_graph__") and hasattr(given, "chunks")
