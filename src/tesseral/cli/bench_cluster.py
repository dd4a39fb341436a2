"""``tesseral bench cluster``: error rates by the paper's recipe, and what fits cost."""

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from tesseral.cli.console import print_table, progress
from tesseral.runtime.files import atomic_file, check_output


def cluster(
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
        bool, typer.Option("--quick", help="Two replicates, and smaller data.")
    ] = False,
    replicates: Annotated[
        int | None, typer.Option(help="Replicates of each simulation.", show_default="30")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads.", show_default="as kernels use")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
) -> None:
    """Measure error rates beside the published ones, and time and memory of fits.

    Example: tesseral bench cluster --quick --json cluster.json
    """
    from dataclasses import replace

    from tesseral.bench.cluster.run import FULL, QUICK, accuracy_table, bars_table, cost_table, run
    from tesseral.bench.steps import beside
    from tesseral.core.constraints import check_parameter, integer

    for file in (json, page):
        if file is not None:
            check_output(file, overwrite=overwrite)
    size = QUICK if quick else FULL
    if replicates is not None:
        check_parameter("bench cluster", "replicates", replicates, integer(1))
        size = replace(size, replicates=replicates)
    with progress() as bars:
        task = bars.add_task("", total=None)

        def watch(words: str, done: int, total: int) -> None:
            bars.update(task, description=words, completed=done, total=total)

        found = run(size, watch, threads=threads, kept=beside(json))
    if json is not None:
        with atomic_file(json, overwrite=True) as temporary:
            temporary.write_text(json_format.dumps(found.as_dict(), indent=2), encoding="utf-8")
    if page is not None:
        from tesseral.bench.cluster.page import bench_page

        with atomic_file(page, overwrite=True) as temporary:
            temporary.write_text(bench_page(found), encoding="utf-8")
    print_table("Mean clustering error rates", *accuracy_table(found.results))
    print_table("Cost", *cost_table(found))
    print_table("What must hold", *bars_table(found))
    typer.echo(f"{size.replicates} replicates, {found.threads} threads, {found.elapsed_s:.0f} s")
