"""Pictures of a fit; each function returns a matplotlib figure, which has a ``savefig``.

They need the extra ``plot`` and touch no global state of matplotlib.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import ParameterError
from tesseral.core._arrays import to_numpy
from tesseral.core.constraints import check_parameter, integer
from tesseral.regress._information import host
from tesseral.regress._select import Selection
from tesseral.regress._tucker_response import TensorResponseRegressor
from tesseral.runtime.extras import require

_FEW = 20
"""Names that are written along both sides of a matrix."""

_MOST_LABELS = 60


def coefficient_slices(
    model: TensorResponseRegressor, mode: int | str, indices: Sequence[int] | None = None
) -> Any:
    """Draw slices of the coefficients along a mode as coloured matrices, one for each index.

    Each has a scale of its own: covariates have units of their own, and beside the largest the
    others would be white.

    Parameters
    ----------
    model : TensorResponseRegressor
        Fitted to a response with three modes, or with more, of which others are averaged.
    mode : int or str
        The mode that the slices are taken along.
    indices : sequence of int, optional
        Covariates (or indices) of that mode; the first four by default.
    """
    number = model._mode(mode)
    names = model.covariate_names_[number]
    chosen = list(range(min(4, len(names)))) if indices is None else list(indices)
    for index in chosen:
        check_parameter("coefficient_slices", "indices", index, integer(0, len(names) - 1))
    slices = [_matrix(np.take(host(model.coef_), index, axis=number)) for index in chosen]
    rows, columns = _shown_modes(model, number)
    figure, axes = _figure(len(chosen))
    for axis, index, part in zip(axes, chosen, slices, strict=True):
        limit = float(np.abs(part).max()) or 1.0
        image = axis.imshow(part, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axis.set_title(names[index])
        _label(axis, model, rows, columns)
        figure.colorbar(image, ax=axis)
    return figure


def factor_loadings(model: TensorResponseRegressor, mode: int | str) -> Any:
    """Draw the factor of a mode as a coloured matrix, with the names of its rows."""
    number = model._mode(mode)
    factor = host(model.factors_[number])
    names = model.covariate_names_[number]
    figure, (axis,) = _figure(1, height=max(3.0, 0.16 * min(len(names), _MOST_LABELS) + 1))
    limit = float(np.abs(factor).max()) or 1.0
    image = axis.imshow(factor, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_xticks(range(factor.shape[1]), [f"{k + 1}" for k in range(factor.shape[1])])
    axis.set_xlabel("component")
    axis.set_title(f"factor of {model.dims_[number]}")
    if len(names) <= _MOST_LABELS:
        axis.set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(image, ax=axis, label="loading")
    return figure


def predicted_observed(model: TensorResponseRegressor, *, bins: int = 20) -> Any:
    """Draw observed means against predicted ones, entries gathered in bins of equal number.

    Points on the diagonal mean that the fitted means are right on average; bars reach two
    standard errors.
    """
    check_parameter("predicted_observed", "bins", bins, integer(1))
    observed, predicted = _seen(model)
    order = np.argsort(predicted, kind="stable")
    groups = [part for part in np.array_split(order, bins) if len(part)]
    x = np.array([predicted[part].mean() for part in groups])
    y = np.array([observed[part].mean() for part in groups])
    error = np.array([observed[part].std() / len(part) ** 0.5 for part in groups])
    figure, (axis,) = _figure(1)
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    axis.plot(ends, ends, color="0.7", linewidth=1)
    axis.errorbar(x, y, yerr=2 * error, fmt="o", markersize=4, linewidth=1, color="#2a6fb8")
    axis.set_xlabel("predicted mean")
    axis.set_ylabel("observed mean")
    return figure


def residual_map(model: TensorResponseRegressor, mode: int | str, index: int | None = None) -> Any:
    """Draw Pearson residuals of a slice, or their root mean square along a mode.

    Parameters
    ----------
    model : TensorResponseRegressor
    mode : int or str
        The mode to slice, or to go along.
    index : int, optional
        The slice; without it, sqrt(mean(residual^2)) over the mode, which is near 1 where the
        model fits.
    """
    number = model._mode(mode)
    residuals = _residuals(model)
    rows, columns = _shown_modes(model, number)
    figure, (axis,) = _figure(1)
    if index is None:
        shown = _matrix(_root_mean_square(residuals, number))
        image = axis.imshow(shown, cmap="viridis", vmin=0, aspect="auto")
        label = f"root mean square residual over {model.dims_[number]}"
    else:
        size = residuals.shape[number]
        check_parameter("residual_map", "index", index, integer(0, size - 1))
        shown = _matrix(np.take(residuals, index, axis=number))
        limit = float(np.nanmax(np.abs(shown))) or 1.0
        image = axis.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        label = f"Pearson residual, {model._setup.covariates[number].rows[index]}"
    _label(axis, model, rows, columns, [mode.rows for mode in model._setup.covariates])
    figure.colorbar(image, ax=axis, label=label)
    return figure


def effects(
    model: TensorResponseRegressor,
    mode: int | str,
    covariate: str | int,
    *,
    level: float = 0.05,
    correction: str = "fdr",
    information: str = "observed",
) -> Any:
    """Draw which entries change with a covariate: its coefficients that differ from zero.

    Coefficients whose adjusted p-value is above ``level`` are left white. Of a network these are
    the edges that depend on the covariate.

    Parameters
    ----------
    model : TensorResponseRegressor
    mode : int or str
        The mode of the covariate.
    covariate : str or int
        Its name or number.
    level, correction, information
        See :meth:`TensorResponseRegressor.coef_tests`.
    """
    number = model._mode(mode)
    names = model.covariate_names_[number]
    if isinstance(covariate, str) and covariate not in names:
        raise ParameterError(
            f"effects: mode {number} has no covariate {covariate!r}; it has {', '.join(names)}."
        )
    index = names.index(covariate) if isinstance(covariate, str) else covariate
    check_parameter("effects", "covariate", index, integer(0, len(names) - 1))
    tests = model.coef_tests(correction=correction, information=information)
    coef = np.take(host(model.coef_), index, axis=number)
    clear = np.take(tests.adjusted, index, axis=number) <= level
    shown = _matrix(np.where(clear, coef, np.nan))
    rows, columns = _shown_modes(model, number)
    figure, (axis,) = _figure(1)
    limit = float(np.abs(coef).max()) or 1.0
    image = axis.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_title(f"{names[index]}: {int(clear.sum())} of {clear.size} differ from 0")
    _label(axis, model, rows, columns)
    figure.colorbar(image, ax=axis, label="coefficient")
    return figure


def selection_curve(selection: Selection) -> Any:
    """Draw the score of every rank that was tried against its number of parameters."""
    figure, (axis,) = _figure(1)
    trials = sorted(selection.trials, key=lambda trial: trial.dof)
    errors = [trial.error or 0.0 for trial in trials]
    axis.errorbar(
        [trial.dof for trial in trials],
        [trial.score for trial in trials],
        yerr=errors if any(errors) else None,
        fmt="o",
        markersize=4,
        color="#2a6fb8",
    )
    best = next(trial for trial in trials if trial.rank == selection.best)
    axis.annotate(
        "x".join(map(str, best.rank)), (best.dof, best.score), (4, 6), textcoords="offset points"
    )
    axis.set_title("ranks that were tried; the chosen one is named", fontsize=9)
    axis.set_xlabel("parameters")
    axis.set_ylabel(selection.criterion)
    return figure


def _figure(count: int, *, height: float = 4.2) -> tuple[Any, Any]:
    """Return a figure with some axes in a row, apart from matplotlib's global state."""
    module = require("matplotlib.figure", extra="plot", purpose="a picture of a fit")
    figure = module.Figure(figsize=(max(5.4, 3.4 * count), height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    return figure, axes


def _matrix(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a matrix to draw: modes after the second are averaged."""
    if values.ndim == 1:
        return values[:, None]
    return (
        values if values.ndim == 2 else np.asarray(values.mean(axis=tuple(range(2, values.ndim))))
    )


def _shown_modes(model: TensorResponseRegressor, taken: int) -> tuple[int, int]:
    """Return the modes along the rows and columns of a slice."""
    others = [mode for mode in range(len(model.dims_)) if mode != taken]
    return others[0], others[1] if len(others) > 1 else taken


def _label(
    axis: Any,
    model: TensorResponseRegressor,
    rows: int,
    columns: int,
    names: Sequence[tuple[str, ...]] | None = None,
) -> None:
    """Name the modes of a matrix, and what is along them if it is little: by default covariates."""
    names = model.covariate_names_ if names is None else names
    axis.set_ylabel(model.dims_[rows])
    if len(names[rows]) <= _FEW:
        axis.set_yticks(range(len(names[rows])), names[rows], fontsize=7)
    if len(model.dims_) == 2:  # a slice of a matrix is one column
        axis.set_xticks([])
        return
    axis.set_xlabel(model.dims_[columns])
    if len(names[columns]) <= _FEW:
        axis.set_xticks(range(len(names[columns])), names[columns], fontsize=7, rotation=90)


def _seen(model: TensorResponseRegressor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return observed entries, and what is predicted of them."""
    observed, predicted = host(model._setup.response), host(model.predict())
    flags = model._setup.observed
    if flags is None:
        return observed.ravel(), predicted.ravel()
    kept = np.asarray(to_numpy(flags), dtype=bool)
    return observed[kept], predicted[kept]


def _root_mean_square(values: NDArray[np.float64], mode: int) -> NDArray[np.float64]:
    """Return it along a mode, NaN where every entry is."""
    seen = ~np.isnan(values)
    counts = seen.sum(axis=mode)
    sums = np.where(seen, values, 0.0)
    means = (sums**2).sum(axis=mode) / np.maximum(counts, 1)
    return np.where(counts > 0, np.sqrt(means), np.nan)


def _residuals(model: TensorResponseRegressor) -> NDArray[np.float64]:
    """Return Pearson residuals, NaN where an entry is missing."""
    mean = host(model.predict())
    variance = model._setup.problem.family.variance(np, mean, model.dispersion_)
    residuals = (host(model._setup.response) - mean) / np.sqrt(variance)
    flags = model._setup.observed
    if flags is None:
        return np.asarray(residuals)
    return np.where(np.asarray(to_numpy(flags), dtype=bool), residuals, np.nan)
