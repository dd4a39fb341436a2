"""Measuring the table, and whether what must hold does."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from tesseral.bench.ceilings import Ceilings, make_reader, measure_ceilings
from tesseral.bench.linear import sides
from tesseral.bench.linear.cases import INPUT, READ, TABLE, Case, Contest
from tesseral.bench.timing import Method, Timing, interleave, ratio, using_threads
from tesseral.runtime.cpu import cache_sizes
from tesseral.runtime.machine import machine_record

SCHEMA = "tesseral.bench.linear/1"
FULL = Method(repeats=15, section_s=0.02, patience_s=13.0)
QUICK = Method(repeats=3, section_s=0.005, patience_s=2.6)
Watch = Callable[[str], None]
"""Told what is measured next."""


@torch.inference_mode()
def run(*, quick: bool, threads: int | None, watch: Watch) -> dict[str, Any]:
    """Measure everything and return a record of plain values."""
    method = QUICK if quick else FULL
    with using_threads(threads) as count:
        watch("ceilings")
        ceilings = measure_ceilings(count)
        rows = []
        for contest in (*TABLE, INPUT):
            watch(contest.case.name if contest is not INPUT else "transform and quantise")
            rows.append(measured(contest, method, ceilings))
    return {
        "schema": SCHEMA,
        "machine": machine_record().as_dict(),
        "threads": count,
        "method": asdict(method),
        "ceilings": ceilings.as_dict(),
        "rows": rows,
    }


def measured(contest: Contest, method: Method, ceilings: Ceilings) -> dict[str, Any]:
    """Time every side of a case in turns, and hold it to its bars."""
    case = contest.case
    if case.out_features == 0:
        calls = sides.input_sides(case)
    else:
        calls = sides.sides(case, copies_of(case))
    if case.tokens == 1:
        calls[READ] = make_reader(ceilings.buffer_bytes, ceilings.threads)
    timings = interleave(calls, method)
    return record_of(contest, timings, ceilings)


def record_of(
    contest: Contest, timings: Mapping[str, Timing], ceilings: Ceilings
) -> dict[str, Any]:
    """Return a row of the record: times, ratios, shares of ceilings, and bars."""
    case, ours = contest.case, timings["ours"]
    ratios = {
        name: ratio(theirs, ours) for name, theirs in timings.items() if name not in ("ours", READ)
    }
    shares = {}
    if case.out_features and case.tokens > 1:
        dot = "dot_int8" if case.activation_bits <= 8 else "dot_bf16"
        shares[dot] = case.operations / ours.median_s / ceilings.best(dot, "fma_fp32")
    if READ in timings:
        # both rates in the same repeat
        scale = case.weight_bytes / ceilings.buffer_bytes
        shares[READ] = scale * ratio(timings[READ], ours)
    found = ratios | shares
    bars = [
        asdict(bar) | {"measured": found[bar.against], "met": found[bar.against] >= bar.at_least}
        for bar in contest.bars
    ]
    return {
        "case": asdict(case),
        "name": case.name if case.out_features else f"transform and quantise, {case.tokens} tokens",
        "timings": {name: timing.as_dict() for name, timing in timings.items()},
        "ratios": ratios,
        "shares": shares,
        "bars": bars,
    }


def copies_of(case: Case) -> dict[str, int]:
    """Return how many weights each side takes in turn: one, or with one token twice the caches."""
    peer = f"torch {case.dtype}"
    if case.tokens > 1:
        return {"ours": 1, peer: 1}
    caches = cache_sizes()
    beyond = 2 * max(caches.l3, caches.l2, 2**22)
    dense = case.in_features * case.out_features * getattr(torch, case.dtype).itemsize
    return {"ours": -(-beyond // case.weight_bytes), peer: -(-beyond // dense)}
