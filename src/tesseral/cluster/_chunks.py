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

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.cluster._dense import IMPUTATIONS, DenseSource
from tesseral.cluster._source import Floats, Grouping, Rows, complete_exposures
from tesseral.cluster._spectral import projected_rows
from tesseral.core.linalg import leading_eigenvectors, mode_gram
from tesseral.core.modeprod import multi_mode_product
from tesseral.core.ties import Ties, reorderings
from tesseral.core.unfold import fold
from tesseral.runtime.cpu import cpu_threads
from tesseral.runtime.extras import require

Slices = tuple[slice, ...]


class ChunkSource:
    """A dask array; where entries are missing, it is zero and so is its weight."""

    def __init__(self, array: Any, weights: Any = None, *, squared_norm: float = 0.0) -> None:
        self.array = array
        self.weights = weights
        self.shape = tuple(int(size) for size in array.shape)
        self.complete = weights is None
        self.n_observed = float(prod(self.shape))
        if weights is not None:
            self.n_observed = self._total(weights)
        self.squared_norm = squared_norm
        self._grams: dict[int, Floats] = {}

    @classmethod
    def observed(cls, where: str, array: Any, mask: Any = None) -> "ChunkSource":
        """Return the source of an array as given, of which NaN and what a mask hides is missing.

        Raises
        ------
        ParameterError, ShapeError, DtypeError
            If a mask does not fit, an entry is infinite, or none is observed.
        """
        if mask is not None:
            array = _hidden(where, array, mask)
        parts = cls(array)._each(_content, cls(array)._chunks())
        squares, missing, infinite = np.sum([part for part, _ in parts], axis=0).tolist()
        if infinite:
            raise ParameterError(f"{where}: the tensor contains infinity.")
        if missing == prod(array.shape):
            raise ParameterError(f"{where}: every entry of the tensor is missing.")
        if not missing:
            return cls(array, squared_norm=squares)
        da = _dask_array()
        seen = ~da.isnan(array)
        weights = seen.astype(np.float64)
        return cls(da.where(seen, array, 0.0), weights, squared_norm=squares)

    def pooled(self, ties: Ties) -> "ChunkSource":
        """Return the source that averages over tied modes, chunk by chunk."""
        axes_of = reorderings(ties)
        if len(axes_of) == 1:
            return self
        array, weights = (
            None if part is None else sum(part.transpose(axes) for axes in axes_of) / len(axes_of)
            for part in (self.array, self.weights)
        )
        # only squares of the data themselves measure what a fit leaves
        return ChunkSource(array, weights, squared_norm=self.squared_norm)

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
        """Return rows of the tensor projected twice; missing entries filled by its fit."""
        source = self if self.complete else self.filled(ranks)
        return projected_rows(source, ranks, factor_of, modes)

    def square_rows(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:  # noqa: ARG002
        """Refuse: a square unfolding has too many rows here."""
        raise ParameterError("projection='square' needs a dense array in memory.")

    def directions(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:
        """Return leading left singular vectors; missing entries filled by a low-rank fit."""
        source = self if self.complete else self.filled(ranks)
        return {mode: source.vectors(mode, ranks[mode]) for mode in modes}

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
        """Return such sums of the weights; one row for all nodes if nothing is missing."""
        if self.weights is None:
            return complete_exposures(groupings, modes)
        return ChunkSource(self.weights).sums(groupings, modes)

    def bernoulli(self, groupings: Sequence[Grouping], core: Floats) -> float:
        """Return the log-likelihood of entries 0 and 1 under a block model."""

        def likelihood(chunk: Floats, *rest: Any) -> float:
            source, place = _located(chunk, *rest)
            return source.bernoulli(_at(groupings, place), core)

        parts = self._each(likelihood, self._chunks(), *self._beside, placed=True)
        return sum(float(part) for part, _ in parts)

    def bernoulli_slopes(
        self, groupings: Sequence[Grouping], core: Floats, modes: Sequence[int]
    ) -> tuple[Rows, Rows]:
        """Return sums of its slopes, and of the expected information."""

        def slopes(chunk: Floats, *rest: Any) -> tuple[Rows, Rows]:
            source, place = _located(chunk, *rest)
            return source.bernoulli_slopes(_at(groupings, place), core, modes)

        widths = {k: prod(g.size for g in groupings) // groupings[k].size for k in modes}
        found = tuple({k: np.zeros((self.shape[k], widths[k])) for k in modes} for _ in range(2))
        for parts, place in self._each(slopes, self._chunks(), *self._beside, placed=True):
            for rows, part in zip(found, parts, strict=True):
                for mode in modes:
                    rows[mode][place[mode]] += part[mode]
        return found  # type: ignore[return-value]  # there are two

    def bernoulli_trials(
        self, groupings: Sequence[Grouping], core: Floats, mode: int, degrees: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return likelihood, slope and information of each node in each cluster."""

        def trials(chunk: Floats, *rest: Any) -> Floats:
            source, place = _located(chunk, *rest)
            own = degrees[place[mode]]
            return np.stack(source.bernoulli_trials(_at(groupings, place), core, mode, own))

        found = np.zeros((3, *degrees.shape))
        for part, place in self._each(trials, self._chunks(), *self._beside, placed=True):
            found[:, place[mode]] += part
        return found[0], found[1], found[2]

    @property
    def _beside(self) -> tuple[Any, ...]:
        """The weights, if there are any."""
        return () if self.weights is None else (self.weights,)

    def filled(self, ranks: Sequence[int]) -> "ChunkSource":
        """Return a complete source whose missing entries come from a low-rank fit."""
        ranks = [min(rank, size) for rank, size in zip(ranks, self.shape, strict=True)]
        core = np.full((1,) * len(ranks), self._total(self.array) / self.n_observed)
        factors = [np.ones((size, 1)) for size in self.shape]
        for _ in range(IMPUTATIONS):
            current = self._filled(core, factors)
            factors = [current.vectors(mode, rank) for mode, rank in enumerate(ranks)]
            rows = current.project(factors, [0])[0]
            core = fold(factors[0].T @ rows, 0, ranks)
        return self._filled(core, factors)

    def _filled(self, core: Floats, factors: list[Floats]) -> "ChunkSource":
        """Return the source whose missing entries are those of a Tucker tensor."""

        def fill(chunk: Floats, weights: Floats, block_info: Any = None) -> Floats:
            place = block_info[None]["array-location"]
            own = [factor[a:b] for factor, (a, b) in zip(factors, place, strict=True)]
            seen = weights > 0
            values = chunk / np.where(seen, weights, 1.0)
            return np.where(seen, values, multi_mode_product(core, own))

        meta = np.empty((0,) * len(factors))
        array = _dask_array().map_blocks(fill, self.array, self.weights, dtype=float, meta=meta)
        return ChunkSource(array)

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
        corner = tuple(slice(0, min(size, 20)) for size in self.shape)
        arrays = [self.array] if self.weights is None else [self.array, self.weights]
        return all(
            bool((part == part.swapaxes(first, second)).all().compute())
            for array in arrays
            for part in (array[corner], array)  # most arrays differ in the corner already
        )

    def _total(self, array: Any) -> float:
        parts = ChunkSource(array)._each(np.sum, self._chunks())
        return sum(float(part) for part, _ in parts)

    def _chunks(self, whole: int | None = None) -> list[Slices]:
        """Return where the chunks lie; with ``whole``, each runs along all of that mode."""
        ranges = []
        for mode, sizes in enumerate(self.array.chunks):
            ends = np.cumsum((0, *sizes)).tolist()
            pieces = [slice(a, b) for a, b in pairwise(ends)]
            ranges.append([slice(0, self.shape[mode])] if mode == whole else pieces)
        return list(product(*ranges))

    def _each(
        self,
        function: Callable[..., Any],
        places: list[Slices],
        *beside: Any,
        placed: bool = False,
    ) -> Any:
        """Yield what a function says of every part of the array, and where the part lies.

        It is given the part, those of the arrays ``beside`` and, if ``placed``, its slices.
        """
        dask = require("dask", extra="dask", purpose="clustering dask arrays")
        call = dask.delayed(_apply)
        at_once = _threads()
        for start in range(0, len(places), at_once):
            batch = places[start : start + at_once]
            tasks = [
                call(
                    function,
                    [array[place] for array in (self.array, *beside)],
                    *([place] if placed else ()),
                )
                for place in batch
            ]
            yield from zip(dask.compute(*tasks), batch, strict=True)


def _apply(function: Callable[..., Any], chunks: list[Any], *place: Slices) -> Any:
    return function(*(np.asarray(chunk, dtype=np.float64) for chunk in chunks), *place)


def _threads() -> int:
    """Return how many chunks are worked on at a time: threads of dask's cluster, or our own."""
    try:
        from distributed import default_client

        client = default_client()  # type: ignore[no-untyped-call]
        return max(sum(int(n) for n in client.ncores().values()), 1)
    except (ImportError, ValueError):  # not installed, or no cluster is there
        return cpu_threads()


def _located(chunk: Floats, *rest: Any) -> tuple[DenseSource, Slices]:
    """Return a chunk as a source, with its weights if it has any, and where it lies."""
    *weights, place = rest
    return DenseSource(chunk, weights[0] if weights else None, squared_norm=0.0), place


def _at(groupings: Sequence[Grouping], place: Slices) -> list[Grouping]:
    """Return the groupings of the nodes of one chunk."""
    return [
        Grouping(
            labels=g.labels[part],
            size=g.size,
            weights=None if g.weights is None else g.weights[part],
        )
        for g, part in zip(groupings, place, strict=True)
    ]


def _hidden(where: str, array: Any, mask: Any) -> Any:
    """Return an array that is NaN where a mask is False."""
    mask = mask if is_chunked(mask) else np.asarray(mask)
    if mask.dtype != bool:
        raise DtypeError(
            f"{where}: the mask must be boolean (True where observed), got {mask.dtype}."
        )
    if tuple(mask.shape) != tuple(array.shape):
        raise ShapeError(
            f"{where}: the mask must have the shape {tuple(array.shape)} of the tensor, "
            f"got {tuple(mask.shape)}."
        )
    return _dask_array().where(mask, array, np.nan)


def _content(chunk: Floats) -> list[float]:
    """Return the sum of squares of what is there, and how much is missing or infinite."""
    missing = np.isnan(chunk)
    infinite = int(np.isinf(chunk).sum())
    there = np.where(missing, 0.0, chunk) if missing.any() else chunk
    squares = 0.0 if infinite else float(np.vdot(there, there))
    return [squares, float(missing.sum()), float(infinite)]


def _dask_array() -> Any:
    return require("dask.array", extra="dask", purpose="clustering dask arrays")


def _all_binary(chunk: Floats) -> bool:
    return bool(((chunk == 0) | (chunk == 1)).all())


def _log_factorials(chunk: Floats) -> float:
    return float(gammaln(chunk + 1.0).sum())


def is_chunked(given: Any) -> bool:
    """Say whether something is a dask array."""
    return hasattr(given, "__dask_graph__") and hasattr(given, "chunks")
