"""Why some layers lose more than others: a tensor regression of errors on what is known."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import TesseralWarning
from tesseral.llm.analysis.errors import ErrorTensor
from tesseral.regress import TensorResponseRegressor

Floats = NDArray[np.float64]

LAYER = ("level", "depth", "outliers")
"""Covariates of a layer: 1, its depth from -1/2 to 1/2, and the logarithm of how far the largest
entries of its inputs stand out, less its mean over layers."""

MIDDLE = 4
"""Bits at which levels are given."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Effects:
    """Coefficients of ``log2(error)`` with their intervals.

    Attributes
    ----------
    coef, low, high : float64 arrays of shape (layer covariates, projections, setting covariates)
    layer, projections, setting : tuple of str
        Names of the axes.
    level : float
        Of the intervals.
    rank : tuple of int
        Of the coefficients, chosen by BIC.
    explained : float
        Share of the variance of ``log2(error)``.
    warnings : tuple of str
    """

    coef: Floats
    low: Floats
    high: Floats
    layer: tuple[str, ...]
    projections: tuple[str, ...]
    setting: tuple[str, ...]
    level: float
    rank: tuple[int, ...]
    explained: float
    warnings: tuple[str, ...]


def explain_errors(found: ErrorTensor, *, level: float = 0.95, seed: int = 0) -> Effects:
    r"""Regress the error tensor on layers and settings, projection by projection.

    The model is ``log2(error) = B x_0 X x_2 Z`` with normal noise and a coefficient tensor B of
    low rank: X holds what is known of layers (:data:`LAYER`), Z what is done (what is rounded,
    the bits beyond four, the Hadamard transform), and each projection has coefficients of its
    own. One bit more should divide an error by four: -2 on this scale.

    Parameters
    ----------
    found : ErrorTensor
        At least one layer.
    level : float
        Of the confidence intervals.
    seed : int
        For whatever is random.
    """
    response = np.log2(np.maximum(found.error, np.finfo(np.float64).tiny))
    settings, names = _settings(found)
    layers, layer_names = _layers(found)
    sizes = layers.shape[1], response.shape[1], settings.shape[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TesseralWarning)
        model = TensorResponseRegressor(
            rank="bic", candidates=[range(1, n + 1) for n in _ranks(sizes)], random_state=seed
        )
        model.fit(response, [layers, None, settings])
        interval = model.coef_interval(level)
    seen = np.isfinite(response)
    left = (response - model.predict())[seen]
    return Effects(
        coef=np.asarray(model.coef_),
        low=interval.low,
        high=interval.high,
        layer=layer_names,
        projections=found.projections,
        setting=names,
        level=level,
        rank=tuple(model.rank_),
        explained=float(1 - left.var() / response[seen].var()),
        warnings=tuple(dict.fromkeys(str(w.message) for w in caught)),
    )


def _ranks(sizes: tuple[int, ...]) -> list[int]:
    """Return the largest rank of each mode to try."""
    return [min(size, 3) for size in sizes]


def _layers(found: ErrorTensor) -> tuple[Floats, tuple[str, ...]]:
    """Return the covariates of layers that differ among layers, and their names."""
    n_layers = len(found.error)
    depth = np.linspace(-0.5, 0.5, n_layers) if n_layers > 1 else np.zeros(1)
    peaks = np.nanmean(np.log2(found.peaks), axis=1)
    columns = np.stack([np.ones(n_layers), depth, peaks - peaks.mean()], axis=1)
    kept = [k for k in range(3) if k == 0 or np.ptp(columns[:, k]) > 0]
    while len(kept) > n_layers:  # as many columns as layers explain everything
        kept.pop()
    return columns[:, kept], tuple(LAYER[k] for k in kept)


def _settings(found: ErrorTensor) -> tuple[Floats, tuple[str, ...]]:
    """Return the covariates of settings and their names."""
    columns, names = [], []
    parts = dict.fromkeys(setting.part for setting in found.settings)
    for part in parts:
        is_part = np.array([float(s.part == part) for s in found.settings])
        bits = np.array([float(s.bits) for s in found.settings])
        turned = np.array([float(s.transform == "hadamard") for s in found.settings])
        columns += [is_part, is_part * (bits - MIDDLE), is_part * turned]
        names += [f"{part}s to {MIDDLE} bits", f"{part}s, a bit more", f"{part}s, Hadamard"]
    return np.stack(columns, axis=1), tuple(names)
