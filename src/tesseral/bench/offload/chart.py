"""Who did what when, as a picture: streams of the device, both ways of the link, the CPU."""

from collections.abc import Iterator
from typing import Any

from tesseral.bench.offload.cases import COPIED, OURS
from tesseral.llm.cooperative.link import DEVICE, DOWN, HOST, UP
from tesseral.report.charts import Span, timelines_png

ROLES = {"attention": "flatquant", "rest of the model": "hadamard", "keys and values": "none"}
_ROWS = (DEVICE, UP, DOWN, HOST)


def chart(record: dict[str, Any]) -> bytes:
    """Return a PNG image of the timelines in a record."""
    sides = record.get("decode", {}).get("sides", {})
    found = {
        "Decoding a token; device and CPU attend": sides.get(OURS, {}).get("timeline"),
        "Decoding a token; all is copied to the device": sides.get(COPIED, {}).get("timeline"),
        "A chunk in the middle of a prompt": record.get("prefill", {}).get("timeline"),
        "A chunk of the longest prompt, 4 bits": record.get("million", {}).get("timeline"),
    }
    panels = {title: list(_spans(works)) for title, works in found.items() if works}
    return timelines_png(panels, ROLES, xlabel="milliseconds")


def _spans(works: list[dict[str, Any]]) -> Iterator[Span]:
    start = min(work["start_s"] for work in works)
    for row in _ROWS:
        for work in works:
            if work["row"] == row:
                begin, end = (1e3 * (work[name] - start) for name in ("start_s", "end_s"))
                yield Span(row=row, kind=work["kind"], start=begin, end=end)
