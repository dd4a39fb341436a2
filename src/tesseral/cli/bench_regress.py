"""``tesseral bench regress``: how fast fits are, and what they are worth."""

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import typer

from tesseral.cli.console import print_table, progress
from tesseral.runtime.files import atomic_file, check_output


def regress(
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write all numbers here, as JSON; an interrupted run goes on."
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write figures and tables here, as HTML.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer repeats and draws; no growth. A minute or so.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of fits and products.", show_default="as kernels use"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that exists.")
    ] = False,
) -> None:
    """Measure tensor-response regression: time in matrix products, memory, errors, intervals.

    Example: tesseral bench regress --quick --json regress.json
    """
    from tesseral.bench.regress.run import run
    from tesseral.bench.steps import beside

    for file in (json, page):
        if file is not None:
            check_output(file, overwrite=overwrite)
    with progress() as bars:
        task = bars.add_task("regress", total=None)
        record = run(
            quick=quick,
            threads=threads,
            watch=lambda name: bars.update(task, description=name),
            kept=beside(json),
        )
    if json is not None:
        with atomic_file(json, overwrite=overwrite) as temporary:
            temporary.write_text(json_format.dumps(record, indent=2), encoding="utf-8")
    if page is not None:
        from tesseral.bench.regress.page import bench_page

        with atomic_file(page, overwrite=True) as temporary:
            temporary.write_text(bench_page(record), encoding="utf-8")
    show(record)


def show(record: dict[str, Any]) -> None:
    """Print a record for people."""
    from tesseral.bench.regress.page import bars_table, speed_table

    print_table(f"Fits on {record['threads']} threads", *speed_table(record))
    for key, rows in record["growth"].items():
        cells = [[f"{row['at']:g}", f"{row['seconds']:.3f}"] for row in rows]
        print_table(f"Growth with {key}", [key, "s"], cells)
    print_table("What must hold", *bars_table(record))
