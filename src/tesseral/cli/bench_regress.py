"""``tesseral bench regress``: how fast fits are, and what they are worth."""

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import typer

from tesseral.cli.console import print_table, progress
from tesseral.runtime.files import atomic_file, check_output


def regress(
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all numbers here, as JSON.")
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

    if json is not None:
        check_output(json, overwrite=overwrite)
    with progress() as bars:
        task = bars.add_task("regress", total=None)
        record = run(
            quick=quick, threads=threads, watch=lambda name: bars.update(task, description=name)
        )
    if json is not None:
        with atomic_file(json, overwrite=overwrite) as temporary:
            temporary.write_text(json_format.dumps(record, indent=2), encoding="utf-8")
    show(record)


def show(record: dict[str, Any]) -> None:
    """Print a record for people."""
    speed = [
        [
            row["name"],
            f"{row['seconds']:.3f}",
            f"{row['product_s']:.3f}",
            f"{row['products']:.2f}",
            str(row["rounds"]),
        ]
        for row in record["speed"]
    ]
    print_table(
        f"Fits on {record['threads']} threads",
        ["fit", "s", "product s", "products", "rounds"],
        speed,
    )
    for key, rows in record["growth"].items():
        cells = [[f"{row['at']:g}", f"{row['seconds']:.3f}"] for row in rows]
        print_table(f"Growth with {key}", [key, "s"], cells)
    marks = [
        [
            bar["name"],
            f"{bar['value']:.4g}",
            f"{'<=' if bar['below'] else '>='} {bar['limit']:.4g}",
            "yes" if bar["holds"] else "NO",
        ]
        for bar in record["bars"]
    ]
    print_table("What must hold", ["what", "found", "needed", "holds"], marks)
