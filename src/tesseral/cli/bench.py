"""``tesseral bench``: what is fast here, how fast it could be, and what must hold."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tesseral.cli.bench_cluster import cluster
from tesseral.cli.bench_device import Device, measure_on_device, on_cuda, refuse_options
from tesseral.cli.bench_distributed import distributed
from tesseral.cli.bench_linear import linear
from tesseral.cli.bench_llm import llm
from tesseral.cli.bench_model import model
from tesseral.cli.bench_offload import offload
from tesseral.cli.bench_options import Json, Overwrite, Threads, check_files, file_to_write, save
from tesseral.cli.bench_regress import regress
from tesseral.cli.console import print_table, progress
from tesseral.runtime.extras import require

if TYPE_CHECKING:
    from tesseral.bench.attention.record import AttentionRecord
    from tesseral.bench.attention.run import Step


def attention(
    json: Json = None,
    png: Annotated[Path | None, file_to_write("Draw the table here, as a PNG image.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure less often, and no peak memory.")
    ] = False,
    grid: Annotated[
        bool,
        typer.Option(
            "--grid",
            help="Instead of the table, a grid of shapes; with --json it can be interrupted.",
        ),
    ] = False,
    threads: Threads = None,
    device: Annotated[
        Device,
        typer.Option(help="What to measure; auto: a CUDA device, where torch sees one."),
    ] = Device.auto,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also show plans, and why backends refused.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure our attention against torch's.

    And both against what this machine could do.

    Example: tesseral bench attention --json out.json --png out.png
    """
    require("torch", extra="torch", purpose="tesseral bench attention")
    if on_cuda(device):
        refuse_options({"--png": png, "--grid": grid, "--threads": threads})
        measure_on_device(json, quick=quick, explain=explain, overwrite=overwrite)
        return
    check_files(None if grid else json, png=png, overwrite=overwrite)
    record = _measure(json, quick=quick, grid=grid, threads=threads, overwrite=overwrite)
    if json is not None:
        from tesseral.bench.attention.record import write_record

        write_record(record, json)
    if png is not None:
        from tesseral.bench.attention.chart import chart

        save(png, chart(record))
    _show(record, explain=explain)


BENCHES: dict[str, Callable[..., None]] = {
    "attention": attention,
    "cluster": cluster,
    "distributed": distributed,
    "linear": linear,
    "llm": llm,
    "model": model,
    "offload": offload,
    "regress": regress,
}
"""One function per benchmark; heavy rooms are imported inside it."""


def _measure(
    file: Path | None, *, quick: bool, grid: bool, threads: int | None, overwrite: bool
) -> "AttentionRecord":
    from tesseral.bench.attention import cases
    from tesseral.bench.attention.grid import run_grid
    from tesseral.bench.attention.record import continue_record, write_record
    from tesseral.bench.attention.run import FULL, QUICK, run_table, start_record
    from tesseral.bench.timing import using_threads

    with using_threads(threads) as count, progress() as bars:
        task = bars.add_task("ceilings", total=None)

        def watch(step: "Step") -> None:
            bars.update(task, description=step.name, completed=step.done, total=step.total)

        record = start_record(QUICK if quick else FULL, count)
        if not grid:
            return run_table(record, watch, threads=count, with_memory=not quick)
        if file is not None and not overwrite:
            record = continue_record(record, file)

        def keep(record: "AttentionRecord") -> None:
            if file is not None:
                write_record(record, file)

        return run_grid(record, tuple(cases.grid()), watch, keep)


def _show(record: "AttentionRecord", *, explain: bool) -> None:
    from tesseral.bench.attention import tables

    machine = record.machine
    method = record.method
    typer.echo(
        f"{machine['cpu']}, {record.ceilings.threads} threads, target {machine['target']}, "
        f"torch {machine['packages'].get('torch')}; medians of {method.repeats}, sides in turns, "
        f"each section of {1e3 * method.section_s:.0f} ms or more begun when nothing spins\n"
    )
    read = f"read bandwidth {record.ceilings.read / 1e9:.1f} GB/s"
    print_table(f"Ceilings; {read}", *tables.ceilings_table(record))
    if record.rows:
        print_table("Every side", *tables.peers_table(record))
        print_table("Without one part", *tables.ablation_table(record))
        print_table("What must hold", *tables.main_table(record))
        typer.echo(tables.verdict(record))
    if record.shapes:
        _show_shapes(record)
    if explain:
        for row in record.rows:
            typer.echo(f"\n{row.case.name}\n{row.explanation}")


def _show_shapes(record: "AttentionRecord") -> None:
    from tesseral.bench.attention import tables

    columns, rows = tables.slower_table(record)
    if rows:
        print_table("Slower than torch", columns, rows)
    typer.echo(f"slower on {len(rows)} of {len(record.shapes)} shapes measured")
