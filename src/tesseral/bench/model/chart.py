"""When which unit of a core does what, as a picture of the first moments of a call."""

from collections.abc import Iterator

from tesseral.attention.model import (
    Timeline,
    gpu_tiles,
    machine,
    one_level,
    predict_gpu,
    predict_npu,
)
from tesseral.bench.model.cases import NARROW, plan_of, problem
from tesseral.bench.model.forecasts import npu_plan
from tesseral.report.charts import Span, timelines_png

MICRO = 1e-6
SHOWN_US = {"npu": 80.0, "gpu": 8.0}
"""How much of a call is drawn."""

UNITS = {
    "matrix": "matrix",
    "vector": "vector",
    "near": "shared memory",
    "l2": "L2 cache",
    "far": "far memory",
}
ROLES = {
    "scores": "hadamard",
    "weights": "none",
    "values": "flatquant",
    "sums": "ink",
    "reading": "peer",
    "begin and end": "grid",
}
KINDS = {"read": "reading", "operands": "reading"}
LENGTH = 8192


def chart() -> bytes:
    """Return a PNG image: Ascend with two levels of tiles and with one, and the H200."""
    npu, gpu = machine("ascend-910b2"), machine("h200")
    call = problem(LENGTH, causal=False, device="npu:0")
    plan = npu_plan(call)
    on_gpu = problem(LENGTH, causal=False)
    tiles = gpu_tiles(plan_of(NARROW), on_gpu)
    found = {
        "two levels: rounds of 128 x 1024": ("npu", predict_npu(call, plan, npu)),
        "one level: 128 x 128": ("npu", predict_npu(call, one_level(plan), npu)),
        "Triton, two programs of 64 x 64": ("gpu", predict_gpu(on_gpu, tiles, gpu)),
    }
    names = {"npu": f"a core of {npu.name}", "gpu": f"a multiprocessor of {gpu.name}"}
    panels = {
        f"Predicted, {names[kind]}; {title}": list(_spans(got.timeline, SHOWN_US[kind]))
        for title, (kind, got) in found.items()
    }
    return timelines_png(panels, ROLES, xlabel="microseconds")


def _spans(timeline: Timeline, until: float) -> Iterator[Span]:
    """Yield the first pieces of work, unit after unit."""
    for unit, row in UNITS.items():
        for operation, start in zip(timeline.operations, timeline.starts, strict=True):
            begin = start / MICRO
            if unit in operation.seconds and begin < until:
                kind = KINDS.get(operation.name, operation.name)
                end = min(until, begin + operation.seconds[unit] / MICRO)
                kind = kind if kind in ROLES else "begin and end"
                yield Span(row=row, kind=kind, start=begin, end=end)
