"""Every shape on which we must not be slower than torch; those measured before are kept."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tesseral.bench.attention.cases import OURS, Case
from tesseral.bench.attention.inputs import make_call, make_inputs
from tesseral.bench.attention.record import AttentionRecord, ShapeRecord
from tesseral.bench.attention.run import Step, Watch, check_agreement, explained
from tesseral.bench.attention.runners import RUNNERS
from tesseral.bench.timing import Call, Method, Timing, estimate, interleave, settle

_PATIENCE_S = 2.0  # for a shape; long calls, which vary less, are repeated less often
_LONG_S = 0.3
# what is done once in a process, such as compiling a plan, must not pass for a long call
_FIRST = Case(q_len=1, kv_len=512, q_heads=8, kv_heads=8, head_dim=64, dtype="float32")
_ONCE = Method(repeats=1, section_s=0.001)
_AGAIN = 3  # times as often, where we were slower


def run_grid(
    record: AttentionRecord,
    cases: Sequence[Case],
    watch: Watch,
    save: Callable[[AttentionRecord], None],
) -> AttentionRecord:
    """Return the record with every shape of ``cases``.

    Parameters
    ----------
    record : AttentionRecord
        Shapes it has are not measured again.
    cases : sequence of Case
        The grid.
    watch : callable
        Told how far things are.
    save : callable
        Given the record after every shape.
    """
    known = {shape.case for shape in record.shapes}
    if set(cases) - known:
        measure_shape(_FIRST, _ONCE)
    for done, case in enumerate(cases):
        watch(Step(name=case.name, done=done, total=len(cases)))
        if case not in known:
            record = replace(record, shapes=(*record.shapes, measure_shape(case, record.method)))
            save(record)
    return record


def measure_shape(case: Case, method: Method) -> ShapeRecord:
    """Time one shape against the fastest way that torch offers; again if we were slower."""
    inputs = make_inputs(case)
    names = ("sdpa",) if case.q_heads == case.kv_heads else ("enable_gqa", "folded")
    calls = {name: make_call(RUNNERS[name], case, inputs) for name in (OURS, *names)}
    seconds = _first_calls(case, calls)
    peer = min(names, key=seconds.__getitem__)
    often = _shorter(method, seconds[OURS] + seconds[peer])
    pair = {name: calls[name] for name in (OURS, peer)}

    def measured(method: Method) -> tuple[Timing, Timing]:
        timings = interleave(pair, method, seconds=seconds)
        return timings[OURS], timings[peer]

    ours, theirs = measured(often)
    shape = ShapeRecord(
        case=case,
        backend=explained(case, inputs)[0],
        peer=peer,
        ours=ours,
        theirs=theirs,
        again=False,
    )
    if shape.slower:
        ours, theirs = measured(replace(often, repeats=_AGAIN * often.repeats))
        shape = replace(shape, ours=ours, theirs=theirs, again=True)
    return shape


def _first_calls(case: Case, calls: dict[str, Call]) -> dict[str, float]:
    """Check that all results agree, and return about what each call takes."""
    results, seconds = {}, {}
    for name, call in calls.items():
        settle()
        start = time.perf_counter()
        results[name] = call()
        seconds[name] = time.perf_counter() - start
    check_agreement(case, results)
    # of a long call the first is like the others
    return {name: s if s > _LONG_S else estimate(calls[name]) for name, s in seconds.items()}


def _shorter(method: Method, seconds: float) -> Method:
    """Return a method that is patient with a pair of calls that takes this long."""
    affordable = int(_PATIENCE_S / max(seconds, 2 * method.section_s))
    return replace(method, repeats=min(method.repeats, max(1, affordable)))
