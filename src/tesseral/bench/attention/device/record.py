"""What was found on a CUDA device."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tesseral.bench.attention.device.cases import COPY, DeviceContest
from tesseral.bench.timing import Timing, ratio
from tesseral.runtime.files import atomic_file

SCHEMA = "tesseral.bench.attention.device/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """One contest.

    Attributes
    ----------
    contest : DeviceContest
    ours : Timing, optional
        ``None`` where our backend cannot run the case here.
    peers : dict of str to Timing
        Those that could run.
    refusals : dict of str to str
        Why somebody could not, ours included.
    explanation : str
        What :func:`tesseral.attention.explain` says of the call.
    """

    contest: DeviceContest
    ours: Timing | None
    peers: dict[str, Timing]
    refusals: dict[str, str]
    explanation: str

    def rate(self, timing: Timing) -> float:
        """Return bytes of keys and values (decoding), or operations, per second."""
        case = self.contest.case
        return (case.kv_bytes if case.decoding else case.flops) / timing.median_s

    @property
    def bars(self) -> list[tuple[str, float, float | None]]:
        """Each peer with a bar, the ratio that must hold, and the ratio measured."""
        return [
            (
                bar.against,
                bar.at_least,
                ratio(self.peers[bar.against], self.ours)
                if self.ours is not None and bar.against in self.peers
                else None,
            )
            for bar in self.contest.bars
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return the row and what is computed from it."""
        return {
            "name": self.contest.name,
            "case": self.contest.case.as_dict(),
            "backend": self.contest.backend,
            "cache": self.contest.cache,
            "unit": "bytes/s" if self.contest.case.decoding else "operations/s",
            "ours": None if self.ours is None else self._timing(self.ours),
            "peers": {name: self._timing(timing) for name, timing in self.peers.items()},
            "refusals": self.refusals,
            "explanation": self.explanation,
            "bars": [
                {
                    "against": against,
                    "at_least": least,
                    "measured": measured,
                    "met": measured is not None and measured >= least,
                }
                for against, least, measured in self.bars
            ],
        }

    def _timing(self, timing: Timing) -> dict[str, Any]:
        return {**timing.as_dict(), "rate": self.rate(timing)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """Everything that one run found.

    Attributes
    ----------
    machine : dict
        The machine and its devices, with versions.
    repeats : int
        Sections of each side.
    rows : tuple of DeviceRow
    """

    machine: dict[str, Any]
    repeats: int
    rows: tuple[DeviceRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "repeats": self.repeats,
            "rows": [row.as_dict() for row in self.rows],
        }


def write_device_record(record: DeviceRecord, file: Path) -> None:
    """Write a record as JSON; what stood there is replaced at once or not at all."""
    with atomic_file(file, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record.as_dict(), indent=1) + "\n", encoding="utf-8")


def bar_table(record: DeviceRecord) -> tuple[list[str], list[list[str]]]:
    """Return what must hold and what was measured, one line for each bar."""
    lines = []
    for row in record.rows:
        for against, least, measured in row.bars:
            number = "{:.0%}" if against == COPY else "{:.2f}x"
            lines.append(
                [
                    row.contest.name,
                    against,
                    number.format(least),
                    "-" if measured is None else number.format(measured),
                    _word(row, against, least, measured),
                ]
            )
    return ["case", "against", "at least", "measured", "met"], lines


def side_table(record: DeviceRecord) -> tuple[list[str], list[list[str]]]:
    """Return times, their spread and rates of everybody in every case."""
    lines = []
    for row in record.rows:
        timings = dict(row.peers)
        if row.ours is not None:
            timings = {f"ours ({row.contest.backend})": row.ours, **timings}
        unit, step = ("GB/s", 1e9) if row.contest.case.decoding else ("TFLOP/s", 1e12)
        for name, timing in timings.items():
            lines.append(
                [
                    row.contest.name,
                    name,
                    f"{timing.median_s * 1e6:.1f} us",
                    f"{timing.spread:.1%}",
                    f"{row.rate(timing) / step:.0f} {unit}",
                ]
            )
    return ["case", "who", "time", "spread", "rate"], lines


def _word(row: DeviceRow, against: str, least: float, measured: float | None) -> str:
    if measured is None:
        return f"not run: {row.refusals.get('ours') or row.refusals.get(against)}"
    return "yes" if measured >= least else "NO"
