"""Which stream did what when, during one call."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from tesseral.bench.distributed.link import SlowLink

_KINDS = {
    "nccl": "sum",
    "PtoP": "copy",
    "Memcpy": "copy",
    "signal": "wait",
    "attention": "attention",
    "gemm": "product",
    "nvjet": "product",
    "cutlass": "product",
}
"""Kinds of work by a part of a kernel's name, the first that fits."""

COMPUTING = "computing"


def timeline(
    call: Callable[[], object], device: torch.device, slow: SlowLink | None
) -> list[dict[str, Any]]:
    """Return pieces of work of a call: lane, kind, begin and end in microseconds; of rank 0.

    On CUDA the profiler tells, by stream; on a CPU with a slow link, the link does: work on the
    other lane is what happens between one sum's start and the next one's.
    """
    call()
    dist.barrier()
    if device.type == "cuda":
        return _of_device(call)
    return [] if slow is None else _of_link(call, slow)


def _of_device(call: Callable[[], object]) -> list[dict[str, Any]]:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    results: Any = found.profiler
    events = [
        event
        for event in results.kineto_results.events()
        if str(event.device_type()).endswith("CUDA") and event.duration_ns() > 0
    ]
    if not events:
        return []
    origin = min(event.start_ns() for event in events)
    return [
        {
            "lane": f"stream {event.device_resource_id()}",
            "kind": _kind(event.name()),
            "name": event.name()[:60],
            "start_us": (event.start_ns() - origin) / 1e3,
            "end_us": (event.start_ns() + event.duration_ns() - origin) / 1e3,
        }
        for event in events
        if "Context" not in event.name() and "Sync" not in event.name()
    ]


def _kind(name: str) -> str:
    return next((kind for part, kind in _KINDS.items() if part.lower() in name.lower()), "other")


def _of_link(call: Callable[[], object], slow: SlowLink) -> list[dict[str, Any]]:
    slow.log.clear()
    origin = time.perf_counter()
    call()
    spans, before = [], origin
    for asked, begin, end in slow.log:
        spans.append((COMPUTING, COMPUTING, before, asked))
        spans.append(("link", "sum", begin, end))
        before = asked
    return [
        {"lane": lane, "kind": kind, "start_us": 1e6 * (a - origin), "end_us": 1e6 * (b - origin)}
        for lane, kind, a, b in spans
    ]
