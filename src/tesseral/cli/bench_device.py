"""``tesseral bench attention`` on a CUDA device."""

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tesseral._errors import BackendError, ParameterError
from tesseral.cli.console import print_table, progress
from tesseral.runtime.files import check_output

if TYPE_CHECKING:
    from tesseral.bench.attention.device.record import DeviceRecord
    from tesseral.bench.attention.run import Step


class Device(StrEnum):
    """What is measured."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def on_cuda(device: Device) -> bool:
    """Return whether to measure a CUDA device.

    Raises
    ------
    BackendError
        If one is asked for where there is none.
    """
    import torch

    found = torch.version.cuda is not None and torch.cuda.is_available()
    if device is Device.cuda and not found:
        raise BackendError("bench attention: torch sees no CUDA device; use --device cpu.")
    return found and device is not Device.cpu


def refuse_options(options: Mapping[str, Any]) -> None:
    """Refuse what only the benchmark of a CPU takes.

    Raises
    ------
    ParameterError
        If one of the options is given.
    """
    for name, given in options.items():
        if given:
            raise ParameterError(
                f"bench attention: {name} is for CPUs; leave it out, or use --device cpu."
            )


def measure_on_device(json: Path | None, *, quick: bool, explain: bool, overwrite: bool) -> None:
    """Measure the table of a CUDA device, write and show it."""
    if json is not None:
        check_output(json, overwrite=overwrite)
    from tesseral.bench.attention.device.record import write_device_record
    from tesseral.bench.attention.device.run import QUICK_REPEATS, REPEATS, run_on_device

    with progress() as bars:
        task = bars.add_task("device", total=None)

        def watch(step: "Step") -> None:
            bars.update(task, description=step.name, completed=step.done, total=step.total)

        save = None if json is None else partial(write_device_record, file=json)
        record = run_on_device(watch, repeats=QUICK_REPEATS if quick else REPEATS, save=save)
    _show(record, explain=explain)


def _show(record: "DeviceRecord", *, explain: bool) -> None:
    from tesseral.bench.attention.device.record import bar_table, side_table

    device = record.machine["accelerators"][0]
    packages = record.machine["packages"]
    typer.echo(
        f"{device['name']}, {device['backend']}, torch {packages.get('torch')}, Triton "
        f"{packages.get('triton')}; medians of {record.repeats}, sides in turns, by events of the "
        "device; decoding in CUDA graphs on all sides\n"
    )
    print_table("Every side", *side_table(record))
    columns, lines = bar_table(record)
    print_table("What must hold", columns, lines)
    typer.echo(f"{sum(line[-1] == 'yes' for line in lines)} of {len(lines)} met")
    if explain:
        for row in record.rows:
            typer.echo(f"\n{row.contest.name}\n{row.explanation}")
