"""The benchmark: the table, the ablations, the long prefill, and the grid."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tesseral
from tesseral import _native
from tesseral._errors import BackendError
from tesseral.attention import explain
from tesseral.bench.attention.ablation import ABLATIONS, Ablation
from tesseral.bench.attention.cases import (
    LONG_PREFILL,
    LONG_PREFILL_BYTES,
    OURS,
    READ,
    TABLE,
    Bar,
    Case,
    Contest,
)
from tesseral.bench.attention.inputs import Inputs, make_call, make_inputs
from tesseral.bench.attention.memory import measure_memory
from tesseral.bench.attention.others import installed_others
from tesseral.bench.attention.record import (
    AblationRecord,
    AttentionRecord,
    BarRecord,
    MemoryRecord,
    RowRecord,
)
from tesseral.bench.attention.runners import RUNNERS
from tesseral.bench.ceilings import Ceilings, make_reader_of, measure_ceilings
from tesseral.bench.timing import Call, Method, Timing, interleave, ratio
from tesseral.runtime.machine import machine_record

FULL = Method(repeats=11, section_s=0.03)
QUICK = Method(repeats=3, section_s=0.01)

_ROUNDINGS = {"float32": 2**-16, "bfloat16": 2**-6, "float16": 2**-9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far things are.

    Attributes
    ----------
    name : str
        What is measured now.
    done, total : int
    """

    name: str
    done: int
    total: int


Watch = Callable[[Step], None]


def start_record(method: Method, threads: int) -> AttentionRecord:
    """Return a record of this machine, this code and the ceilings, with nothing else in it."""
    machine: dict[str, Any] = json.loads(json.dumps(machine_record().as_dict()))
    ceilings = measure_ceilings(threads)
    return AttentionRecord(machine=machine, code=_digest(), method=method, ceilings=ceilings)


def run_table(
    record: AttentionRecord, watch: Watch, *, threads: int, with_memory: bool
) -> AttentionRecord:
    """Return the record with table, ablations and, if wanted, memory.

    Raises
    ------
    BackendError
        If our result is not that of a peer.
    """
    contests, ablations = TABLE, ABLATIONS
    total = len(contests) + len(ablations) + 1 + 2 * with_memory
    steps = iter(range(total))

    def begin(name: str) -> None:
        watch(Step(name=name, done=next(steps), total=total))

    rows = [_row(contest, threads, record.method, begin) for contest in contests]
    ablated = [_ablate(ablation, record.method, begin) for ablation in ablations]
    begin("ceilings again")
    # the machine may have been disturbed when it was measured first
    ceilings = _higher(record.ceilings, measure_ceilings(threads))
    memory = None
    if with_memory:
        begin("peak memory")
        rows = _with_memory(rows, threads)
        begin(f"peak memory, {LONG_PREFILL.name}")
        (extra,) = measure_memory([(OURS, LONG_PREFILL)], threads=threads)
        memory = MemoryRecord(case=LONG_PREFILL, extra_bytes=extra, at_most=LONG_PREFILL_BYTES)
    rows = [_judge(row, contest, ceilings) for row, contest in zip(rows, contests, strict=True)]
    return replace(
        record, ceilings=ceilings, rows=tuple(rows), ablations=tuple(ablated), memory=memory
    )


def explained(case: Case, inputs: Inputs) -> tuple[str, str]:
    """Return the backend of ours that runs a case, and the explanation in words."""
    found = explain(inputs.query, *inputs.states[0], is_causal=case.causal)
    return found.backend, str(found)


def check_agreement(case: Case, results: dict[str, Any], *, roundings: int = 1) -> None:
    """Refuse to time what is wrong, or differs by more than some roundings of the output.

    Raises
    ------
    BackendError
        If a result differs from the first by more than roundings explain.
    """
    names = list(results)
    first = results[names[0]].float()
    allowed = roundings * _ROUNDINGS[case.dtype] * float(first.abs().max())
    for name in names[1:]:
        difference = float((results[name].float() - first).abs().max())
        if not difference <= allowed:
            raise BackendError(
                f"bench: {case.name}: {names[0]} and {name} differ by {difference:.2e}, where "
                f"rounding explains {allowed:.2e}; nothing was timed."
            )


def _row(contest: Contest, threads: int, method: Method, begin: Callable[[str], None]) -> RowRecord:
    begin(contest.case.name)
    inputs = {case: make_inputs(case) for case in {contest.case, *contest.peers.values()}}
    calls = {OURS: make_call(RUNNERS[OURS], contest.case, inputs[contest.case])}
    for name, case in contest.peers.items():
        calls[name] = make_call(RUNNERS[name], case, inputs[case])
    others = installed_others(contest.case)
    for name, other in others.items():
        calls[name] = other.prepare(contest.case, inputs[contest.case])
    twins = [name for name, case in contest.peers.items() if case == contest.case]
    same = [OURS, *twins, *others]
    check_agreement(contest.case, {name: calls[name]() for name in same})
    backend, explanation = explained(contest.case, inputs[contest.case])
    memory = inputs[contest.case].memory()
    if contest.case.decoding:
        calls[READ] = make_reader_of(memory, threads)
    timings = interleave(calls, method)
    return RowRecord(
        case=contest.case,
        backend=backend,
        explanation=explanation,
        ours=timings.pop(OURS),
        reading=timings.pop(READ, None),
        reading_bytes=sum(part.nbytes for part in memory[0]),
        peers=timings,
        ceiling=math.nan,  # until all ceilings are known
        bars=(),
        extra_bytes={},
    )


def _judge(row: RowRecord, contest: Contest, ceilings: Ceilings) -> RowRecord:
    row = replace(row, ceiling=_ceiling(row, ceilings))
    bars = [_bar(bar, row, contest) for bar in contest.bars]
    return replace(row, bars=tuple(bars))


def _bar(bar: Bar, row: RowRecord, contest: Contest) -> BarRecord:
    if bar.against == READ:
        measured = _share_of_reading(row)
    elif bar.capped is not None:
        kv_bytes = contest.peers[bar.against].kv_bytes
        least = kv_bytes / (bar.capped * row.reading_bytes)  # of the time of reading all
        measured = ratio(_at_least(row.peers[bar.against], row.reading, least), row.ours)
    else:
        measured = ratio(row.peers[bar.against], row.ours)
    share = row.rate(row.ours) / row.ceiling
    if row.reading is not None:
        share = _share_of_reading(row)
    return BarRecord(
        against=bar.against,
        at_least=bar.at_least,
        limit=bar.limit,
        measured=measured,
        at_ceiling=measured / share,
    )


def _share_of_reading(row: RowRecord) -> float:
    assert row.reading is not None, "a case that decodes is timed in turns with reading"
    return row.case.kv_bytes / row.reading_bytes * ratio(row.reading, row.ours)


def _at_least(timing: Timing, reading: Timing | None, part: float) -> Timing:
    """Return a timing none of whose samples is shorter than this part of reading beside it."""
    assert reading is not None, "a case that decodes is timed in turns with reading"
    pairs = zip(timing.samples_s, reading.samples_s, strict=True)
    return replace(timing, samples_s=tuple(max(sample, part * read) for sample, read in pairs))


def _ceiling(row: RowRecord, ceilings: Ceilings) -> float:
    if row.reading is not None:
        return row.reading_bytes / row.reading.median_s
    kinds = ("fma_fp32", "dot_bf16") if row.case.dtype == "bfloat16" else ("fma_fp32",)
    return ceilings.best(*kinds)


def _higher(one: Ceilings, other: Ceilings) -> Ceilings:
    products = {
        target: {kind: max(rate, other.products[target][kind]) for kind, rate in rates.items()}
        for target, rates in one.products.items()
    }
    return replace(one, products=products, read=max(one.read, other.read))


def _ablate(ablation: Ablation, method: Method, begin: Callable[[str], None]) -> AblationRecord:
    begin(f"{ablation.case.name}: {ablation.name}")
    inputs = make_inputs(ablation.case)
    others, runner = ablation.prepare(inputs)
    calls: dict[str, Call] = {
        "ours": make_call(RUNNERS[OURS], ablation.case, inputs),
        "without": make_call(runner, ablation.case, others),
    }
    check_agreement(ablation.case, {name: call() for name, call in calls.items()})
    timings: dict[str, Timing] = interleave(calls, method)
    return AblationRecord(name=ablation.name, case=ablation.case, **timings)


def _with_memory(rows: list[RowRecord], threads: int) -> list[RowRecord]:
    calls = [call for row in rows for call in _memory_calls(row)]
    found = iter(measure_memory([(runner, case) for _, runner, case in calls], threads=threads))
    measured: list[RowRecord] = []
    for row in rows:
        extra = {name: next(found) for name, *_ in _memory_calls(row)}
        known = {name: size for name, size in extra.items() if size is not None}
        measured.append(replace(row, extra_bytes=known))
    return measured


def _memory_calls(row: RowRecord) -> Iterator[tuple[str, str, Case]]:
    """Yield name, runner and case of what is measured in a row: ours and others, not ourselves."""
    yield OURS, OURS, row.case
    for name in row.peers:
        if name in RUNNERS and not name.startswith("our"):
            yield name, name, row.case


def _digest() -> str:
    """Return a digest of what a call of attention runs: shapes of other code are not continued."""
    package = Path(tesseral.__file__).parent
    files = sorted([*package.glob("attention/**/*.py"), Path(str(_native.__file__))])
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
