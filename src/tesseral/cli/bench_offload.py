"""``tesseral bench offload``: contexts that a device's memory does not hold."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tesseral._errors import BackendError, ParameterError
from tesseral.cli.bench_device import Device, on_cuda
from tesseral.cli.bench_options import Json, Overwrite, check_files, file_to_write, save, save_json
from tesseral.cli.console import print_table, progress
from tesseral.cli.inputs import require_llm
from tesseral.cli.sizes import parse_bytes


def offload(
    json: Json = None,
    png: Annotated[
        Path | None, file_to_write("Draw who did what when here, as a PNG image.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",  # or typer 0.27 takes the metavar for its name
            metavar="PART",
            help="Measure only rates, logits, decode, turns, peer, prefill or million; repeatable.",
            show_default="all",
        ),
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Device memory that the 8 B model may take.")
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of the host that may be taken.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of the 8 B model's context.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter contexts.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A tiny model on the CPU, to try the benchmark itself.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure contexts that a GPU's memory does not hold.

    262,144 tokens are read and decoded in 32 GB, 1,048,576 in 8 GB. The model has 8 B random
    weights, its 4-layer cut reads the longest context with 4-bit keys and values. Peers are
    transformers' DynamicCache(offloading=True), and our own pinned copy of only the layers that do
    not fit.

    Example: tesseral bench offload --json offload.json --png offload.png
    """
    require_llm("bench offload")
    from tesseral.bench.offload.cases import FULL, PARTS, QUICK, SMOKE
    from tesseral.bench.offload.run import run

    unknown = set(part or ()) - set(PARTS)
    if unknown:
        raise ParameterError(
            f"bench offload: --part {sorted(unknown)[0]} is none of {', '.join(PARTS)}."
        )
    if not smoke and not on_cuda(Device.auto):
        raise BackendError("bench offload: torch sees no CUDA device; --smoke needs none.")
    plan = SMOKE if smoke else QUICK if quick else FULL
    changes: dict[str, Any] = {"context": context} if context else {}
    for name, size in (("gpu_bytes", gpu_memory), ("host_bytes", host_memory)):
        if size is not None:
            changes[name] = parse_bytes(size, f"--{name.replace('bytes', 'memory')}")
    check_files(json, png=png, overwrite=overwrite)
    if png is not None and not {"decode", "prefill", "million"} & set(part or PARTS):
        raise ParameterError("bench offload: --png draws parts decode, prefill and million.")

    with progress() as bars:
        task = bars.add_task("offload", total=None)
        record = run(
            replace(plan, **changes),
            lambda name: bars.update(task, description=name),
            part or PARTS,
            partial(save_json, json),
        )
    if png is not None:
        from tesseral.bench.offload.chart import chart

        save(png, chart(record))
    _show(record)


def _show(record: dict[str, Any]) -> None:
    from tesseral.bench.offload import tables

    if "rates" in record:
        print_table("The host's memory", *tables.rates(record))
    if "decode" in record:
        print_table("Decoding", *tables.decoding(record))
    if tables.prompts(record)[1]:
        print_table("Prompts", *tables.prompts(record))
    if record["bars"]:
        print_table("What must hold", *tables.bars(record))
