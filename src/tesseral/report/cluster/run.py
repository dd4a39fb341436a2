"""Fit a clustering, look at it, and write everything about it into one directory."""

import csv
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tesseral._errors import TesseralWarning
from tesseral.cluster import Stability, diagnose, read, stability
from tesseral.report import charts
from tesseral.report.cluster.page import cluster_page, draw
from tesseral.report.cluster.record import ClusterRecord, error_rate
from tesseral.runtime.files import atomic_directory
from tesseral.runtime.machine import machine_record
from tesseral.runtime.plain import finite


def fit_record(
    model: Any,
    tensor: Any,
    *,
    data: str,
    names: Sequence[NDArray[Any]] | None = None,
    truth: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 0,
) -> ClusterRecord:
    """Fit a model and return what it found; its warnings become part of that.

    With ``resamples``, it is fitted to as many random parts of the data too.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TesseralWarning)
        started = monotonic()
        model.fit(tensor)
        elapsed_s = monotonic() - started
        found = diagnose(model, tensor, random_state=seed)
    steady: tuple[Stability, ...] = ()
    if resamples:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TesseralWarning)  # about parts of the data
            steady = stability(model, tensor, n_resamples=resamples, random_state=seed)
    words = [str(w.message) for w in caught if issubclass(w.category, TesseralWarning)]
    return ClusterRecord(
        data=data,
        model=model,
        names=tuple(model.node_names_ if names is None else names),
        error_rate=error_rate(truth, model),
        diagnosis=found,
        warnings=tuple(dict.fromkeys(words)),
        machine=machine_record().as_dict(),
        elapsed_s=elapsed_s,
        stability=steady,
    )


def write_record(
    record: ClusterRecord, tensor: Any, out: str | Path, *, overwrite: bool = False
) -> None:
    """Write ``report.html``, ``labels.csv``, ``result.npz``, ``result.json`` and ``figures/``.

    Raises
    ------
    OutputExistsError
        If ``out`` exists and is not to be replaced.
    MissingExtraError
        If matplotlib is not installed.
    """
    charts.require_matplotlib()
    with atomic_directory(out, overwrite=overwrite) as folder:
        drawn = draw(record, read("report", tensor).source)
        (folder / "figures").mkdir()
        for name, svg in drawn.items():
            (folder / "figures" / f"{name}.svg").write_text(charts.alone(svg), encoding="utf-8")
        (folder / "report.html").write_text(cluster_page(record, drawn), encoding="utf-8")
        (folder / "result.json").write_text(json.dumps(finite(record.as_dict()), indent=2))
        _write_labels(record, folder / "labels.csv")
        arrays: dict[str, Any] = {"core": np.asarray(record.model.core_)}
        for mode, labels in enumerate(record.model.labels_):
            arrays[f"labels_{mode}"] = labels
            arrays[f"degrees_{mode}"] = np.asarray(record.model.degrees_[mode])
        for mode, entry in enumerate(record.stability):
            arrays[f"consensus_{mode}"] = entry.consensus
        np.savez_compressed(folder / "result.npz", **arrays)


def _write_labels(record: ClusterRecord, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["mode", "node", "cluster", "degree"])
        for mode, labels in enumerate(record.model.labels_):
            theta = np.asarray(record.model.degrees_[mode])
            for name, cluster, degree in zip(record.names[mode], labels, theta, strict=True):
                writer.writerow([mode, name, int(cluster), f"{degree:.6g}"])
