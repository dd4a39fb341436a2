"""``tesseral bench distributed``: sums over ranks, hidden behind attention and products."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tesseral._errors import ParameterError
from tesseral.cli.bench_options import Json, Overwrite, check_files, file_to_write, save, save_json
from tesseral.cli.console import print_table, progress
from tesseral.runtime.extras import require


def distributed(
    json: Json = None,
    png: Annotated[
        Path | None, file_to_write("Draw here, as PNG, which stream did what when.")
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(help="Processes.", show_default="one for each CUDA device, or two on CPUs"),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="auto|none|BYTES",
            help="On CPUs: bytes a second of an artificial slow link; auto makes sums take a "
            "third of the time.",
            show_default="auto",
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Tokens.", show_default="a grid"),
    ] = None,
    variants: Annotated[
        bool, typer.Option("--variants", help="Also measure plans that were not chosen.")
    ] = False,
    eager: Annotated[
        bool, typer.Option("--eager", help="Start every call from Python, on CUDA, too.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A third of the samples.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure sums over several devices, by tiles and plain.

    Attention, projection and AllReduce.

    On CUDA devices the layer is Llama 70B's; on CPUs Llama 8B's, over gloo and a slow link.

    Example: tesseral bench distributed --json distributed.json --png timeline.png
    """
    require("torch", extra="torch", purpose="tesseral bench distributed")
    check_files(json, png=png, overwrite=overwrite)
    from tesseral.bench.distributed.cases import check_ranks
    from tesseral.bench.distributed.ranks import run_ranks
    from tesseral.bench.distributed.run import run

    count = _ranks(ranks)
    check_ranks(count)
    with progress() as bars:
        task = bars.add_task("distributed", total=None)
        options = {
            "quick": quick,
            "link": _link(link),
            "variants": variants,
            "graphs": not eager,
            "lengths": _numbers(lengths),
            "kept": None if json is None else str(json.absolute()),
        }
        record = run_ranks(run, count, options, lambda name: bars.update(task, description=name))
    if not record:
        return  # another rank under torchrun writes and shows
    save_json(json, record)
    if png is not None:
        from tesseral.bench.distributed.tables import chart

        save(png, chart(record))
    show(record)


def show(record: dict[str, Any]) -> None:
    """Print a record for people."""
    from tesseral.bench.distributed.tables import bar_table, forecast_table, other_table, time_table

    words = f"{record['ranks']} ranks over {record['backend']}; peers' memory: {record['peers']}"
    print_table(words, *time_table(record))
    columns, rows = other_table(record)
    if rows:
        print_table("Plans that were not chosen", columns, rows)
    print_table("Predicted, not measured, for more ranks", *forecast_table(record))
    print_table("What must hold", *bar_table(record))


def _ranks(given: int | None) -> int:
    import torch

    devices = torch.cuda.device_count()
    count = given if given is not None else devices if devices > 1 else 2
    if count < 2:
        raise ParameterError(f"bench distributed: --ranks must be 2 or more, got {count}.")
    return count


def _link(given: str | None) -> float | str | None:
    if given is None or given == "auto":
        return "auto"
    if given == "none":
        return None
    try:
        rate = float(given)
    except ValueError:
        rate = 0.0
    if not rate > 0:
        raise ParameterError(
            f"bench distributed: --link must be auto, none or bytes a second, got {given!r}."
        )
    return rate


def _numbers(given: str | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    try:
        found = tuple(int(word) for word in given.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise ParameterError(
            f"bench distributed: --lengths must be numbers of tokens, as 512,4096; got {given!r}."
        )
    return found
