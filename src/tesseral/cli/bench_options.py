"""What benchmarks are given alike, and what they write."""

import json as json_format
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tesseral.runtime.files import atomic_file, check_output


def file_to_write(meaning: str) -> Any:
    """Return an option for a file that is written if it is named."""
    return typer.Option(metavar="FILE", help=meaning)


Json = Annotated[Path | None, file_to_write("Write all numbers here, as JSON.")]

ResumableJson = Annotated[
    Path | None, file_to_write("Write all numbers here, as JSON; an interrupted run goes on.")
]

Page = Annotated[Path | None, file_to_write("Write figures and tables here, as HTML.")]

Threads = Annotated[
    int | None, typer.Option(help="Threads of all sides.", show_default="as kernels use")
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


def check_files(*files: Path | None, png: Path | None = None, overwrite: bool) -> None:
    """Refuse what could not be written, before anything is measured.

    Raises
    ------
    MissingExtraError
        If there is a picture to draw, and no matplotlib.
    OutputExistsError
        If a file exists and is not to be replaced.
    """
    if png is not None:
        from tesseral.report.charts import require_matplotlib

        require_matplotlib()
    for file in (*files, png):
        if file is not None:
            check_output(file, overwrite=overwrite)


def save(file: Path | None, content: str | bytes) -> None:
    """Write a file that :func:`check_files` let pass."""
    if file is None:
        return
    data = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_file(file, overwrite=True) as temporary:
        temporary.write_bytes(data)


def save_json(file: Path | None, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, if a file is named."""
    save(file, json_format.dumps(record, indent=2))
