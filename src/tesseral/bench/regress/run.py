"""Measuring the cases, and whether what must hold does."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from tesseral._errors import TesseralError
from tesseral.bench.memory import peak_extra_bytes, run_alone
from tesseral.bench.regress import quality
from tesseral.bench.regress.cases import BRAIN, PRODUCT, SPEED, SpeedCase, growth
from tesseral.bench.steps import Steps
from tesseral.bench.timing import Method, interleave
from tesseral.regress._families import family_named
from tesseral.runtime.cpu import cpu_threads
from tesseral.runtime.machine import machine_record

Watch = Callable[[str], None]
"""Told what is measured next."""

_FIVE = ("normal", "binomial", "poisson", "negative_binomial", "gamma")


def run(
    *, quick: bool, threads: int | None, watch: Watch, kept: Path | None = None
) -> dict[str, Any]:
    """Measure everything and return a record of plain values.

    What is done is kept in the file ``kept`` until all is; see :class:`Steps`.
    """
    count, start, machine = cpu_threads(threads), time.time(), asdict(machine_record())
    key = {"machine": machine, "threads": count, "quick": quick}
    steps = Steps(kept, key, "core", "regress", "datasets", "bench/regress")
    with _blas_threads(count):
        speed = [steps.get(case.name, partial(_timed, case, quick, watch)) for case in SPEED]
        watch("memory")
        alone = partial(run_alone, "tesseral.bench.regress.memory", [BRAIN.name], threads=count)
        memory = steps.get("memory", alone)[0]
        grown = {
            what: steps.get(f"growth: {what}", partial(_grown, cases, watch))
            for what, cases in growth().items()
            if not quick
        }
    record = {
        "machine": machine,
        "threads": count,
        "quick": quick,
        "speed": speed,
        "memory_bytes": memory,
        "growth": grown,
        "quality": _quality(quick, watch, steps),
    }
    record["bars"] = bars(record)
    record["elapsed_s"] = time.time() - start
    steps.finish()
    return record


def bars(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what must hold, what was found, and whether it holds."""
    found = [
        _bar(f"{row['name']}: matrix products", row["products"], row["bar"], below=True)
        for row in record["speed"]
    ]
    if record["memory_bytes"] is not None:
        found.append(
            _bar(f"{BRAIN.name}: MB", record["memory_bytes"] / 1e6, BRAIN.megabytes, below=True)
        )
    brain = record["speed"][-1]
    found.append(
        _bar(f"{BRAIN.name}: log-likelihood above the truth's", brain["gain"], 0.0, below=False)
    )
    worth = record["quality"]
    found.append(_bar("error / information bound", worth["error_ratio"], 1.1, below=True))
    found.append(_bar("BIC exact", worth["exact_ranks"], 0.9, below=False))
    found += [
        _bar(f"{family}, 30% missing: error", ratio, 1.3 / 0.7, below=True)
        for family, ratio in worth["holes"].items()
    ]
    for family, share in worth["coverage"].items():
        found.append(_bar(f"{family}: 95% intervals, low", share, 0.92, below=False))
        found.append(_bar(f"{family}: 95% intervals, high", share, 0.97, below=True))
    return found


def _bar(name: str, value: float, limit: float | None, *, below: bool) -> dict[str, Any]:
    assert limit is not None
    holds = value <= limit if below else value >= limit
    return {"name": name, "value": value, "limit": limit, "below": below, "holds": bool(holds)}


def _timed(case: SpeedCase, quick: bool, watch: Watch) -> dict[str, Any]:
    """Time a fit and a matrix product in turns, after the fit was found to be a fit."""
    watch(case.name)
    planted = case.planted()
    response, covariates = case.response(planted), list(planted.covariates)
    model = _fitted(case, response, covariates)
    gain = model.log_likelihood_ - _true_log_likelihood(case, planted)
    if gain < 0:
        raise _BadFitError(f"{case.name}: the fit is less likely than the truth; nothing is timed.")
    a = np.random.default_rng(0).standard_normal((PRODUCT, PRODUCT))
    sides = {"fit": lambda: _fitted(case, response, covariates), "product": lambda: a @ a}
    method = Method(repeats=3 if quick else 7, section_s=0.1)
    times = interleave(sides, method)
    return {
        "name": case.name,
        "seconds": times["fit"].median_s,
        "spread": times["fit"].spread,
        "product_s": times["product"].median_s,
        "products": times["fit"].median_s / times["product"].median_s,
        "bar": case.products,
        "rounds": model.n_iter_,
        "gain": gain,
        "samples": {name: timing.as_dict() for name, timing in times.items()},
    }


def _grown(cases: list[SpeedCase], watch: Watch) -> list[dict[str, Any]]:
    """Time fits that grow, one after another."""
    rows = []
    for case in cases:
        watch(f"growth: {case.name}")
        planted = case.planted()
        response, covariates = case.response(planted), list(planted.covariates)
        fit = partial(_fitted, case, response, covariates)
        timing = interleave({"fit": fit}, Method(repeats=3, section_s=0.0))["fit"]
        rows.append({"at": float(case.name), "seconds": timing.median_s})
    return rows


def _quality(quick: bool, watch: Watch, steps: Steps) -> dict[str, Any]:
    sizes, ranks = ((30, 60), (2, 4)) if quick else (quality.SIZES, quality.RANKS)
    truths, draws = (1, 1) if quick else (5, 3)

    def step(name: str, function: Callable[..., Any], *given: Any, **more: Any) -> Any:
        watch(name)
        return steps.get(name, partial(function, *given, **more))

    cells = [
        step(
            f"errors: {family} d={d} rank {rank}",
            *(quality.error_cell, family, d, rank),
            truths=truths,
            draws=draws,
        )
        for family, d, rank in product(quality.FAMILIES, sizes, ranks)
    ]
    exact = step("ranks by BIC", quality.exact_ranks, 5 if quick else 30)
    holes = {
        family: step(f"missing entries: {family}", quality.holes, family, 3 if quick else 10)
        for family in _FIVE
    }
    inside = {
        family: step(f"intervals: {family}", quality.coverage, family, 10 if quick else 200)
        for family in quality.FAMILIES
    }
    ratios = [float(cell["ratio"]) for cell in cells]
    return {
        "cells": cells,
        "error_ratio": float(np.mean(ratios)),
        "error_ratio_standard_error": float(np.std(ratios) / sqrt(len(ratios))),
        "exact_ranks": exact,
        "holes": holes,
        "coverage": inside,
    }


def _fitted(case: SpeedCase, response: Any, covariates: Any) -> Any:
    import warnings

    with warnings.catch_warnings():
        # so many rounds are asked for and no more
        warnings.simplefilter("ignore")
        return case.regressor().fit(response, covariates)


def _true_log_likelihood(case: SpeedCase, planted: Any) -> float:
    family = family_named(case.family)
    seen = family.observations(planted.tensor, None)
    kernels = family.terms(np, planted.tensor, planted.linear_predictor, 1.0).kernel.sum()
    return family.total(float(kernels), seen, 1.0)


def brain_memory() -> int | None:
    """Return the peak of memory of the fit of a connectome's size, beside its data."""
    planted = BRAIN.planted()
    response, covariates = BRAIN.response(planted), list(planted.covariates)
    small = BRAIN.shape[:2]
    warm = [None, None, covariates[2]]
    _fitted(BRAIN, response[: small[0]], warm)  # libraries are loaded, pools are there

    def call() -> Any:
        return np.asarray(_fitted(BRAIN, response, covariates).coef_)

    return peak_extra_bytes(call)


@contextmanager
def _blas_threads(count: int) -> Iterator[None]:
    import os

    before = os.environ.get("TESSERAL_CPU_THREADS")
    os.environ["TESSERAL_CPU_THREADS"] = str(count)
    try:
        with threadpool_limits(count, user_api="blas"):
            yield
    finally:
        os.environ.pop("TESSERAL_CPU_THREADS")
        if before is not None:
            os.environ["TESSERAL_CPU_THREADS"] = before


class _BadFitError(TesseralError, ArithmeticError):
    """A fit that is not worth timing."""
