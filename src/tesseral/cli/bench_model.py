"""``tesseral bench model``: attention predicted on machines that are not here."""

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from tesseral.cli.console import print_table
from tesseral.runtime.files import atomic_file, check_output


def model(
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all numbers here, as JSON.")
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw here, as a PNG image, which unit did what when."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
) -> None:
    """Predict attention on an Ascend NPU and a V100 by a model of machines.

    Nothing is run but the model: it is first held against what was measured on an H200, and says
    how far it was off.

    Example: tesseral bench model --png timeline.png
    """
    if png is not None:
        from tesseral.report.charts import require_matplotlib

        require_matplotlib()
    for file in (json, png):
        if file is not None:
            check_output(file, overwrite=overwrite)
    from tesseral.bench.model.chart import chart
    from tesseral.bench.model.tables import all_tables, run, summary

    record = run()
    if json is not None:
        with atomic_file(json, overwrite=overwrite) as temporary:
            temporary.write_text(json_format.dumps(record, indent=2), encoding="utf-8")
    if png is not None:
        with atomic_file(png, overwrite=overwrite) as temporary:
            temporary.write_bytes(chart())
    for title, columns, rows in all_tables(record):
        print_table(title, columns, rows)
    typer.echo(summary(record))
