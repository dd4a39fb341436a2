"""What was found, as plain records that survive JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from tesseral._errors import DataError, OutputExistsError
from tesseral.bench.attention.cases import NEVER_SLOWER, Case
from tesseral.bench.ceilings import Ceilings
from tesseral.bench.timing import Method, Timing, ratio
from tesseral.runtime.files import atomic_file

SCHEMA = "tesseral.bench.attention/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class BarRecord:
    """Whether one of the things that must hold does.

    Attributes
    ----------
    against : str
        A peer, or ``"read bandwidth"``.
    at_least, limit : float
        As in :class:`~.cases.Bar`.
    measured : float
        The ratio or the share.
    at_ceiling : float
        What it would be if ours ran at the ceiling of this machine.
    """

    against: str
    at_least: float
    limit: float | None
    measured: float
    at_ceiling: float

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.measured >= self.at_least

    @property
    def possible(self) -> bool:
        """Whether it could hold here at all: not where even the ceiling is too low."""
        return self.at_ceiling >= self.at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRecord:
    """One case of the table.

    Attributes
    ----------
    case : Case
    backend : str
        Ours that ran.
    explanation : str
        What :func:`tesseral.attention.explain` says of the call.
    ours : Timing
    peers : dict of str to Timing
    ceiling : float
        What the machine could do at most in this case: bytes or operations per second.
    bars : tuple of BarRecord
    reading : Timing, optional
        Reading the memory of keys and values once, in turns with the others, where it decodes.
    reading_bytes : int
        How much that was.
    extra_bytes : dict of str to int
        Peak memory beyond inputs and output, ours and the first peer's; empty where it was not
        measured.
    """

    case: Case
    backend: str
    explanation: str
    ours: Timing
    peers: dict[str, Timing]
    ceiling: float
    bars: tuple[BarRecord, ...]
    reading: Timing | None = None
    reading_bytes: int = 0
    extra_bytes: dict[str, int]

    def rate(self, timing: Timing) -> float:
        """Return bytes of keys and values (decoding), or operations, per second."""
        work = self.case.kv_bytes if self.case.decoding else self.case.flops
        return work / timing.median_s

    def as_dict(self) -> dict[str, Any]:
        """Return the record and what is computed from it."""
        return {
            "case": {"name": self.case.name, **self.case.as_dict()},
            "backend": self.backend,
            "explanation": self.explanation,
            "ours": self.ours.as_dict(),
            "peers": {name: timing.as_dict() for name, timing in self.peers.items()},
            "unit": "bytes/s" if self.case.decoding else "operations/s",
            "rate": self.rate(self.ours),
            "ceiling": self.ceiling,
            "share": self.rate(self.ours) / self.ceiling,
            "bars": [
                {**asdict(bar), "met": bar.met, "possible": bar.possible} for bar in self.bars
            ],
            "reading": None if self.reading is None else self.reading.as_dict(),
            "reading_bytes": self.reading_bytes,
            "extra_bytes": self.extra_bytes,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Undo :meth:`as_dict`."""
        reading = record["reading"]
        return cls(
            case=_case(record["case"]),
            backend=record["backend"],
            explanation=record["explanation"],
            ours=Timing.from_dict(record["ours"]),
            peers=_timings(record["peers"]),
            ceiling=record["ceiling"],
            bars=tuple(BarRecord(**_without(bar, "met", "possible")) for bar in record["bars"]),
            reading=None if reading is None else Timing.from_dict(reading),
            reading_bytes=record["reading_bytes"],
            extra_bytes=dict(record["extra_bytes"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRecord:
    """One part of ours, and what it is worth.

    Attributes
    ----------
    name : str
        What is done instead of it.
    case : Case
    ours, without : Timing
        With the part, and without.
    """

    name: str
    case: Case
    ours: Timing
    without: Timing

    @property
    def factor(self) -> float:
        """How many times slower it is without."""
        return ratio(self.without, self.ours)

    def as_dict(self) -> dict[str, Any]:
        """Return the record and what is computed from it."""
        return {
            "name": self.name,
            "case": {"name": self.case.name, **self.case.as_dict()},
            "ours": self.ours.as_dict(),
            "without": self.without.as_dict(),
            "factor": self.factor,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Undo :meth:`as_dict`."""
        return cls(
            name=record["name"],
            case=_case(record["case"]),
            ours=Timing.from_dict(record["ours"]),
            without=Timing.from_dict(record["without"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRecord:
    """One shape of the grid.

    Attributes
    ----------
    case : Case
    backend : str
        Ours that ran.
    peer : str
        The fastest way that torch offers.
    ours, theirs : Timing
    again : bool
        Whether a first measurement, in which we were slower, was repeated at greater length;
        these are then the later times.
    """

    case: Case
    backend: str
    peer: str
    ours: Timing
    theirs: Timing
    again: bool

    @property
    def ratio(self) -> float:
        """How many times slower the peer is."""
        return ratio(self.theirs, self.ours)

    @property
    def slower(self) -> bool:
        """Whether we are slower than we may be."""
        return self.ratio < NEVER_SLOWER

    def as_dict(self) -> dict[str, Any]:
        """Return the record and what is computed from it."""
        return {
            "case": {"name": self.case.name, **self.case.as_dict()},
            "backend": self.backend,
            "peer": self.peer,
            "ours": self.ours.as_dict(),
            "theirs": self.theirs.as_dict(),
            "again": self.again,
            "ratio": self.ratio,
            "slower": self.slower,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Undo :meth:`as_dict`."""
        return cls(
            case=_case(record["case"]),
            backend=record["backend"],
            peer=record["peer"],
            ours=Timing.from_dict(record["ours"]),
            theirs=Timing.from_dict(record["theirs"]),
            again=record["again"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRecord:
    """The case whose peak memory has a bar.

    Attributes
    ----------
    case : Case
    extra_bytes : int or None
        Peak beyond inputs and output; ``None`` where the system does not tell.
    at_most : int
        What must hold.
    """

    case: Case
    extra_bytes: int | None
    at_most: int

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.extra_bytes is not None and self.extra_bytes <= self.at_most

    def as_dict(self) -> dict[str, Any]:
        """Return the record and what is computed from it."""
        case = {"name": self.case.name, **self.case.as_dict()}
        return {
            "case": case,
            "extra_bytes": self.extra_bytes,
            "at_most": self.at_most,
            "met": self.met,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Undo :meth:`as_dict`."""
        return cls(**{**_without(record, "met"), "case": _case(record["case"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRecord:
    """Everything that one run found.

    Attributes
    ----------
    machine : dict
        The machine it was done on, with versions.
    code : str
        Digest of the code that was measured.
    method : Method
        How it was measured.
    ceilings : Ceilings
        What the machine could do at most.
    rows : tuple of RowRecord
        The table; empty where only the grid was measured.
    ablations : tuple of AblationRecord
    memory : MemoryRecord, optional
        The case whose peak memory has a bar; ``None`` where it was not measured.
    shapes : tuple of ShapeRecord
        The grid, as far as it was measured.
    """

    machine: dict[str, Any]
    code: str
    method: Method
    ceilings: Ceilings
    rows: tuple[RowRecord, ...] = ()
    ablations: tuple[AblationRecord, ...] = ()
    memory: MemoryRecord | None = None
    shapes: tuple[ShapeRecord, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "code": self.code,
            "method": asdict(self.method),
            "ceilings": self.ceilings.as_dict(),
            "rows": [row.as_dict() for row in self.rows],
            "ablations": [entry.as_dict() for entry in self.ablations],
            "memory": None if self.memory is None else self.memory.as_dict(),
            "shapes": [shape.as_dict() for shape in self.shapes],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Undo :meth:`as_dict`."""
        memory = record["memory"]
        return cls(
            machine=record["machine"],
            code=record["code"],
            method=Method(**record["method"]),
            ceilings=Ceilings.from_dict(record["ceilings"]),
            rows=tuple(map(RowRecord.from_dict, record["rows"])),
            ablations=tuple(map(AblationRecord.from_dict, record["ablations"])),
            memory=None if memory is None else MemoryRecord.from_dict(memory),
            shapes=tuple(map(ShapeRecord.from_dict, record["shapes"])),
        )


def write_record(record: AttentionRecord, file: Path) -> None:
    """Write a record as JSON; what stood there is replaced at once or not at all."""
    with atomic_file(file, overwrite=True) as temporary:
        temporary.write_text(json.dumps(record.as_dict(), indent=1) + "\n", encoding="utf-8")


def read_record(file: Path) -> AttentionRecord:
    """Return what :func:`write_record` wrote.

    Raises
    ------
    DataError
        If the file is none of ours, or damaged.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise ValueError
        return AttentionRecord.from_dict(record)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{file} is no record of this benchmark; choose another file.") from None


def continue_record(fresh: AttentionRecord, file: Path) -> AttentionRecord:
    """Return ``fresh`` with the shapes of the grid that ``file`` holds, if there is one.

    Raises
    ------
    OutputExistsError
        If they were measured with other code, on another machine or in another way.
    DataError
        As :func:`read_record`.
    """
    if not file.exists():
        return fresh
    old = read_record(file)
    for what in ("machine", "code", "method"):
        if getattr(fresh, what) != getattr(old, what):
            raise OutputExistsError(
                f"{file} holds shapes measured with another {what}; choose another file, or ask "
                "for it to be replaced (--overwrite)."
            )
    return old


def _case(record: Mapping[str, Any]) -> Case:
    return Case.from_dict(_without(record, "name"))


def _timings(record: Mapping[str, Any]) -> dict[str, Timing]:
    return {name: Timing.from_dict(timing) for name, timing in record.items()}


def _without(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in names}
