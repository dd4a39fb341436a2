"""``tesseral bench linear``: four-bit linear layers against torch's."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tesseral._errors import BackendError, ParameterError
from tesseral.cli.bench_options import (
    Json,
    Overwrite,
    Threads,
    check_files,
    file_to_write,
    save,
    save_json,
)
from tesseral.cli.console import print_table, progress
from tesseral.runtime.extras import require


def linear(
    json: Json = None,
    png: Annotated[Path | None, file_to_write("Draw the ratios here, as a PNG image.")] = None,
    device: Annotated[
        str, typer.Option(help="Where to measure: cpu, or cuda with its own cases and peers.")
    ] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Measure less often.")] = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure our four-bit linear layers against torch's.

    Transform and quantisation are included.

    Example: tesseral bench linear --json linear.json --png linear.png
    """
    require("torch", extra="torch", purpose="tesseral bench linear")
    check_files(json, png=png, overwrite=overwrite)
    check_device(device)
    with progress() as bars:
        task = bars.add_task("linear", total=None)

        def watch(name: str) -> None:
            bars.update(task, description=name)

        if device == "cuda":
            from tesseral.bench.cuda_tables import linear_chart as chart
            from tesseral.bench.linear.cuda import run as run_cuda

            record = run_cuda(quick=quick, watch=watch)
        else:
            from tesseral.bench.linear.run import run
            from tesseral.bench.linear.tables import chart

            record = run(quick=quick, threads=threads, watch=watch)
    save_json(json, record)
    if png is not None:
        save(png, chart(record))
    if device == "cuda":
        show_cuda(record)
    else:
        show(record)


def check_device(device: str) -> None:
    """Refuse a device that is not known or not there.

    Raises
    ------
    ParameterError
        If it is neither cpu nor cuda.
    BackendError, MissingExtraError
        If torch sees no such device, or Triton is missing.
    """
    import torch

    if device not in ("cpu", "cuda"):
        raise ParameterError(f"bench: --device must be cpu or cuda, got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("bench: --device cuda needs a CUDA device, and torch sees none.")
    if device == "cuda":
        require("triton", extra="triton", purpose="tesseral bench --device cuda")


def show_cuda(record: dict[str, Any]) -> None:
    """Print a record of a CUDA device for people."""
    from tesseral.bench.cuda_tables import linear_bars, linear_times

    copy = record["ceilings"]["copy"]
    title = f"Linear layers on {record['device']}; copies move {copy / 1e12:.2f} TB/s"
    print_table(title, *linear_times(record))
    print_table("What must hold", *linear_bars(record))


def show(record: dict[str, Any]) -> None:
    """Print a record for people."""
    from tesseral.bench.linear.tables import bar_rows, time_rows

    ceilings = record["ceilings"]
    best = max(rates.get("dot_int8", 0.0) for rates in ceilings["products"].values())
    print_table(
        f"Linear layers on {record['threads']} threads; ceilings {best / 1e9:.0f} GOP/s in int8, "
        f"{ceilings['read'] / 1e9:.1f} GB/s of reading",
        *time_rows(record),
    )
    print_table("What must hold", *bar_rows(record))
