"""Covariates as people have them: arrays, data frames, or formulas; and their orthonormal bases."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import CollinearityWarning, DtypeError, ParameterError, ShapeError
from tesseral.core._arrays import Array, like, to_numpy
from tesseral.runtime.extras import require


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModeCovariates:
    """The covariates of one mode.

    Attributes
    ----------
    matrix : float64 array of shape (d_k, p_k), or None
        None for a mode without covariates.
    names : tuple of str
        Of the p_k covariates; of the d_k rows where there are no covariates.
    rows : tuple of str
        Of the d_k indices of the mode.
    formula : object or None
        What makes the same columns of new data, where a formula was given.
    text : str or None
        The formula itself.
    named : bool
        Whether the covariates came with names.
    """

    matrix: NDArray[np.float64] | None
    names: tuple[str, ...]
    rows: tuple[str, ...]
    formula: Any = None
    text: str | None = None
    named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Basis:
    """Orthonormal covariates of one mode: X = U S V', without the directions X does not have.

    Attributes
    ----------
    vectors : array of shape (d_k, m_k), or None
        U, in the framework of the response.
    metric : array of shape (m_k,), or None
        1 / S^2.
    back : float64 array of shape (p_k, m_k), or None
        V / S: turns coordinates along U into coefficients of X.
    """

    vectors: Array | None
    metric: Array | None
    back: NDArray[np.float64] | None


def parse_covariates(
    where: str,
    given: Any,
    shape: tuple[int, ...],
    *,
    dims: Sequence[str] | None = None,
    rows: Sequence[tuple[str, ...] | None] | None = None,
) -> list[ModeCovariates]:
    """Return the covariates of every mode, checked.

    Parameters
    ----------
    where : str
        Name of the estimator, for messages.
    given : None, mapping or sequence of K items
        Each item is None, a matrix, a data frame, or a pair of a formula and a data frame. A
        mapping goes by dimension name, or by number of the mode.
    shape : tuple of K int
        Of the response.
    dims : sequence of K str, optional
        Names of the modes.
    rows : sequence of K (tuple of str, or None), optional
        Names of the indices of each mode.

    Raises
    ------
    ShapeError, DtypeError, ParameterError
        If a matrix does not fit its mode or holds anything but finite numbers.
    """
    items = listed(where, given, len(shape), dims)
    names = rows or [None] * len(shape)
    return [
        _mode(where, mode, item, size, row_names)
        for mode, (item, size, row_names) in enumerate(zip(items, shape, names, strict=True))
    ]


def listed(where: str, given: Any, order: int, dims: Sequence[str] | None = None) -> list[Any]:
    """Return one item for each mode from what was given for all of them."""
    if given is None:
        return [None] * order
    if isinstance(given, Mapping):
        known: dict[Any, int] = {mode: mode for mode in range(order)}
        known |= {name: mode for mode, name in enumerate(dims or ())}
        unknown = [key for key in given if key not in known]
        if unknown:
            raise ParameterError(
                f"{where}: covariates name {unknown[0]!r}, which is no mode of the response; "
                f"there are {', '.join(repr(key) for key in known)}."
            )
        items: list[Any] = [None] * order
        for key, item in given.items():
            items[known[key]] = item
        return items
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise DtypeError(
            f"{where}: covariates must be a list with one item for each mode (None for a mode "
            f"without), got {type(given).__name__}."
        )
    if len(given) != order:
        raise ShapeError(
            f"{where}: a response with {order} modes needs {order} covariates, one for each mode "
            f"(None for a mode without), got {len(given)}."
        )
    return list(given)


def new_rows(where: str, mode: int, fitted: ModeCovariates, item: Any) -> NDArray[np.float64]:
    """Return a matrix of new rows that has the columns of the fitted one."""
    assert fitted.matrix is not None
    if _is_pair(item):
        if item[0] != fitted.text:
            raise ParameterError(
                f"{where}: mode {mode} was fitted with "
                f"{'no formula' if fitted.text is None else repr(fitted.text)}, not with "
                f"{item[0]!r}; give new rows alone."
            )
        item = item[1]
    if fitted.text is not None and _is_frame(item):
        make = fitted.formula.get_model_matrix
        matrix = np.asarray(_evaluated(where, mode, fitted.text, item, make), dtype=np.float64)
    elif _is_frame(item) and fitted.named:
        missing = [name for name in fitted.names if name not in map(str, item.columns)]
        if missing:
            raise ParameterError(
                f"{where}: the data frame for mode {mode} lacks the covariate {missing[0]!r}."
            )
        order = {str(column): column for column in item.columns}
        matrix = _numbers(where, mode, item[[order[name] for name in fitted.names]])
    else:
        matrix = _numbers(where, mode, item)
    if matrix.shape[1] != len(fitted.names):
        raise ShapeError(
            f"{where}: mode {mode} was fitted with {len(fitted.names)} covariates, got a matrix "
            f"of shape {matrix.shape}."
        )
    return matrix


def basis_of(
    where: str, mode: int, covariates: ModeCovariates, reference: Array, *, stacklevel: int
) -> Basis:
    """Return orthonormal covariates; warn if some are linear combinations of others."""
    matrix = covariates.matrix
    if matrix is None:
        return Basis(vectors=None, metric=None, back=None)
    norms = np.linalg.norm(matrix, axis=0)
    u, s, vh = np.linalg.svd(matrix / norms, full_matrices=False)
    width = int((s > s[0] * max(matrix.shape) * np.finfo(np.float64).eps * 8).sum())
    if width < matrix.shape[1]:
        warnings.warn(
            f"{where}: the {matrix.shape[1]} covariates of mode {mode} span only {width} "
            f"dimensions ({_dependence(covariates.names, vh[width:])}); the fit does not depend "
            "on it, and of all coefficients that give it those of smallest norm are returned.",
            CollinearityWarning,
            stacklevel=stacklevel + 1,
        )
        # scaled columns found the dimension; the smallest norm is of the coefficients as given
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        u, s, vh = u[:, :width], s[:width], vh[:width]
    else:
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return Basis(vectors=like(u, reference), metric=like(1 / s**2, reference), back=vh.T / s)


def _mode(
    where: str, mode: int, item: Any, size: int, row_names: tuple[str, ...] | None
) -> ModeCovariates:
    rows = row_names or tuple(str(index) for index in range(size))
    if item is None:
        return ModeCovariates(matrix=None, names=rows, rows=rows)
    formula = text = None
    names: tuple[str, ...] | None = None
    if _is_pair(item):
        text = item[0]
        matrix, names, formula = _from_formula(where, mode, *item)
        rows = row_names or _frame_rows(item[1], size)
    else:
        matrix = _numbers(where, mode, item)
        if _is_frame(item):
            names = tuple(str(column) for column in item.columns)
            rows = row_names or _frame_rows(item, size)
    _check_matrix(where, mode, matrix, size)
    named = names is not None
    names = names or tuple(f"x{column}" for column in range(matrix.shape[1]))
    zero = np.flatnonzero(~matrix.any(axis=0))
    if len(zero):
        raise ParameterError(
            f"{where}: covariate {names[zero[0]]!r} of mode {mode} is 0 in every row, so it "
            "explains nothing; leave it out."
        )
    constant = np.flatnonzero(np.ptp(matrix, axis=0) == 0)
    if len(constant) > 1 and size > 1:
        listed_names = ", ".join(repr(names[column]) for column in constant)
        raise ParameterError(
            f"{where}: covariates {listed_names} of mode {mode} have zero variance; one constant "
            "column serves as intercept, leave the others out."
        )
    return ModeCovariates(
        matrix=matrix, names=names, rows=rows, formula=formula, text=text, named=named
    )


def _from_formula(
    where: str, mode: int, text: str, data: Any
) -> tuple[NDArray[np.float64], tuple[str, ...], Any]:
    formulaic = require("formulaic", extra="formula", purpose="a formula for covariates")
    frame = _evaluated(where, mode, text, data, partial(formulaic.model_matrix, text))
    names = tuple(str(column) for column in frame.columns)
    return np.asarray(frame, dtype=np.float64), names, frame.model_spec


def _evaluated(where: str, mode: int, text: str, data: Any, make: Callable[..., Any]) -> Any:
    """Return what a formula makes of data; levels that it does not know are refused, too."""
    errors = require("formulaic.errors", extra="formula", purpose="a formula for covariates")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", errors.DataMismatchWarning)
            return make(data, na_action="raise")
    except Exception as error:  # formulaic raises many kinds; every one of them is about the input
        why = " ".join(str(error).split()).rstrip(".")
        columns = ", ".join(map(str, getattr(data, "columns", ())))
        raise ParameterError(
            f"{where}: the formula {text!r} for mode {mode} cannot be evaluated: {why}."
            + (f" The columns are {columns}." if columns else "")
        ) from None


def _numbers(where: str, mode: int, item: Any) -> NDArray[np.float64]:
    values = np.asarray(item) if _is_frame(item) else to_numpy(item)
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DtypeError(
            f"{where}: covariates of mode {mode} must be numbers; give a formula for columns that "
            "are not."
        ) from None
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2:
        raise ShapeError(
            f"{where}: covariates of mode {mode} must be a matrix, got shape {matrix.shape}."
        )
    if not np.isfinite(matrix).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(matrix))[0])
        raise ParameterError(
            f"{where}: covariates of mode {mode} must be finite, got {matrix[row, column]} in row "
            f"{row}, column {column}; drop the row or fill it in."
        )
    return matrix


def _check_matrix(where: str, mode: int, matrix: NDArray[np.float64], size: int) -> None:
    if matrix.shape[0] != size or matrix.shape[1] == 0:
        raise ShapeError(
            f"{where}: mode {mode} has {size} indices and needs a covariate matrix of shape "
            f"({size}, p), got shape {matrix.shape}."
        )


def _dependence(names: tuple[str, ...], null: NDArray[np.float64]) -> str:
    """Say which covariates take part in a linear dependence."""
    if len(null) == 0:
        return "there are more covariates than rows"
    involved = np.flatnonzero(np.abs(null).max(axis=0) > 1e-6)
    shown = ", ".join(repr(names[column]) for column in involved[:6])
    more = "" if len(involved) <= 6 else f" and {len(involved) - 6} more"
    return f"{shown}{more} depend on one another"


def _is_pair(item: Any) -> bool:
    """Say whether an item is a pair of a formula and data."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


def _is_frame(item: Any) -> bool:
    return hasattr(item, "columns") and hasattr(item, "index")


def _frame_rows(frame: Any, size: int) -> tuple[str, ...]:
    rows = tuple(str(row) for row in frame.index) if hasattr(frame, "index") else ()
    return rows if len(rows) == size else tuple(str(index) for index in range(size))
