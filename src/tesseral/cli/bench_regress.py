"""``tesseral bench regress``: how fast fits are, and what they are worth."""

from typing import Annotated, Any

import typer

from tesseral.cli.bench_options import (
    Overwrite,
    Page,
    ResumableJson,
    Threads,
    check_files,
    save,
    save_json,
)
from tesseral.cli.console import print_table, progress


def regress(
    json: ResumableJson = None,
    page: Page = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer repeats and draws; no growth. A minute or so.")
    ] = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure regression: time, memory, errors, intervals.

    Example: tesseral bench regress --quick --json regress.json
    """
    from tesseral.bench.regress.run import run
    from tesseral.bench.steps import beside

    check_files(json, page, overwrite=overwrite)
    with progress() as bars:
        task = bars.add_task("regress", total=None)
        record = run(
            quick=quick,
            threads=threads,
            watch=lambda name: bars.update(task, description=name),
            kept=beside(json),
        )
    save_json(json, record)
    if page is not None:
        from tesseral.bench.regress.page import bench_page

        save(page, bench_page(record))
    show(record)


def show(record: dict[str, Any]) -> None:
    """Print a record for people."""
    from tesseral.bench.regress.page import bars_table, speed_table

    print_table(f"Fits on {record['threads']} threads", *speed_table(record))
    for key, rows in record["growth"].items():
        cells = [[f"{row['at']:g}", f"{row['seconds']:.3f}"] for row in rows]
        print_table(f"Growth with {key}", [key, "s"], cells)
    print_table("What must hold", *bars_table(record))
