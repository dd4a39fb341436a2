"""Measures a context that does not fit, part by part."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch

from tesseral.bench.offload import parts
from tesseral.bench.offload.cases import FASTER, OFFLOADING, OURS, PARTS, Plan
from tesseral.bench.offload.setting import give_back, hold_to
from tesseral.runtime.machine import machine_record

SCHEMA = "tesseral.bench.offload/1"

Save = Callable[[dict[str, Any]], None]

_PARTS = {
    "rates": parts.rates,
    "logits": parts.logits,
    "decode": parts.decode,
    "turns": parts.turns,
    "peer": parts.peer,
    "prefill": parts.prefill,
    "million": parts.million,
}


@torch.inference_mode()
def run(
    plan: Plan, watch: parts.Watch, names: Iterable[str] = PARTS, save: Save | None = None
) -> dict[str, Any]:
    """Measure the parts asked for and return a record of plain values.

    Parameters
    ----------
    plan : Plan
        Sizes.
    watch : callable
        Told what is measured next.
    names : iterable of str
        Of :data:`~tesseral.bench.offload.cases.PARTS`.
    save : callable, optional
        Given the record after each part.
    """
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": machine_record().as_dict(),
        "plan": asdict(plan),
    }
    wanted = list(names)
    models = parts.Models(plan)
    for name, measure in _PARTS.items():
        if name not in wanted:
            continue
        watch(name)
        try:
            record[name] = measure(plan, models, watch)
        except torch.cuda.OutOfMemoryError as error:
            record[name] = {"refused": str(error)[:300]}
        give_back(plan)
        record["bars"] = bars(record)
        if save is not None:
            save(record)
    hold_to(plan, None)
    return record


def bars(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what must hold, what was found, and whether it holds."""
    found = []
    sides = dict(record.get("decode", {}).get("sides", {}))
    if sides:
        sides[OFFLOADING] = record.get("peer", {})
    for name, least in FASTER.items():
        if "median_s" in sides.get(name, {}):
            value = sides[name]["median_s"] / sides[OURS]["median_s"]
            found.append(_bar(f"decode, times as fast as {name}", value, least))
    for name, sign in (("decode", "sides"), ("prefill", "prefill_s"), ("million", "prefill_s")):
        if name in record:
            found.append(_bar(f"{name}, completes", float(sign in record[name]), 1))
    for name in ("decode", "prefill", "million"):
        part = record.get(name, {})
        peak = sides.get(OURS, {}) if name == "decode" else part
        if peak.get("reserved_bytes"):
            share = peak["reserved_bytes"] / part["memory"]["gpu_bytes"]
            found.append(_bar(f"{name}, share of the budget reserved", share, 1.0, below=True))
    if "memory" in record.get("million", {}):
        far = len(record["million"]["memory"]["host_layers"])
        found.append(_bar("million, layers on the host", far, 2))
    for name, side in record.get("logits", {}).get("sides", {}).items():
        value = side["error"] / side["error_without"]
        found.append(_bar(f"logits, {name}, times the error without", value, 2.0, below=True))
    return found


def _bar(name: str, value: float, limit: float, *, below: bool = False) -> dict[str, Any]:
    holds = value <= limit if below else value >= limit
    return {"name": name, "value": value, "limit": limit, "below": below, "holds": holds}
