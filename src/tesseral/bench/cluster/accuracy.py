"""How often labels are right: the paper's cells, and the cases that must hold beside them."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev
from typing import Any

import numpy as np

from tesseral._errors import TesseralWarning
from tesseral.bench.cluster.recipe import CLUSTERS, METHODS, NODES, NOISE, Cell, draw
from tesseral.bench.steps import Steps
from tesseral.cluster import (
    DegreeCorrectedTensorBlockModel,
    HigherOrderLloyd,
    SpectralTensorClustering,
    clustering_error_rate,
)
from tesseral.datasets import load_peru, make_block_tensor

FIRST = "dTBM, first mode"
"""Ours when it reads one of the tied modes, as R does."""

Watch = Callable[[str, int, int], None]
"""Told what is done, how far it is, and how far it goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """Error rates in one cell.

    Attributes
    ----------
    cell : Cell
    rates : dict of str to tuple of float
        One for each replicate, by method.
    """

    cell: Cell
    rates: dict[str, tuple[float, ...]]

    def mean(self, method: str) -> float:
        """Return the mean error rate of a method."""
        return fmean(self.rates[method])

    def standard_error(self, method: str) -> float:
        """Return the standard error of that mean."""
        rates = self.rates[method]
        return float(stdev(rates) / len(rates) ** 0.5) if len(rates) > 1 else 0.0


def model(method: str, clusters: Any = CLUSTERS, **options: Any) -> Any:
    """Return the estimator that a method of the paper is."""
    settings = {"n_clusters": clusters, "symmetric": True, **options}
    if method in ("dTBM", FIRST):
        tied = "first" if method == FIRST else "pool"
        return DegreeCorrectedTensorBlockModel(**settings, tied=tied)
    if method == "HLloyd":
        return HigherOrderLloyd(**settings, random_state=0)
    rows = {"HOSVD": "plain", "HOSVD+": "unit", "SCORE": "ratio"}[method]
    return SpectralTensorClustering(**settings, rows=rows, random_state=0)


def run_cells(
    cells: Sequence[Cell],
    replicates: int,
    watch: Watch,
    methods: Sequence[str] = (FIRST, *METHODS),
    steps: Steps | None = None,
) -> list[CellResult]:
    """Cluster data of every cell by every method; all methods get the same data."""
    steps = steps or Steps(None, {})
    results = []
    for number, cell in enumerate(cells):
        watch("cells of the paper", number, len(cells))
        found = steps.get(
            f"cell {number}", partial(_cell_rates, cell, number, replicates, list(methods))
        )
        results.append(CellResult(cell=cell, rates={m: tuple(r) for m, r in found.items()}))
    return results


def _cell_rates(
    cell: Cell, number: int, replicates: int, methods: list[str]
) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {method: [] for method in methods}
    for replicate in range(replicates):
        drawn = draw(cell, 1000 * number + replicate)
        for method in methods:
            rates[method].append(_rate(model(method), drawn.tensor, drawn.labels[0]))
    return rates


def peru(*, refined: bool = True) -> dict[str, float]:
    """Return error rates on Peru's legislature, and the likelihood of the refined labels."""
    data = load_peru()
    found = {}
    for method in METHODS:
        found[method] = _rate(model(method), data.tensor, data.party)
    for name, refine in (("binomial", False), ("binomial, refined", True))[: 1 + refined]:
        fitted = model("dTBM", family="binomial", refine=refine).fit(data.tensor)
        found[f"{name}: error rate"] = clustering_error_rate(data.party, fitted.labels_[0])
        found[f"{name}: log-likelihood"] = fitted.log_likelihood_
        if refine:  # of the labels that it begins with, at their likeliest degrees
            found["binomial, before: log-likelihood"] = fitted.history_[0]
    return found


def missing(replicates: int) -> float:
    """Return the mean error rate at gamma = -1.1 with 30% of the entries missing, untied."""
    rates = []
    for seed in range(replicates):
        drawn = make_block_tensor(
            (NODES,) * 3,
            CLUSTERS,
            symmetric=True,
            contrast=1 + 100 * NODES**-0.55,
            noise=NOISE,
            balanced=False,
            random_state=seed,
        )
        seen = np.random.default_rng(seed).random(drawn.tensor.shape) < 0.7
        tensor = np.where(seen, drawn.tensor, np.nan)
        rates.append(_rate(model("dTBM", symmetric=False), tensor, drawn.labels[0]))
    return fmean(rates)


def right_numbers(replicates: int) -> dict[str, int]:
    """Return how often BIC chooses the true number of clusters, of ``replicates``."""
    found = {}
    for clusters in (2, 4):
        for noise in (0.5, 1.0):
            right = 0
            for seed in range(replicates):
                drawn = make_block_tensor(
                    (80,) * 3,
                    clusters,
                    symmetric=True,
                    contrast=40,
                    noise=noise,
                    balanced=False,
                    random_state=seed,
                )
                chosen = model("dTBM", "bic").fit(drawn.tensor).n_clusters_
                right += chosen[0] == clusters
            found[f"r={clusters}, sigma={noise:g}"] = right
    return found


def _rate(estimator: Any, tensor: Any, truth: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TesseralWarning)  # peers too get data they cannot explain
        return clustering_error_rate(truth, estimator.fit(tensor).labels_[0])
