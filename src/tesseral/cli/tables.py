"""Tables of edges: which columns are nodes, and which are weights."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tesseral._errors import DataError
from tesseral.runtime.extras import require

VALUE_NAMES = ("value", "weight", "count")
EDGE_NAMES = ("edge", "hyperedge", "edge_id")


def read_table(
    path: Path, *, nodes: str | None = None, weights: str | None = None
) -> tuple[list[str], list[Sequence[Any]]]:
    """Return names and columns of a table, one of weights under a name in ``VALUE_NAMES``.

    Parameters
    ----------
    path : Path
        A file whose ending is in ``TABLES``.
    nodes, weights : str, optional
        The columns of nodes, with commas between, and that of weights; otherwise those of nodes
        are all that are not known by name.

    Raises
    ------
    DataError
        If columns are missing, or it is not clear what they are.
    MissingExtraError
        If pyarrow is needed and not installed.
    """
    head, columns = TABLES[path.suffix](path)
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
    known = [weights] if weights else [name for name in head if name.lower() in VALUE_NAMES]
    if not chosen:
        chosen = [name for name in head if name not in known and name.lower() not in VALUE_NAMES]
        _refuse_guesses(path, {name: by_name[name] for name in chosen})
    head = [*chosen, VALUE_NAMES[0]] if known else chosen
    return head, [by_name[name] for name in (*chosen, *known[:1])]


def _refuse_guesses(path: Path, columns: dict[str, Sequence[Any]]) -> None:
    """Refuse numbers beside names, which may be weights, years or nodes."""
    numbers = [name for name, column in columns.items() if _all_numbers(column)]
    words = [name for name in columns if name not in numbers and name.lower() not in EDGE_NAMES]
    if numbers and len(words) > 1:
        raise DataError(
            f"{path}: the column {numbers[0]!r} holds numbers, others names: if they weigh the "
            f"edges, add --weights {numbers[0]!r}; or name the columns of nodes, as "
            f"--nodes {','.join(words)!r}."
        )


def _all_numbers(column: Sequence[Any]) -> bool:
    try:
        np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return True


def _read_csv(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
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


TABLES = {".csv": _read_csv, ".parquet": _read_parquet}
"""Readers of names and columns, by the end of a file's name."""
