"""Where the commands write: results to stdout, everything else to stderr."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tesseral.runtime.plain import finite

_PIPED_WIDTH = 120  # rich would assume 80 columns


def progress() -> Progress:
    """Return progress bars on stderr; when that is not a terminal, they show nothing.

    To be used as a context manager: ``with progress() as bars: bars.add_task(...)``.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def print_json(record: Mapping[str, Any]) -> None:
    """Write a record to stdout as JSON; numbers that are not finite become ``null``."""
    sys.stdout.write(json.dumps(finite(record), indent=2, allow_nan=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table to stdout, under its title and before an empty line."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    console = Console(width=width, markup=False, highlight=False)
    console.print(title, style="bold")
    console.print(table)
    console.print()
