"""Random parts of a tensor; an entry and its reorderings over tied modes stay together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import ParameterError
from tesseral.cluster._data import Data, read
from tesseral.core._arrays import like
from tesseral.core.coo import CooTensor, is_sparse
from tesseral.core.ties import Ties, symmetrize


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Some of the entries of a tensor.

    Attributes
    ----------
    tensor : array or CooTensor
        A sparse tensor has zeros for the others; what is missing, is missing from every part.
    mask : boolean array, or None
        Where a dense tensor shows its entries.
    ties : groups of modes
        In which the whole tensor is exactly symmetric.
    """

    tensor: Any
    mask: Any
    ties: Ties


def part(X: Any, mask: Any, ties: Ties, share: float, rng: np.random.Generator) -> Part:
    """Return a random share of the entries."""
    return next(_dealt(X, mask, ties, [share], rng))[0]


def folds(
    X: Any, mask: Any, ties: Ties, n: int, rng: np.random.Generator
) -> Iterator[tuple[Part, Part]]:
    """Deal the entries into ``n`` parts, and yield for each all others and itself."""
    for itself, others in _dealt(X, mask, ties, [k / n for k in range(1, n)], rng):
        yield others, itself


def _dealt(
    X: Any, mask: Any, ties: Ties, bounds: list[float], rng: np.random.Generator
) -> Iterator[tuple[Part, Part]]:
    """Deal the entries into parts with given cumulated shares; yield each, and all others."""
    data = read("resampling", X, mask)
    found = data.find_ties()
    if is_sparse(X):
        tensor = CooTensor.from_sparse(X)
        drawn, gone = _draws_of_entries(tensor, ties, rng), np.isnan(tensor.values)
        dealt = np.searchsorted(bounds, drawn, side="right")
        for k in range(len(bounds) + 1):
            here, there = (
                _stored(tensor, those | gone, found) for those in (dealt == k, dealt != k)
            )
            yield here, there
        return
    if data.entries is None:
        raise ParameterError("resampling: needs an array in memory or a sparse tensor.")
    drawn = symmetrize(rng.random(data.source.shape), ties)
    dealt = np.searchsorted(np.quantile(drawn, bounds), drawn)
    for k in range(len(bounds) + 1):
        here, there = (
            Part(tensor=data.entries, mask=_observed(data, those), ties=found)
            for those in (dealt == k, dealt != k)
        )
        yield here, there


def _observed(data: Data, seen: NDArray[Any]) -> Any:
    """Return where a part shows its entries, beside them."""
    weights = data.source.weights  # type: ignore[union-attr]  # it is dense
    shown = like(1.0 * seen, data.entries) > 0
    return shown if weights is None else shown & (weights > 0)


def _stored(tensor: CooTensor, kept: NDArray[Any], ties: Ties) -> Part:
    """Return the part that stores some of the entries."""
    coords, values = tensor.coords[:, kept], tensor.values[kept]
    return Part(
        tensor=CooTensor(coords=coords, values=values, shape=tensor.shape), mask=None, ties=ties
    )


def _draws_of_entries(tensor: CooTensor, ties: Ties, rng: np.random.Generator) -> NDArray[Any]:
    """Return a uniform number for each entry, the same for its reorderings."""
    coords = tensor.coords.copy()
    for group in ties:
        coords[list(group)] = np.sort(coords[list(group)], axis=0)
    flat = np.ravel_multi_index(tuple(coords), tensor.shape)
    orbit: NDArray[Any] = np.unique(flat, return_inverse=True)[1]
    return rng.random(orbit.max() + 1)[orbit]
