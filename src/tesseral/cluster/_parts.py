"""Random parts of a tensor; an entry and its reorderings over tied modes stay together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
    dealt: NDArray[Any]
    make: Callable[[NDArray[Any]], Part]
    if is_sparse(X):
        tensor = CooTensor.from_sparse(X)
        draws = _draws_of_entries(tensor, ties, rng)
        dealt = np.asarray(np.searchsorted(bounds, draws, side="right"))
        make = partial(_stored, tensor, found)
    elif data.entries is None:
        raise ParameterError("resampling: needs an array in memory or a sparse tensor.")
    else:
        drawn = symmetrize(rng.random(data.source.shape), ties)
        dealt = np.asarray(np.searchsorted(np.quantile(drawn, bounds), drawn))
        make = partial(_shown, data, found)
    for k in range(len(bounds) + 1):
        yield make(dealt == k), make(dealt != k)


def _shown(data: Data, ties: Ties, seen: NDArray[Any]) -> Part:
    """Return the part that shows some of the entries of a dense tensor."""
    weights = data.source.weights  # type: ignore[union-attr]  # it is dense
    shown = like(1.0 * seen, data.entries) > 0
    mask = shown if weights is None else shown & (weights > 0)
    return Part(tensor=data.entries, mask=mask, ties=ties)


def _stored(tensor: CooTensor, ties: Ties, seen: NDArray[Any]) -> Part:
    """Return the part that stores some of the entries, and those that are missing."""
    kept = seen | np.isnan(tensor.values)
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
    return np.asarray(rng.random(orbit.max() + 1)[orbit])
