"""Random parts of a tensor; an entry and its reorderings over tied modes stay together."""

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
    return _split(X, mask, ties, share, rng)[0]


def halves(X: Any, mask: Any, ties: Ties, rng: np.random.Generator) -> tuple[Part, Part]:
    """Return two parts that have no entry in common, and together all of them."""
    return _split(X, mask, ties, 0.5, rng)


def _split(
    X: Any, mask: Any, ties: Ties, share: float, rng: np.random.Generator
) -> tuple[Part, Part]:
    data = read("resampling", X, mask)
    found = data.find_ties()
    if is_sparse(X):
        tensor = CooTensor.from_sparse(X)
        kept, gone = _chosen_entries(tensor, ties, share, rng), np.isnan(tensor.values)
        first, second = (_stored(tensor, those | gone, found) for those in (kept, ~kept))
        return first, second
    if data.entries is None:
        raise ParameterError("resampling: needs an array in memory or a sparse tensor.")
    drawn = symmetrize(rng.random(data.source.shape), ties)
    seen = drawn <= np.quantile(drawn, share)
    return tuple(  # type: ignore[return-value]  # there are two
        Part(tensor=data.entries, mask=_observed(data, those), ties=found)
        for those in (seen, ~seen)
    )


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


def _chosen_entries(
    tensor: CooTensor, ties: Ties, share: float, rng: np.random.Generator
) -> NDArray[Any]:
    coords = tensor.coords.copy()
    for group in ties:
        coords[list(group)] = np.sort(coords[list(group)], axis=0)
    flat = np.ravel_multi_index(tuple(coords), tensor.shape)
    orbit: NDArray[Any] = np.unique(flat, return_inverse=True)[1]
    return np.asarray((rng.random(orbit.max() + 1) < share)[orbit])
