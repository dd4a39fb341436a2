"""The benchmark on a CUDA device."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tesseral._errors import BackendError
from tesseral.attention import explain
from tesseral.bench.attention.cases import OURS, Case
from tesseral.bench.attention.device.cases import OUR_FP16, TABLE, UNFUSED, DeviceContest
from tesseral.bench.attention.device.inputs import dense, make_device_inputs
from tesseral.bench.attention.device.record import DeviceRecord, DeviceRow
from tesseral.bench.attention.device.sides import SAME, SIDES, ours
from tesseral.bench.attention.device.timing import captured, time_in_turns
from tesseral.bench.attention.run import Step, Watch, check_agreement
from tesseral.bench.timing import Call, Timing
from tesseral.runtime.machine import machine_record

REPEATS, QUICK_REPEATS = 21, 5
_SECTION_S = 0.002

_ROUNDINGS = {UNFUSED: 8}
"""Times the rounding of a peer's output that its result may differ; others once."""


def run_on_device(
    watch: Watch,
    *,
    repeats: int = REPEATS,
    contests: Sequence[DeviceContest] = TABLE,
    save: Callable[[DeviceRecord], None] | None = None,
) -> DeviceRecord:
    """Measure every contest on the current CUDA device.

    Whoever cannot run a case, or gives another result than ours, is told in its row and not
    timed.

    Parameters
    ----------
    watch : callable
        Is told how far things are.
    repeats : int
        Sections of each side.
    contests : sequence of DeviceContest
        What to measure.
    save : callable, optional
        Is given what is known after each contest.
    """
    machine: dict[str, Any] = json.loads(
        json.dumps(machine_record(with_accelerators=True).as_dict())
    )
    record = DeviceRecord(machine=machine, repeats=repeats, rows=())
    for done, contest in enumerate(contests):
        watch(Step(name=contest.name, done=done, total=len(contests)))
        record = replace(record, rows=(*record.rows, _row(contest, repeats)))
        if save is not None:
            save(record)
    return record


@torch.no_grad()
def _row(contest: DeviceContest, repeats: int) -> DeviceRow:
    case = contest.case
    inputs = make_device_inputs(contest)
    calls: dict[str, list[Call]] = {}
    refusals: dict[str, str] = {}
    mine = None
    for name in (OURS, *contest.peers):
        given = make_device_inputs(contest, dense(case)) if name == OUR_FP16 else inputs
        try:
            side = ours(case, contest.backend) if name == OURS else SIDES[name](case)
            result = side(given.query, *given.states[0])
        except (BackendError, RuntimeError) as error:
            # a library that has no kernel for a case says so when called
            refusals[name] = str(error).partition("\n")[0]
            continue
        if name == OURS:
            mine = result
        elif name in SAME and mine is not None:
            refusals |= _disagreement(case, name, mine, result)
        if name not in refusals:
            calls[name] = [partial(side, given.query, *states) for states in given.states]
    timings = _time(calls, repeats, graphs=case.decoding)
    words = str(explain(inputs.query, *inputs.states[0], is_causal=case.causal))
    return DeviceRow(
        contest=contest,
        ours=timings.pop(OURS, None),
        peers=timings,
        refusals=refusals,
        explanation=words,
    )


def _disagreement(case: Case, name: str, mine: Tensor, result: Tensor) -> dict[str, str]:
    """Return why a peer is not timed, if its result is not ours."""
    try:
        check_agreement(case, {OURS: mine, name: result}, roundings=_ROUNDINGS.get(name, 1))
    except BackendError as error:
        return {name: str(error)}
    return {}


def _time(calls: dict[str, list[Call]], repeats: int, *, graphs: bool) -> dict[str, Timing]:
    """Time all sides; graphs are captured on both, where calls are short."""
    capture: Callable[[list[Call]], tuple[Call, int]] = captured if graphs else _plain
    sides = {name: capture(several) for name, several in calls.items()}
    return time_in_turns(sides, repeats, _SECTION_S) if sides else {}


def _plain(calls: list[Call]) -> tuple[Call, int]:
    return calls[0], 1
