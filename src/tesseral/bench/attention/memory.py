"""Peak memory of calls, measured in a process of its own: ``run_alone`` runs this module."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tesseral.bench.attention.cases import Case
from tesseral.bench.attention.inputs import make_call, make_inputs
from tesseral.bench.attention.runners import RUNNERS
from tesseral.bench.memory import peak_extra_bytes, run_alone

_WARM_UP = 256  # tokens of a call that comes first, so that libraries have loaded what they need


def measure_memory(calls: Sequence[tuple[str, Case]], *, threads: int) -> list[int | None]:
    """Return the peak memory of each call beyond inputs and output.

    Parameters
    ----------
    calls : sequence of (str, Case)
        Who computes what; names of :data:`~.runners.RUNNERS`.
    threads : int
        Threads of torch and of our kernels.
    """
    requests = [{"runner": runner, "case": case.as_dict()} for runner, case in calls]
    return run_alone(__name__, requests, threads=threads)


def answer(request: dict[str, Any]) -> int | None:
    """Measure one call in this process."""
    case, runner = Case.from_dict(request["case"]), RUNNERS[request["runner"]]
    short = replace(case, q_len=min(case.q_len, _WARM_UP), kv_len=min(case.kv_len, _WARM_UP))
    make_call(runner, short, make_inputs(short, copies=1))()
    return peak_extra_bytes(make_call(runner, case, make_inputs(case, copies=1)))


if __name__ == "__main__":
    json.dump([answer(request) for request in json.load(sys.stdin)], sys.stdout)
