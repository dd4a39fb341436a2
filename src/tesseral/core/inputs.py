"""The tensor that an estimator is given: checked, made floating, missing entries found."""

from typing import Any

import array_api_compat
import numpy as np
from scipy.sparse import issparse

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core._arrays import Array, array_namespace


def check_tensor(
    tensor: Any,
    *,
    where: str,
    mask: Any = None,
    allow_missing: bool = False,
    min_order: int = 2,
) -> tuple[Array, Array | None]:
    """Return a tensor as floating array, and which of its entries are observed.

    Parameters
    ----------
    tensor : array or array-like of shape (d_0, ..., d_{K-1})
        Dense and real. An array of any framework stays there; anything else becomes NumPy.
    where : str
        Name of the estimator or function, for messages.
    mask : boolean array or array-like of the shape of ``tensor``, optional
        True where an entry is observed. Other entries may be anything, NaN too.
    allow_missing : bool
        Take NaN for a missing entry rather than for an error.
    min_order : int
        Smallest number K of modes.

    Returns
    -------
    values : floating array of the shape of ``tensor``
        float32 and float64 are kept, half precision becomes float32, anything else float64.
        Zero where an entry is missing. The input itself if nothing needs to change.
    observed : boolean array of that shape, or None
        None if every entry is observed.

    Raises
    ------
    DtypeError
        If the entries are not numbers, the input is sparse, or the mask is not boolean.
    ShapeError
        If there are too few modes, a mode is empty, or the mask has another shape.
    ParameterError
        If entries are complex, infinite, NaN where that is not allowed, or all missing.

    Examples
    --------
    >>> values, observed = check_tensor(
    ...     [[1, float("nan")]], where="example", allow_missing=True
    ... )
    >>> values, observed
    (array([[1., 0.]]), array([[ True, False]]))
    """
    values = _as_floating(where, _as_array(where, tensor))
    shape = tuple(values.shape)
    if len(shape) < min_order:
        raise ShapeError(
            f"{where}: needs a tensor with at least {min_order} modes, got shape {shape}."
        )
    if 0 in shape:
        raise ShapeError(
            f"{where}: needs at least one index in every mode, got a tensor of shape {shape}."
        )
    return _split_missing(where, values, _as_mask(where, mask, values), allow_missing)


def _as_array(where: str, given: Any) -> Array:
    if issparse(given):
        raise DtypeError(f"{where}: sparse input is not supported; give a dense array.")
    return given if array_api_compat.is_array_api_obj(given) else np.asarray(given)


def _as_floating(where: str, array: Array) -> Array:
    xp = array_namespace(where, array)
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biufc":
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise DtypeError(f"{where}: the entries must be real numbers: {error}.") from None
    if xp.isdtype(array.dtype, "complex floating"):
        raise ParameterError(f"{where}: Complex data not supported; the entries must be real.")
    if array.dtype in (xp.float32, xp.float64):
        return array
    half = not xp.isdtype(array.dtype, ("bool", "integral"))
    return xp.astype(array, xp.float32 if half else xp.float64)


def _as_mask(where: str, mask: Any, values: Array) -> Array | None:
    """Return the mask as boolean array beside ``values``."""
    if mask is None:
        return None
    mask = _as_array(where, mask)
    xp = array_namespace(where, values)
    if not array_namespace(where, mask).isdtype(mask.dtype, "bool"):
        raise DtypeError(
            f"{where}: the mask must be boolean (True where observed), got {mask.dtype}."
        )
    if tuple(mask.shape) != tuple(values.shape):
        raise ShapeError(
            f"{where}: the mask must have the shape {tuple(values.shape)} of the tensor, "
            f"got {tuple(mask.shape)}."
        )
    return xp.asarray(mask, device=array_api_compat.device(values))


def _split_missing(
    where: str, values: Array, mask: Array | None, allow_missing: bool
) -> tuple[Array, Array | None]:
    xp = array_namespace(where, values)
    if mask is None:
        flat = xp.reshape(values, (-1,))
        with np.errstate(all="ignore"):
            total = xp.matmul(flat, flat)
        if xp.isfinite(total):  # then so is every entry: one pass, and no temporary
            return values, None
    refused = ~xp.isfinite(values)
    missing = xp.isnan(values) if allow_missing else xp.zeros_like(refused)
    if mask is not None:
        missing = missing | ~mask
    if xp.any(refused & ~missing):
        raise ParameterError(
            f"{where}: the tensor contains infinity{'' if allow_missing else ' or NaN'} in "
            "entries that count as observed; give a mask that is False there, or mend them."
        )
    if not xp.any(missing):
        return values, None
    if xp.all(missing):
        raise ParameterError(f"{where}: every entry of the tensor is missing.")
    return xp.where(missing, xp.zeros_like(values), values), ~missing
