"""Reading the tensors that commands are given: arrays, edge lists and hyperedges."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import DataError
from tesseral.cli.arrays import SUFFIXES, entry, read_arrays
from tesseral.core import CooTensor
from tesseral.datasets import load_peru
from tesseral.runtime.extras import require

EXAMPLE = "peru"
VALUE_NAMES = ("value", "weight", "count")
EDGE_NAMES = ("edge", "hyperedge", "edge_id")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamedTensor:
    """A tensor, and what its nodes are called.

    Attributes
    ----------
    tensor : array or CooTensor
    names : tuple of K arrays of str, or None
        ``None`` if nodes have numbers only.
    truth : array, optional
        Known clusters of mode 0.
    """

    tensor: Any
    names: tuple[NDArray[Any], ...] | None = None
    truth: NDArray[Any] | None = None


def read_tensor(
    data: str,
    *,
    array: str | None = None,
    names: str | None = None,
    truth: str | None = None,
    order: int = 3,
    directed: bool = False,
    nodes: str | None = None,
    weights: str | None = None,
) -> NamedTensor:
    """Return the tensor in a file, or the one in the package.

    Parameters
    ----------
    data : str
        ``peru``, or a file ending in .npy, .npz, .rda, .rds, .csv or .parquet.
    array, names, truth : str, optional
        Arrays of an .npz or R file: the tensor, names of nodes, known clusters.
    order : int
        Modes of the tensor that hyperedges make.
    directed : bool
        Whether the columns of an edge list stand for different kinds of nodes.
    nodes, weights : str, optional
        Columns of an edge list: those of nodes, with commas between, and that of weights.

    Raises
    ------
    DataError
        If the file cannot be read, or has not what is asked for.
    MissingExtraError
        If pyarrow or rdata is needed and not installed.
    """
    if data == EXAMPLE:
        peru = load_peru()
        return NamedTensor(tensor=peru.tensor, names=(peru.legislator_id,) * 3, truth=peru.party)
    path = Path(data)
    try:
        if path.suffix.lower() in SUFFIXES:
            return _from_arrays(path, array, names, truth)
        if path.suffix in READERS:
            table = _chosen(data, *READERS[path.suffix](path), nodes=nodes, weights=weights)
            return _from_table(data, *table, order=order, directed=directed)
    except (OSError, EOFError) as error:
        raise DataError(
            f"{data} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{data} cannot be read: {error}.") from None
    raise DataError(
        f"{data} is of no kind that is read; give {EXAMPLE}, or a file ending in .npy, .npz, .rda, "
        ".rds, .csv or .parquet."
    )


def _from_arrays(
    path: Path, array: str | None, names: str | None, truth: str | None
) -> NamedTensor:
    found = read_arrays(path, otherwise=f", an edge list, or the word {EXAMPLE}")
    tensor = entry(path, found, array, option="--tensor")
    named = None if names is None else (entry(path, found, names, option="--names"),) * tensor.ndim
    if named is not None and any(len(n) != d for n, d in zip(named, tensor.shape, strict=True)):
        raise DataError(f"{path}: {names!r} does not name every node of a {tensor.shape} tensor.")
    known = None if truth is None else entry(path, found, truth, option="--truth")
    if known is not None and known.shape != tensor.shape[:1]:
        raise DataError(
            f"{path}: {truth!r} has shape {known.shape}, not one cluster for each node."
        )
    return NamedTensor(tensor=tensor, names=named, truth=known)


def _read_csv(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    if len(rows) < 2:
        raise DataError(f"{path} needs a line of column names and at least one edge.")
    if _all_numbers(rows[0]):
        raise DataError(f"{path} needs a line of column names; its first is {','.join(rows[0])}.")
    if any(len(row) != len(rows[0]) for row in rows):
        raise DataError(f"{path} has lines of different length.")
    return rows[0], list(zip(*rows[1:], strict=True))


def _read_parquet(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    reader = require("pyarrow.parquet", extra="data", purpose="reading parquet files")
    table = reader.read_table(path)
    return list(table.column_names), [column.to_pylist() for column in table.columns]


READERS = {".csv": _read_csv, ".parquet": _read_parquet}
"""Of tables: their column names and columns, by the end of a file's name."""


def _chosen(
    data: str,
    head: list[str],
    columns: list[Sequence[Any]],
    *,
    nodes: str | None,
    weights: str | None,
) -> tuple[list[str], list[Sequence[Any]]]:
    """Return the columns that the options name; that of weights gets the name it is known by."""
    head = [name.strip() for name in head]
    by_name = dict(zip(head, columns, strict=True))
    if len(by_name) < len(head):
        raise DataError(f"{data} has two columns of one name: {', '.join(head)}.")
    asked = [("--nodes", name) for name in _names(nodes)]
    for option, name in [("--weights", weights), *asked]:
        if name is not None and name not in by_name:
            raise DataError(
                f"{data} has no column {name!r} for {option}; it has {', '.join(head)}."
            )
    if weights is not None:
        others = {
            name: column
            for name, column in by_name.items()
            if name != weights and name.lower() not in VALUE_NAMES
        }
        by_name = {**others, VALUE_NAMES[0]: by_name[weights]}
    known = [name for name in by_name if name.lower() in VALUE_NAMES]
    if nodes is not None:
        by_name = {name: by_name[name] for name in (*_names(nodes), *known)}
    else:
        _refuse_guesses(data, {name: by_name[name] for name in by_name if name not in known})
    return list(by_name), list(by_name.values())


def _refuse_guesses(data: str, columns: dict[str, Sequence[Any]]) -> None:
    """Refuse numbers beside names, which may be weights, years or nodes."""
    numbers = [name for name, column in columns.items() if _all_numbers(column)]
    words = [name for name in columns if name not in numbers and name.lower() not in EDGE_NAMES]
    if numbers and len(words) > 1:
        raise DataError(
            f"{data}: the column {numbers[0]!r} holds numbers, others names: if they weigh the "
            f"edges, add --weights {numbers[0]!r}; or name the columns of nodes, as "
            f"--nodes {','.join(words)!r}."
        )


def _all_numbers(column: Sequence[Any]) -> bool:
    try:
        np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _names(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",")]


def _from_table(
    data: str, head: list[str], columns: list[Sequence[Any]], *, order: int, directed: bool
) -> NamedTensor:
    """Return the tensor that the columns of a table make."""
    lower = [name.strip().lower() for name in head]
    values = next((lower.index(name) for name in VALUE_NAMES if name in lower), None)
    nodes = [column for k, column in enumerate(columns) if k != values]
    if len(nodes) == 1 and len(nodes[0]) and isinstance(nodes[0][0], list | tuple):
        return _hyperedges(nodes[0], order)
    if len(nodes) == 2 and any(name in EDGE_NAMES for name in lower):
        edge = next(k for k, name in enumerate(lower) if name in EDGE_NAMES)
        return _hyperedges(_members(columns[edge], columns[1 - edge]), order)
    if len(nodes) < 2:
        raise DataError(f"{data} needs at least two columns of nodes, got {', '.join(head)}.")
    try:
        weights = np.asarray([1.0] * len(nodes[0]) if values is None else columns[values], float)
    except ValueError:
        assert values is not None
        raise DataError(f"{data}: the column {head[values]!r} must hold numbers.") from None
    return _edge_list(nodes, weights, directed)


def _members(edges: Sequence[Any], nodes: Sequence[Any]) -> Iterable[list[Any]]:
    """Return the nodes of every edge, from a table of one line for each edge and node."""
    found: dict[Any, list[Any]] = {}
    for edge, node in zip(edges, nodes, strict=True):
        found.setdefault(edge, []).append(node)
    return found.values()


def _hyperedges(edges: Iterable[Sequence[Any]], order: int) -> NamedTensor:
    edges = list(edges)
    names = np.unique(np.array([str(node) for edge in edges for node in edge]))
    number = {name: i for i, name in enumerate(names)}
    numbered = [[number[str(node)] for node in edge] for edge in edges]
    tensor = CooTensor.from_hyperedges(numbered, order=order, n_nodes=len(names))
    return NamedTensor(tensor=tensor, names=(names,) * order)


def _edge_list(
    nodes: list[Sequence[Any]], weights: NDArray[np.float64], directed: bool
) -> NamedTensor:
    columns = [np.array([str(node) for node in column]) for column in nodes]
    if directed:
        split = [np.unique(column, return_inverse=True) for column in columns]
        names, coords = tuple(n for n, _ in split), np.stack([c for _, c in split])
    else:
        one, flat = np.unique(np.concatenate(columns), return_inverse=True)
        names, coords = (one,) * len(columns), flat.reshape(len(columns), -1)
        # an edge without direction is one in every direction
        axes_of = list(permutations(range(len(columns))))
        coords = np.concatenate([coords[list(axes)] for axes in axes_of], axis=1)
        weights = np.tile(weights, len(axes_of))
    shape = tuple(len(n) for n in names)
    return NamedTensor(tensor=CooTensor.from_entries(coords, weights, shape), names=names)
