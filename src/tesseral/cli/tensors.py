"""Reading the tensors that commands are given: arrays, edge lists and hyperedges."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import DataError
from tesseral.cli.arrays import SUFFIXES, entry, read_arrays
from tesseral.cli.tables import EDGE_NAMES, TABLES, VALUE_NAMES, read_table
from tesseral.core import CooTensor
from tesseral.datasets import load_peru

EXAMPLE = "peru"


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
        if path.suffix in TABLES:
            table = read_table(path, nodes=nodes, weights=weights)
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
