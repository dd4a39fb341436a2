"""The response with its weights, offset and ties, checked and ready to be regressed."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from tesseral._errors import MissingSliceWarning, ParameterError, ShapeError
from tesseral.core._arrays import Array, array_namespace, like, to_numpy
from tesseral.core.ties import Ties, reorderings, symmetrize


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Response:
    """A tensor to explain.

    Attributes
    ----------
    tensor : floating array of shape (d_0, ..., d_{K-1})
        0 where an entry is missing.
    observed : boolean array of that shape, or None
        None if every entry is observed.
    weights : array of that shape, or None
        What an entry counts: 0 where it is missing; 1 / n where n tied entries are one.
    offset : array of that shape, or None
        Added to the linear predictor.
    dims : tuple of str
        Names of the modes.
    rows : tuple of (tuple of str, or None)
        Names of the indices of each mode, where the response has them.
    """

    tensor: Array
    observed: Array | None
    weights: Array | None
    offset: Array | None
    dims: tuple[str, ...]
    rows: tuple[tuple[str, ...] | None, ...]


def labels_of(response: Any) -> tuple[Any, tuple[str, ...] | None, list[tuple[str, ...] | None]]:
    """Return the values, the names of modes and of indices of an xarray.DataArray.

    Anything else is returned as it is, without names.
    """
    if not (hasattr(response, "dims") and hasattr(response, "coords")):
        return response, None, []
    dims = tuple(str(dim) for dim in response.dims)
    rows = [
        tuple(str(label) for label in np.asarray(response.coords[dim]))
        if dim in response.coords
        else None
        for dim in response.dims
    ]
    return response.data, dims, rows


def prepare_response(
    where: str,
    tensor: Array,
    observed: Array | None,
    weights: Any,
    offset: Any,
    groups: Ties,
) -> tuple[Array, Array | None, Array | None, Array | None]:
    """Return tensor, observed entries, weights and offset, ties counted once.

    Where modes are tied and the data are symmetric, the entries that the symmetry makes equal
    are one observation: each of n counts 1 / n.
    """
    xp = array_namespace(where, tensor)
    shape = tuple(tensor.shape)
    given = None if weights is None else beside(where, "weights", weights, tensor)
    if given is not None and not (xp.all(xp.isfinite(given)) and xp.all(given >= 0)):
        raise ParameterError(f"{where}: weights must be finite and at least 0.")
    shift = None if offset is None else beside(where, "offset", offset, tensor)
    if shift is not None:
        used = shift if observed is None else xp.where(observed, shift, xp.zeros_like(shift))
        if not xp.all(xp.isfinite(used)):
            raise ParameterError(f"{where}: the offset must be finite.")
        shift = used
    total = None
    if observed is not None:
        total = xp.astype(observed, tensor.dtype)
    if given is not None:
        total = given if total is None else total * given
        if not xp.any(total > 0):
            raise ParameterError(f"{where}: every observed entry has weight 0.")
        observed = total > 0
        if xp.all(observed):
            observed = None
    if any(len(group) > 1 for group in groups) and _symmetric(
        xp, [tensor, given, shift], observed, groups
    ):
        share = like(1 / _copies(observed, shape, groups), tensor)
        total = share if total is None else total * share
    return tensor, observed, total, shift


def symmetric_data(
    where: str, tensor: Array, weights: Array | None, offset: Array | None, groups: Ties
) -> tuple[Array, Array | None, Array]:
    """Average a response over entries that tied modes give one mean.

    Returns
    -------
    tensor, observed, weights
        All symmetric in tied modes; the sum of the weights stays.

    Raises
    ------
    ParameterError
        If the offset is not symmetric, so that there is no one mean.
    """
    xp = array_namespace(where, tensor)
    if offset is not None and not _symmetric(xp, [offset], None, groups):
        raise ParameterError(
            f"{where}: tied modes need an offset that is symmetric in them, as their means are."
        )
    counts = xp.ones_like(tensor) if weights is None else weights
    total = symmetrize(counts, groups)
    missing = total == 0
    sums = symmetrize(tensor * counts, groups)
    pooled = sums / xp.where(missing, xp.ones_like(total), total)
    return pooled, (~missing if xp.any(missing) else None), total


def check_slices(
    where: str,
    observed: Array | None,
    recorded: Array | None,
    has_covariates: Sequence[bool],
    rows: Sequence[tuple[str, ...]],
    *,
    stacklevel: int,
) -> None:
    """Raise or warn if nothing was observed of a slice.

    Without covariates of its mode nothing is known about it, and that is an error; with
    covariates it is predicted, which is worth a warning unless it was asked for by weights of 0.
    """
    for mode, covered in enumerate(has_covariates):
        known = recorded if covered else observed
        if known is None:
            continue
        seen = to_numpy(known)
        counts = seen.sum(axis=tuple(k for k in range(seen.ndim) if k != mode))
        empty = np.flatnonzero(counts == 0)
        if not len(empty):
            continue
        named = ", ".join(rows[mode][index] for index in empty[:6])
        more = "" if len(empty) <= 6 else f" and {len(empty) - 6} more"
        message = f"{where}: every entry of slice {named}{more} of mode {mode} is missing"
        if not covered:
            raise ParameterError(
                f"{message}, and mode {mode} has no covariates to tell of it; leave the slice out."
            )
        warnings.warn(
            f"{message}; it has no part in the fit and is predicted from its covariates.",
            MissingSliceWarning,
            stacklevel=stacklevel + 1,
        )


def orbit_labels(shape: tuple[int, ...], groups: Ties) -> NDArray[np.int64]:
    """Return for every entry, in C order, the first of those that the ties make one with it."""
    labels = np.arange(prod(shape)).reshape(shape)
    if all(len(group) == 1 for group in groups):
        return labels.reshape(-1)
    indices = list(np.indices(shape))
    for group in groups:
        ordered = np.sort(np.stack([indices[mode] for mode in group]), axis=0)
        for mode, index in zip(group, ordered, strict=True):
            indices[mode] = index
    firsts: NDArray[np.int64] = labels[tuple(indices)].reshape(-1)
    return firsts


def beside(where: str, name: str, given: Any, tensor: Array) -> Array:
    """Return an array broadcast to the shape of the response, in its framework."""
    xp = array_namespace(where, tensor)
    array = given if array_api_compat.is_array_api_obj(given) else np.asarray(given)
    try:
        array = xp.asarray(array, dtype=tensor.dtype, device=array_api_compat.device(tensor))
        return xp.broadcast_to(array, tuple(tensor.shape))
    except (TypeError, ValueError, RuntimeError):
        raise ShapeError(
            f"{where}: {name} of shape {tuple(array.shape)} cannot be spread over a response of "
            f"shape {tuple(tensor.shape)}."
        ) from None


def _symmetric(xp: Any, arrays: list[Array | None], observed: Array | None, groups: Ties) -> bool:
    """Say whether all data stay the same, where observed, when tied modes change places."""
    for axes in reorderings(groups)[1:]:
        both = None if observed is None else observed & xp.permute_dims(observed, axes)
        for array in arrays:
            if array is None:
                continue
            equal = array == xp.permute_dims(array, axes)
            if not xp.all(equal if both is None else equal | ~both):
                return False
    return True


def _copies(observed: Array | None, shape: tuple[int, ...], groups: Ties) -> Any:
    """Return how many observed entries the symmetry makes one with each entry; at least 1."""
    labels = orbit_labels(shape, groups).reshape(shape)
    seen = None if observed is None else to_numpy(observed).astype(np.float64).reshape(-1)
    counts = np.bincount(labels.reshape(-1), weights=seen, minlength=labels.size)
    return np.maximum(counts[labels], 1.0)
