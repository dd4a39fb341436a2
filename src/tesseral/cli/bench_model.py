"""``tesseral bench model``: attention predicted on machines that are not here."""

from pathlib import Path
from typing import Annotated

import typer

from tesseral.cli.bench_options import Json, Overwrite, check_files, file_to_write, save, save_json
from tesseral.cli.console import print_table


def model(
    json: Json = None,
    png: Annotated[
        Path | None, file_to_write("Draw here, as a PNG image, which unit did what when.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Predict attention on an Ascend NPU and a V100.

    Nothing is run but a model of machines: it is first held against what was measured on an H200,
    and says how far it was off.

    Example: tesseral bench model --png timeline.png
    """
    check_files(json, png=png, overwrite=overwrite)
    from tesseral.bench.model.chart import chart
    from tesseral.bench.model.tables import all_tables, run, summary

    record = run()
    save_json(json, record)
    if png is not None:
        save(png, chart())
    for title, columns, rows in all_tables(record):
        print_table(title, columns, rows)
    typer.echo(summary(record))
