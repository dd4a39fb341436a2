"""Reading the tensors that commands are given: arrays, edge lists and hyperedges."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from tesseral._errors import DataError
from tesseral.cli.arrays import SUFFIXES, entry, read_arrays
from tesseral.cli.tables import EDGE_NAMES, TABLES, EdgeTable, read_table
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
    symmetric: str | bool | list[list[int]] = "auto",
    nodes: str | None = None,
    weights: str | None = None,
) -> NamedTensor:
    """Return the tensor in a file, or the one in the package.

    Parameters
    ----------
    data : str
        ``peru``, or a file ending in .npy, .npz, .rda, .rds, .csv, .tsv or .parquet.
    array, names, truth : str, optional
        Arrays of an .npz or R file: the tensor, names of nodes, known clusters.
    order : int
        Modes of the tensor that hyperedges make.
    directed : bool
        Whether an edge goes one way only, from the first column on. Columns then stand for
        different nodes, unless they are tied.
    symmetric : str, bool or list of groups of modes
        The modes that are tied, as estimators take it.
    nodes, weights : str, optional
        Columns of an edge list: those of nodes, with commas between, and that of weights.

    Raises
    ------
    DataError
        If the file cannot be read, has not what is asked for, or is of a kind that an option does
        not belong to.
    MissingExtraError
        If pyarrow or rdata is needed and not installed.
    """
    of_arrays = {"--tensor": array, "--names": names, "--truth": truth}
    of_tables = {"--nodes": nodes, "--weights": weights, "--directed": directed}
    if data == EXAMPLE:
        _refuse_options(data, of_arrays | of_tables, "files")
        peru = load_peru()
        return NamedTensor(tensor=peru.tensor, names=(peru.legislator_id,) * 3, truth=peru.party)
    path = Path(data)
    try:
        if path.suffix.lower() in SUFFIXES:
            _refuse_options(data, of_tables, "tables of edges")
            return _from_arrays(path, array, names, truth)
        if path.suffix.lower() in TABLES:
            _refuse_options(data, of_arrays, "arrays")
            table = read_table(path, nodes=nodes, weights=weights)
            return _from_table(data, table, order, directed, symmetric)
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
        ".rds, .csv, .tsv or .parquet."
    )


def _refuse_options(data: str, options: dict[str, Any], kinds: str) -> None:
    """Refuse options that would have no effect on what is read."""
    given = [name for name, value in options.items() if value]
    if given:
        raise DataError(f"{data}: {', '.join(given)} would do nothing; they belong to {kinds}.")


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
    data: str,
    table: EdgeTable,
    order: int,
    directed: bool,
    symmetric: str | bool | list[list[int]],
) -> NamedTensor:
    """Return the tensor that the columns of a table make."""
    columns = list(table.nodes.values())
    if len(columns) == 1 and len(columns[0]) and isinstance(columns[0][0], list | tuple):
        _refuse_of_hyperedges(data, table, directed)
        return _hyperedges(columns[0], order)
    edge = next((k for k, name in enumerate(table.nodes) if name.lower() in EDGE_NAMES), None)
    if len(columns) == 2 and edge is not None:
        _refuse_of_hyperedges(data, table, directed)
        return _hyperedges(_members(columns[edge], columns[1 - edge]), order)
    if len(columns) < 2:
        raise DataError(
            f"{data} needs at least two columns of nodes, got {', '.join(table.nodes) or 'none'}."
        )
    weights = np.ones(len(columns[0])) if table.weights is None else table.weights
    if directed:
        return _directed(columns, weights, symmetric)
    return _undirected(data, columns, weights)


def _refuse_of_hyperedges(data: str, table: EdgeTable, directed: bool) -> None:
    """Refuse what hyperedges do not have: they are sets of nodes, each as heavy as the others."""
    if directed or table.weights is not None:
        what = "direction: leave --directed out" if directed else "weights: drop that column"
        raise DataError(f"{data} holds hyperedges, which have no {what}.")


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


def _directed(
    columns: list[Sequence[Any]],
    weights: NDArray[np.float64],
    symmetric: str | bool | list[list[int]],
) -> NamedTensor:
    """Return the tensor of edges that go one way; tied modes share their nodes."""
    modes = range(len(columns))
    groups = symmetric if isinstance(symmetric, list) else [[*modes]] if symmetric is True else []
    names, coords = [np.array([])] * len(columns), [np.array([])] * len(columns)
    for group in [*([mode] for mode in modes), *groups]:
        within = [mode for mode in group if mode in modes]  # the model says what others are
        if within:
            one, numbers = _numbered([columns[mode] for mode in within])
            for mode, number in zip(within, numbers, strict=True):
                names[mode], coords[mode] = one, number
    shape = tuple(map(len, names))
    tensor = CooTensor.from_entries(np.stack(coords), weights, shape)
    return NamedTensor(tensor=tensor, names=tuple(names))


def _undirected(
    data: str, columns: list[Sequence[Any]], weights: NDArray[np.float64]
) -> NamedTensor:
    """Return the tensor of edges that are the same in every direction."""
    names, coords = _numbered(columns)
    order, shape = len(columns), (len(names),) * len(columns)
    ways, edges = (
        len(np.unique(np.ravel_multi_index(tuple(nodes), shape)))
        for nodes in (coords, np.sort(coords, axis=0))
    )
    if ways > edges:
        typer.echo(
            f"{data}: edges between the same nodes are there in several directions; their weights "
            "are added. Where direction matters, add --directed, and --symmetric all for one "
            "cluster a node.",
            err=True,
        )
    turned: list[NDArray[Any]] = []
    places, values = [], []
    for axes in permutations(range(order)):
        now = coords[list(axes)]
        new = np.ones(len(weights), dtype=bool)
        for before in turned:  # an edge from a node to itself is there already, and counts once
            new &= np.any(now != before, axis=0)
        turned.append(now)
        places.append(now[:, new])
        values.append(weights[new])
    tensor = CooTensor.from_entries(np.concatenate(places, 1), np.concatenate(values), shape)
    return NamedTensor(tensor=tensor, names=(names,) * order)


def _numbered(columns: list[Sequence[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the names in some columns, and which of them stand where, a row for each column."""
    flat = np.array([str(node) for column in columns for node in column])
    names, numbers = np.unique(flat, return_inverse=True)
    return names, numbers.reshape(len(columns), -1)
