"""``tesseral bench cluster``: error rates by the paper's recipe, and what fits cost."""

from typing import Annotated

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


def cluster(
    json: ResumableJson = None,
    page: Page = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two replicates, and smaller data.")
    ] = False,
    replicates: Annotated[
        int | None, typer.Option(help="Replicates of each simulation.", show_default="30")
    ] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure clustering: errors as published, time, memory.

    Example: tesseral bench cluster --quick --json cluster.json
    """
    from dataclasses import replace

    from tesseral.bench.cluster.run import FULL, QUICK, accuracy_table, bars_table, cost_table, run
    from tesseral.bench.steps import beside
    from tesseral.core.constraints import check_parameter, integer

    check_files(json, page, overwrite=overwrite)
    size = QUICK if quick else FULL
    if replicates is not None:
        check_parameter("bench cluster", "replicates", replicates, integer(1))
        size = replace(size, replicates=replicates)
    with progress() as bars:
        task = bars.add_task("", total=None)

        def watch(words: str, done: int, total: int) -> None:
            bars.update(task, description=words, completed=done, total=total)

        found = run(size, watch, threads=threads, kept=beside(json))
    save_json(json, found.as_dict())
    if page is not None:
        from tesseral.bench.cluster.page import bench_page

        save(page, bench_page(found))
    print_table("Mean clustering error rates", *accuracy_table(found.results))
    print_table("Cost", *cost_table(found))
    print_table("What must hold", *bars_table(found))
    typer.echo(f"{size.replicates} replicates, {found.threads} threads, {found.elapsed_s:.0f} s")
