"""Tables of edges: which columns are nodes, and which are weights."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import DataError
from tesseral.runtime.extras import require

VALUE_NAMES = ("value", "weight", "count")
EDGE_NAMES = ("edge", "hyperedge", "edge_id")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EdgeTable:
    """What a table says of edges, a row each.

    Attributes
    ----------
    nodes : dict of str to sequence
        Columns of nodes by name.
    weights : array, optional
    """

    nodes: dict[str, Sequence[Any]]
    weights: NDArray[np.float64] | None


def read_table(path: Path, *, nodes: str | None = None, weights: str | None = None) -> EdgeTable:
    """Return the columns of a table that stand for nodes, and its weights.

    Parameters
    ----------
    path : Path
        A file whose ending, in small letters, is in ``TABLES``.
    nodes, weights : str, optional
        The columns of nodes, with commas between, and that of weights; otherwise those of nodes
        are all that are not known by name.

    Raises
    ------
    DataError
        If columns are missing, hold something else, or it is not clear what they are.
    MissingExtraError
        If pyarrow is needed and not installed.
    """
    head, columns = TABLES[path.suffix.lower()](path)
    head = [name.strip() for name in head]
    by_name = dict(zip(head, columns, strict=True))
    if len(by_name) < len(head):
        raise DataError(f"{path} has two columns of one name: {', '.join(head)}.")
    chosen = [] if nodes is None else [name.strip() for name in nodes.split(",")]
    for option, name in [("--weights", weights), *(("--nodes", name) for name in chosen)]:
        if name is not None and name not in by_name:
            raise DataError(
                f"{path} has no column {name!r} for {option}; it has {', '.join(head)}."
            )
    if len({*chosen, weights}) <= len(chosen):
        raise DataError(f"{path}: --nodes {nodes} and --weights must name different columns.")
    values = [name for name in head if name.lower() in VALUE_NAMES and name not in chosen]
    known = [weights] if weights else values
    if not chosen:
        chosen = [name for name in head if name not in (*known, *values)]
        _refuse_guesses(path, {name: by_name[name] for name in chosen}, weights)
    for name in chosen:
        _refuse_blanks(path, name, by_name[name])
    return EdgeTable(
        nodes={name: by_name[name] for name in chosen},
        weights=_numbers(path, known[0], by_name[known[0]]) if known else None,
    )


def _refuse_guesses(path: Path, columns: dict[str, Sequence[Any]], weights: str | None) -> None:
    """Refuse numbers beside names, which may be weights, years or nodes."""
    numbers = [name for name, column in columns.items() if _all_numbers(column)]
    words = [name for name in columns if name not in numbers and name.lower() not in EDGE_NAMES]
    if numbers and len(words) > 1:
        weigh = f"if they weigh the edges, add --weights {numbers[0]!r}; or "
        raise DataError(
            f"{path}: the column {numbers[0]!r} holds numbers, others names: "
            f"{'' if weights else weigh}name the columns of nodes, as --nodes {','.join(words)!r}."
        )


def _refuse_blanks(path: Path, name: str, column: Sequence[Any]) -> None:
    for row, node in enumerate(column, start=1):
        if node is None or node == "":
            raise DataError(f"{path}: the column {name!r} has no node in row {row}.")


def _numbers(path: Path, name: str, column: Sequence[Any]) -> NDArray[np.float64]:
    """Return a column as numbers, or say where it holds something else."""
    bad = ((k, c) for k, c in enumerate(column, start=1) if c is None or not _all_numbers([c]))
    if None in column or not _all_numbers(column):
        row, cell = next(bad)
        raise DataError(f"{path}: the column {name!r} must hold numbers; row {row} has {cell!r}.")
    return np.asarray(column, dtype=np.float64)


def _all_numbers(column: Sequence[Any]) -> bool:
    try:
        np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _read_csv(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start} cannot be read; convert it first."
        ) from None
    first = text.lstrip().partition("\n")[0]
    between = max(",;\t", key=first.count)  # as spreadsheets write it in some languages
    table = csv.reader(StringIO(text, newline=""), delimiter=between)
    try:
        rows = [cells for row in table if any(cells := [cell.strip() for cell in row])]
    except csv.Error as error:
        raise DataError(
            f"{path} cannot be read: {error}; a quotation mark may not be closed."
        ) from None
    if len(rows) < 2:
        raise DataError(f"{path} needs a line of column names and at least one edge.")
    if any(_all_numbers([name]) for name in rows[0]):
        raise DataError(f"{path} needs a line of column names; its first is {','.join(rows[0])}.")
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{path} has lines of different length: {len(rows[0])} columns have names, "
                f"row {number} has {len(row)}: {between.join(row)}."
            )
    return rows[0], list(zip(*rows[1:], strict=True))


def _read_parquet(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    reader = require("pyarrow.parquet", extra="data", purpose="reading parquet files")
    table = reader.read_table(path)
    return list(table.column_names), [column.to_pylist() for column in table.columns]


TABLES = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
"""Readers of names and columns, by the end of a file's name."""
