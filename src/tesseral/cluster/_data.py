"""What a user gives, dense or sparse, read into a source."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from scipy.special import gammaln

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.cluster._chunks import ChunkSource, is_chunked
from tesseral.cluster._coordinates import CoordinateSource
from tesseral.cluster._dense import DenseSource
from tesseral.cluster._likelihood import Facts
from tesseral.cluster._names import unnamed
from tesseral.core._arrays import Array, array_namespace, like, to_float, to_numpy
from tesseral.core.coo import CooTensor, is_sparse
from tesseral.core.inputs import check_tensor
from tesseral.core.ties import Ties, find_ties

AnySource: TypeAlias = DenseSource | CoordinateSource | ChunkSource


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EntryFacts:
    """What families ask of stored entries; zeros, missing or not, are right for all of them.

    Attributes
    ----------
    entries : array
    """

    entries: Array

    def is_binary(self) -> bool:
        """Say whether every entry is 0 or 1."""
        xp = array_namespace("tesseral.cluster", self.entries)
        return bool(xp.all((self.entries == 0) | (self.entries == 1)))

    def smallest(self) -> float:
        """Return the smallest entry, or zero if there is none."""
        xp = array_namespace("tesseral.cluster", self.entries)
        return to_float(xp.min(self.entries)) if prod(self.entries.shape) else 0.0

    def log_factorials(self) -> float:
        """Return the sum of log(y!), a slice at a time."""
        return float(sum(gammaln(part + 1.0).sum() for part in to_numpy(self.entries)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """A tensor as given.

    Attributes
    ----------
    source : DenseSource or CoordinateSource
    facts : Facts
        For families.
    entries : array, or None
        What is stored of it: all entries, zero where nothing is observed, or those that are not
        zero; ``None`` of a dask array.
    reference : array
        Of the framework, device and type that results should have.
    find_ties : callable
        Returns the groups of modes in which it is exactly symmetric.
    """

    source: AnySource
    facts: Facts
    entries: Array | None
    reference: Array
    find_ties: Callable[[], Ties]


def read(where: str, tensor: Any, mask: Any = None) -> Data:
    """Check a tensor, dense or sparse, and return it as a source.

    Raises
    ------
    ParameterError, ShapeError, DtypeError
        If it cannot be used; also if a mask is given with a sparse tensor.
    """
    tensor = unnamed(tensor)
    if is_sparse(tensor):
        return _read_sparse(where, tensor, mask)
    if is_chunked(tensor):
        return _read_chunks(where, tensor, mask)
    values, observed = check_tensor(tensor, where=where, mask=mask, allow_missing=True)
    weights = None if observed is None else like(observed, values)
    return Data(
        source=DenseSource(values, weights),
        facts=EntryFacts(entries=values),
        entries=values,
        reference=values,
        find_ties=lambda: find_ties(values, observed),
    )


def _read_sparse(where: str, tensor: Any, mask: Any) -> Data:
    if mask is not None:
        raise ParameterError(
            f"{where}: a sparse tensor takes no mask, which would be as large as the tensor made "
            "dense; what it does not store is zero, and NaN is stored where an entry is missing."
        )
    coo = CooTensor.from_sparse(tensor, where=where)
    if coo.ndim < 2 or 0 in coo.shape:
        raise ShapeError(
            f"{where}: needs a tensor with at least 2 modes and an index in each, "
            f"got shape {coo.shape}."
        )
    source = CoordinateSource.observed(where, coo)
    return Data(
        source=source,
        facts=EntryFacts(entries=source.tensor.values),
        entries=source.tensor.values,
        reference=np.empty(0),
        find_ties=coo.find_ties,
    )


def _read_chunks(where: str, array: Any, mask: Any) -> Data:
    if array.ndim < 2 or 0 in array.shape:
        raise ShapeError(
            f"{where}: needs a tensor with at least 2 modes and an index in each, "
            f"got shape {array.shape}."
        )
    if array.dtype.kind not in "biuf":
        raise DtypeError(f"{where}: the entries must be real numbers, got {array.dtype}.")
    source = ChunkSource.observed(where, array, None if mask is None else unnamed(mask))
    return Data(
        source=source,
        facts=source,
        entries=None,
        reference=np.empty(0),
        find_ties=source.find_ties,
    )
