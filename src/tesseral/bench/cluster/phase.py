"""The paper's figures on one method: its phase transition, and what the iteration adds."""

import warnings
from collections.abc import Collection, Sequence

from tesseral._errors import TesseralWarning
from tesseral.bench.cluster.accuracy import FIRST, CellResult, Watch, model
from tesseral.bench.cluster.recipe import Cell, cells, draw
from tesseral.cluster import clustering_error_rate
from tesseral.datasets import BlockTensor

COLOURS = {"dTBM": "ours", "oracle": "full", "init_only": "hadamard"}
"""The colour of each curve."""


def phase_cells() -> list[Cell]:
    """Return the settings of both figures."""
    return cells("phase") + cells("init")


def run_phase(settings: Sequence[Cell], replicates: int, watch: Watch) -> list[CellResult]:
    """Cluster data of every setting as R does, and again from the planted labels."""
    found = []
    for number, cell in enumerate(settings):
        watch("phase transition", number, len(settings))
        rates: dict[str, list[float]] = {name: [] for name in cell.published}
        for replicate in range(replicates):
            for name, rate in _rates(draw(cell, 1000 * number + replicate), cell.published):
                rates[name].append(rate)
        found.append(CellResult(cell=cell, rates={m: tuple(r) for m, r in rates.items()}))
    return found


def _rates(drawn: BlockTensor, names: Collection[str]) -> list[tuple[str, float]]:
    """Return the error rate of the fit, of its start, and of a fit from the planted labels."""
    truth = drawn.labels[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TesseralWarning)
        fitted = model(FIRST).fit(drawn.tensor)
        labels = {"dTBM": fitted.labels_[0], "init_only": fitted.start_labels_[0]}
        if "oracle" in names:
            ideal = model(FIRST, start=[truth] * drawn.tensor.ndim).fit(drawn.tensor)
            labels["oracle"] = ideal.labels_[0]
    return [(name, clustering_error_rate(truth, labels[name])) for name in names]
