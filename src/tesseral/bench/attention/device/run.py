"""The benchmark on a CUDA device."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from tesseral._errors import BackendError
from tesseral.attention import explain
from tesseral.bench.attention.cases import OURS
from tesseral.bench.attention.device.cases import OUR_FP16, TABLE, DeviceContest
from tesseral.bench.attention.device.inputs import dense, make_device_inputs
from tesseral.bench.attention.device.record import DeviceRecord, DeviceRow
from tesseral.bench.attention.device.sides import SAME, SIDES, Side, ours
from tesseral.bench.attention.device.timing import captured, time_in_turns
from tesseral.bench.attention.inputs import Inputs
from tesseral.bench.attention.run import Step, Watch, check_agreement
from tesseral.bench.timing import Call, Timing
from tesseral.runtime.machine import machine_record

REPEATS, QUICK_REPEATS = 21, 5
_SECTION_S = 0.002


def run_on_device(
    watch: Watch, *, repeats: int = REPEATS, contests: Sequence[DeviceContest] = TABLE
) -> DeviceRecord:
    """Measure every contest on the current CUDA device.

    Raises
    ------
    BackendError
        If our result is not that of a peer.
    """
    rows = []
    for done, contest in enumerate(contests):
        watch(Step(name=contest.name, done=done, total=len(contests)))
        rows.append(_row(contest, repeats))
    machine: dict[str, Any] = json.loads(
        json.dumps(machine_record(with_accelerators=True).as_dict())
    )
    return DeviceRecord(machine=machine, repeats=repeats, rows=tuple(rows))


@torch.no_grad()
def _row(contest: DeviceContest, repeats: int) -> DeviceRow:
    case = contest.case
    inputs = make_device_inputs(contest)
    calls, refusals, results = {}, {}, {}
    for name in (OURS, *contest.peers):
        given = inputs
        if name == OUR_FP16:
            given = make_device_inputs(contest, dense(case))
        try:
            side = ours(case, contest.backend) if name == OURS else SIDES[name](case)
            result = side(given.query, *given.states[0])
            if name == OURS or name in SAME:
                results[name] = result
            calls[name] = _calls(side, given)
        except (BackendError, RuntimeError) as error:
            # a library that has no kernel for a case says so when called
            refusals[name] = str(error).partition("\n")[0]
    if results:
        check_agreement(case, results)
    del results
    timings = _time(calls, repeats, graphs=case.decoding)
    words = str(explain(inputs.query, *inputs.states[0], is_causal=case.causal))
    return DeviceRow(
        contest=contest,
        ours=timings.pop(OURS, None),
        peers=timings,
        refusals=refusals,
        explanation=words,
    )


def _calls(side: Side, inputs: Inputs) -> list[Call]:
    return [partial(side, inputs.query, *states) for states in inputs.states]


def _time(calls: dict[str, list[Call]], repeats: int, *, graphs: bool) -> dict[str, Timing]:
    """Time all sides; graphs are captured on both, where calls are short."""
    capture: Callable[[list[Call]], tuple[Call, int]] = captured if graphs else _plain
    sides = {name: capture(several) for name, several in calls.items()}
    return time_in_turns(sides, repeats, _SECTION_S)


def _plain(calls: list[Call]) -> tuple[Call, int]:
    return calls[0], 1
