"""What a user gives, dense or sparse, read into a source."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tesseral._errors import ParameterError, ShapeError
from tesseral.cluster._coordinates import CoordinateSource
from tesseral.cluster._dense import DenseSource
from tesseral.core._arrays import Array, like
from tesseral.core.coo import CooTensor, is_sparse
from tesseral.core.inputs import check_tensor
from tesseral.core.ties import Ties, find_ties

AnySource: TypeAlias = DenseSource | CoordinateSource


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """A tensor as given.

    Attributes
    ----------
    source : DenseSource or CoordinateSource
    entries : array
        What is stored of it: all entries, zero where nothing is observed, or those that are not
        zero.
    reference : array
        Of the framework, device and type that results should have.
    find_ties : callable
        Returns the groups of modes in which it is exactly symmetric.
    """

    source: AnySource
    entries: Array
    reference: Array
    find_ties: Callable[[], Ties]


def read(where: str, tensor: Any, mask: Any = None) -> Data:
    """Check a tensor, dense or sparse, and return it as a source.

    Raises
    ------
    ParameterError, ShapeError, DtypeError
        If it cannot be used; also if a mask is given with a sparse tensor.
    """
    if is_sparse(tensor):
        return _read_sparse(where, tensor, mask)
    values, observed = check_tensor(tensor, where=where, mask=mask, allow_missing=True)
    weights = None if observed is None else like(observed, values)
    return Data(
        source=DenseSource(values, weights),
        entries=values,
        reference=values,
        find_ties=lambda: find_ties(values, observed),
    )


def _read_sparse(where: str, tensor: Any, mask: Any) -> Data:
    if mask is not None:
        raise ParameterError(
            f"{where}: a sparse tensor takes no mask; what it does not store counts as zero."
        )
    coo = CooTensor.from_sparse(tensor, where=where)
    if coo.ndim < 2 or 0 in coo.shape:
        raise ShapeError(
            f"{where}: needs a tensor with at least 2 modes and an index in each, "
            f"got shape {coo.shape}."
        )
    return Data(
        source=CoordinateSource(coo),
        entries=coo.values,
        reference=np.empty(0),
        find_ties=coo.find_ties,
    )
