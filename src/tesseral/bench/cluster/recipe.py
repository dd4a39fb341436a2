"""The paper's simulations: their cells, what was published of them, and how data are drawn."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from tesseral.datasets import BlockTensor, make_block_tensor

NODES, CLUSTERS, NOISE = 100, 5, 0.75
METHODS = ("dTBM", "HLloyd", "HOSVD", "HOSVD+", "SCORE")
PUBLISHED = Path(__file__).with_name("published.csv")
_PARETO = {"compare_gamma_pareto_a2": 2.0, "compare_gamma_pareto_a6": 6.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One setting of the simulations.

    Attributes
    ----------
    figure, data : str
        As in the stored table.
    x : float
        The exponent gamma of the signal-to-noise ratio or, in the figure on Pareto degrees, their
        shape.
    published, deviation : dict of str to float
        Mean and standard deviation of the clustering error rate over 30 replicates, by method.
    """

    figure: str
    data: str
    x: float
    published: dict[str, float] = field(compare=False)
    deviation: dict[str, float] = field(compare=False)

    @property
    def kind(self) -> str:
        """The kind of data, for averages over cells."""
        return f"{self.figure.removeprefix('compare_')}, {self.data}"

    @property
    def bound(self) -> float:
        """Largest mean error rate that reading one tied mode may have."""
        spread: float = 3 * (2 / 30) ** 0.5 * self.deviation["dTBM"]
        return self.published["dTBM"] + spread + 0.01


def cells(figures: str = "compare") -> list[Cell]:
    """Return the settings of figures whose names begin so: the 34 in which methods are compared."""
    found: dict[tuple[str, str, float], Cell] = {}
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["figure"].startswith(figures):
                key = (row["figure"], row["data"], float(row["x"]))
                cell = found.setdefault(
                    key, Cell(figure=key[0], data=key[1], x=key[2], published={}, deviation={})
                )
                cell.published[row["method"]] = float(row["error_rate"])
                cell.deviation[row["method"]] = float(row["deviation"])
    return list(found.values())


def draw(cell: Cell, seed: int) -> BlockTensor:
    """Return data of a cell.

    The recipe leaves open how clusters are drawn; here every node's cluster is drawn by itself,
    which is harder than clusters of one size.
    """
    kind, _, size = cell.data.partition("_p")
    nodes, order = int(size or NODES), 2 if cell.figure == "phase_matrix" else 3
    family = "binomial" if kind == "binary" else "normal"
    by_shape = cell.figure == "compare_pareto_shape"
    if by_shape:
        contrast = 7.0 if family == "normal" else 4.0
    else:
        contrast = 1 + (100 if family == "normal" else 50) * nodes ** (cell.x / 2)
    shape = cell.x if by_shape else _PARETO.get(cell.figure)
    return make_block_tensor(
        (nodes,) * order,
        CLUSTERS,
        symmetric=True,
        family=family,
        contrast=contrast,
        noise=NOISE,
        degrees="half-normal" if shape is None else "pareto",
        pareto_shape=2.0 if shape is None else shape,
        balanced=False,
        random_state=seed,
    )
