"""``tesseral doctor``: what this machine can do, which backends would run, what is installed."""

import importlib.metadata
import os
import re
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from tesseral.cli.console import print_json, print_table
from tesseral.cli.families import FAMILIES, Answer, ask, verdicts
from tesseral.report.units import caches_text
from tesseral.runtime.cpu import cpu_target, target_verdicts
from tesseral.runtime.env import VARIABLES
from tesseral.runtime.machine import machine_record

_USES = {
    "llm": "quantise, run and measure language models",
    "serve": "serve models over HTTP to any client of OpenAI's interface",
    "plot": "write reports with pictures: demo, analyze, cluster, regress --out",
    "formula": "regress with formulas over tables",
    "data": "read files of R (.rda, .rds) and .parquet",
    "dask": "cluster and regress tensors larger than memory",
}
"""What extras are for, in order of how many people need them; what is missing is recommended."""

_DEVICE_EXTRAS = {
    "triton": ("8.0", "10.9", "fast attention and 4-bit layers on CUDA devices from 8.0 on"),
    "cuda": ("7.0", "7.9", "fast attention on Volta and Turing devices"),
}
"""The same for devices: the first and the last compute capability that an extra is for."""

_REQUIREMENT = re.compile(r"""^([\w.-]+)[^;]*;.*extra\s*==\s*["']([\w-]+)["']""")


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Show what this machine can do, and what would run where.

    Example: tesseral doctor --json
    """
    findings = examine()
    if json:
        print_json(findings)
    else:
        show(findings)


def examine() -> dict[str, Any]:
    """Return everything the doctor knows, as plain values."""
    machine, extras = machine_record(with_accelerators=True).as_dict(), _extras()
    return {
        "machine": machine,
        "cpu_targets": verdicts(cpu_target, target_verdicts),
        "backends": {family.name: ask(family) for family in FAMILIES},
        "environment": [
            {
                "name": variable.name,
                "value": os.environ.get(variable.name),
                "default": variable.default,
                "meaning": variable.meaning,
            }
            for variable in VARIABLES
        ],
        "extras": extras,
        "recommended": recommended(machine, extras),
    }


def recommended(
    machine: dict[str, Any], extras: dict[str, dict[str, str | None]]
) -> list[dict[str, str]]:
    """Return what to install for this machine, most useful first, with what it is for.

    Parameters
    ----------
    machine : dict
        As :class:`~tesseral.runtime.machine.MachineRecord` gives it.
    extras : dict
        Packages of every extra with their versions, ``None`` where missing.
    """
    wanted = dict(_USES)
    for accelerator in machine["accelerators"]:
        capability = _numbers(accelerator["capability"])
        for extra, (first, last, use) in _DEVICE_EXTRAS.items():
            if _numbers(first) <= capability <= _numbers(last):
                wanted[extra] = use
    return [
        {"install": f"pip install 'tesseral[{extra}]'", "to": use}
        for extra, use in wanted.items()
        if not all(extras.get(extra, {}).values())
    ]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def show(findings: dict[str, Any]) -> None:
    """Print what :func:`examine` found as tables."""
    machine = findings["machine"] | {"caches": caches_text(findings["machine"]["caches"])}
    rows = [(name, _words(value)) for name, value in machine.items()]
    print_table("Machine", ("what", "value"), rows)
    print_table("CPU targets", ("target", "verdict"), _verdict_rows(findings["cpu_targets"]))
    for name, answers in findings["backends"].items():
        print_table(f"Backends: {name}", ("problem", "backend", "verdict"), _backend_rows(answers))
    print_table(
        "Environment variables",
        ("variable", "value", "default", "meaning"),
        [
            (row["name"], row["value"] or "(not set)", row["default"], row["meaning"])
            for row in findings["environment"]
        ],
    )
    print_table(
        "Extras",
        ("extra", "packages", "to install"),
        [
            (
                name,
                ", ".join(f"{package} {version or 'missing'}" for package, version in held.items()),
                "" if all(held.values()) else f"pip install 'tesseral[{name}]'",
            )
            for name, held in findings["extras"].items()
        ],
    )
    if findings["recommended"]:
        rows = [(row["install"], row["to"]) for row in findings["recommended"]]
        print_table("Recommended for this machine", ("install", "to"), rows)
    else:
        typer.echo("Nothing is missing that this machine could use.")


def _words(value: Any) -> str:
    """Return a value of the machine record on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_words(entry) for entry in value) or "none"
    return "unknown" if value is None else str(value)


def _verdict_rows(answer: Answer) -> Iterator[tuple[str, str]]:
    """Yield every candidate with its verdict, then the refusal if nobody was chosen."""
    for name, verdict in answer["verdicts"].items():
        words = "could run" if verdict["ok"] else f"no: {verdict['reason']}"
        yield name, "runs" if name == answer["chosen"] else words
    if answer["refusal"] is not None:
        yield "(none)", answer["refusal"]


def _backend_rows(answers: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the verdicts on every sample problem of a family."""
    if "needs" in answers:
        yield "(any)", "(none)", f"this room needs {answers['needs']}, which is not installed"
        return
    for problem, answer in answers.items():
        for row in _verdict_rows(answer):
            yield problem, *row


def _extras() -> dict[str, dict[str, str | None]]:
    """Return the packages of every extra with their versions, ``None`` where missing."""
    extras: dict[str, dict[str, str | None]] = {}
    for requirement in importlib.metadata.requires("tesseral") or []:
        match = _REQUIREMENT.match(requirement)
        if match is not None and match[1] != "tesseral":
            package, extra = match.groups()
            extras.setdefault(extra, {})[package] = _version(package)
    return extras


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
