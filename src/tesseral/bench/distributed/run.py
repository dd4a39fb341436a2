"""The benchmark as one rank runs it."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tesseral.attention.distributed import (
    Line,
    OverlapCosts,
    OverlapPlan,
    PeerMemory,
    choose_plan,
    fastest,
    measure_costs,
    measure_linear_costs,
    overlap_group,
    peers_refused,
    plans,
)
from tesseral.bench.distributed.cases import CPU, GPU, Grid
from tesseral.bench.distributed.link import SlowLink
from tesseral.bench.distributed.sides import AttentionSides, LinearSides, Sides, Way, plain
from tesseral.bench.distributed.timeline import timeline
from tesseral.bench.distributed.timing import time_ranks
from tesseral.runtime.files import atomic_file
from tesseral.runtime.machine import machine_record

SCHEMA = "tesseral.bench.distributed/1"
PLAIN, COMPUTE, OURS = "plain", "compute alone", "ours"
_CANDIDATES = 6
_GROUPED = (4, 8)
_CTAS = (8, 32)
_VARIANT_TILES = (2, 4, 8)
_LEAST_GAIN = 0.01
_FORECAST_RANKS = (4, 8)
_AUTO_SHARE = 0.5  # of computing: a third of all


def run(
    device: torch.device,
    watch: Callable[[str], None],
    *,
    quick: bool = False,
    link: float | str | None = None,
    variants: bool = False,
    graphs: bool = True,
    lengths: tuple[int, ...] | None = None,
    kept: str | None = None,
) -> dict[str, Any]:
    """Measure all cases; every rank calls it, and gets the same record.

    Parameters
    ----------
    device : torch.device
        Of this rank.
    watch : callable
        Is told what is measured.
    quick : bool
        A third of the samples.
    link : float, "auto" or None
        Bytes a second of a slow link, on CPUs; "auto" makes sums take a third of the time.
    variants : bool
        Also measure plans that were not chosen.
    graphs : bool
        Record the calls of short inputs and replay them, on CUDA.
    lengths : tuple of int, optional
        Instead of those of the grid.
    kept : str, optional
        A file in which rank 0 keeps the record after every case.
    """
    grid = GPU if device.type == "cuda" else CPU
    if quick:
        grid = replace(grid, repeats=max(3, grid.repeats // 3))
    if lengths:
        grid = replace(grid, lengths=lengths, mlp_lengths=(), timeline=max(lengths))
    bench = _Bench(grid, device, link, variants, graphs=graphs)
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": machine_record(with_accelerators=True).as_dict(),
        "ranks": dist.get_world_size(),
        "backend": dist.get_backend(),
        "link": link,
        "layer": grid.layer.as_dict(),
        "dtype": grid.dtype,
        "peers": bench.refusal or "used",
        "rows": [],
        "timelines": [],
    }
    for kind, length in _cases(grid):
        watch(f"{kind}, {length} tokens")
        row, lines = bench.row(kind, length)
        record["rows"].append(row)
        record["timelines"] += lines
        if kept is not None and dist.get_rank() == 0:
            with atomic_file(kept, overwrite=True) as temporary:
                temporary.write_text(json.dumps(record), encoding="utf-8")
    return record


def _cases(grid: Grid) -> list[tuple[str, int]]:
    cases = [("attention", length) for length in grid.lengths]
    return cases + [("mlp", length) for length in grid.mlp_lengths]


class _Bench:
    """What all cases share on a rank."""

    def __init__(
        self,
        grid: Grid,
        device: torch.device,
        link: float | str | None,
        variants: bool,
        *,
        graphs: bool,
    ) -> None:
        self.grid, self.device, self.link = grid, device, link
        self.graphs = graphs and device.type == "cuda"
        self.dtype = getattr(torch, grid.dtype)
        self.refusal = peers_refused(device)
        self.peers = None
        if self.refusal is None:
            longest = max((*grid.lengths, *grid.mlp_lengths))
            width = grid.layer.hidden
            self.peers = PeerMemory(longest, width, dtype=self.dtype, device=device)
        counts = () if device.type == "cpu" else _CTAS if variants else (_CTAS[-1],)
        self.groups = {count: overlap_group(count) for count in counts}
        self.variants = variants

    @torch.no_grad()
    def row(self, kind: str, length: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure one case."""
        make = AttentionSides if kind == "attention" else LinearSides
        sides = make(self.grid.layer, length, self.dtype, self.device)
        slow = self._slow_link(sides)
        way = Way(reduce=slow, group=self.groups.get(_CTAS[-1]), peers=self.peers)
        began = time.perf_counter()
        costs = self._costs(sides, way)
        plan, tried = self._chosen(sides, way, costs, length)
        chosen_s = time.perf_counter() - began
        calls: dict[str, Callable[[], object]] = {
            PLAIN: plain(sides, way),
            COMPUTE: sides.computed,
            OURS: partial(sides.planned, plan, way),
        }
        graphs = self.graphs and length <= self.grid.recorded
        samples = time_ranks(
            calls, self.grid.repeats, self.grid.section_s, self.device, graphs=graphs
        )
        others = self._others(sides, way, length) if self.variants else {}
        row = {
            "kind": kind,
            "length": length,
            "plan": asdict(plan),
            "costs": asdict(costs),
            "predicted_s": {
                PLAIN: _predicted(costs, _plain_plan(costs, sides, length), sides),
                OURS: _predicted(costs, plan, sides),
            },
            "forecasts": [_forecast(costs, sides, length, n) for n in _FORECAST_RANKS],
            "candidates": [{"plan": asdict(each), "s": s} for each, s in tried.items()],
            "choosing_s": chosen_s,
            "samples_s": samples,
            "recorded": graphs,
            "others_s": others,
            "link_bytes_per_s": None if slow is None else slow.bytes_per_s,
        } | summary(samples)
        row["bars"] = self._bars(row, slow)
        lines = self._timelines(kind, length, calls, slow)
        if slow is not None:
            slow.close()
        return row, lines

    def _slow_link(self, sides: Sides) -> SlowLink | None:
        if self.link is None or self.device.type == "cuda":
            return None
        if self.link != "auto":
            return SlowLink(float(self.link))
        times = time_ranks({COMPUTE: sides.computed}, 3, self.grid.section_s, self.device)
        size, part = dist.get_world_size(), sides.computed()
        sent = part.nbytes * 2 * (size - 1) / size
        return SlowLink(sent / (_AUTO_SHARE * median(times[COMPUTE])))

    def _costs(self, sides: Sides, way: Way) -> OverlapCosts:
        how: dict[str, Any] = {"reduce": way.reduce, "peers": way.peers}
        if isinstance(sides, LinearSides):
            return measure_linear_costs(sides.x, sides.weight, **how)
        inputs = sides.query, sides.key, sides.value, sides.weight
        return measure_costs(*inputs, is_causal=True, **how)

    def _chosen(
        self, sides: Sides, way: Way, costs: OverlapCosts, length: int
    ) -> tuple[OverlapPlan, dict[OverlapPlan, float]]:
        """Return the fastest of the plans predicted best, each way of summing among them."""
        ordered = plans(costs, length, kv_len=sides.kv_len, is_causal=sides.is_causal)
        first = [plan for plan in ordered if plan.overlaps]
        by_count: dict[tuple[str, int], OverlapPlan] = {}
        for plan in first:  # best first
            by_count.setdefault((plan.through, len(plan.tiles)), plan)
        kept = list(by_count.values())[:_CANDIDATES]
        # beside few multiprocessors of a sum more pays than beside as many as it takes alone
        grouped = [plan for plan in by_count.values() if plan.through == "group"]
        kept += [plan for plan in grouped if len(plan.tiles) in _GROUPED] or grouped[:1]
        candidates = [_plain_plan(costs, sides, length), *dict.fromkeys(kept)]
        run = partial(_planned, sides, way)
        return fastest(candidates, run, self.device, least_gain=_LEAST_GAIN)

    def _others(self, sides: Sides, way: Way, length: int) -> dict[str, float]:
        """Return medians of plans that nobody chose, by what they are."""
        calls: dict[str, Callable[[], object]] = {}
        for count in _VARIANT_TILES:
            if length // count < 64:
                continue
            size = length // count
            tiles = (size // 2, *[size] * (count - 1), size - size // 2)
            plan = OverlapPlan(tiles=tiles, strips=(length,), through="group", seconds=0.0)
            own = replace(way, group=None)
            calls[f"group, {count} + 1 tiles"] = partial(sides.planned, plan, own)
            tiled = replace(plan, strips=tiles)
            calls[f"group, {count} + 1 tiles and strips"] = partial(sides.planned, tiled, own)
            for ctas, group in self.groups.items():
                few = replace(way, group=group)
                calls[f"group of {ctas}, {count} + 1 tiles"] = partial(sides.planned, plan, few)
            if self.peers is not None:
                through = replace(plan, through="peers")
                calls[f"peers, {count} + 1 tiles"] = partial(sides.planned, through, way)
                calls[f"peers, {count} + 1 tiles and strips"] = partial(
                    sides.planned, replace(through, strips=tiles), way
                )
        part = sides.computed()
        calls["sum alone"] = partial(way.total, part)
        graphs = self.graphs and length <= self.grid.recorded
        repeats = 5 if length <= self.grid.recorded else 3
        found = time_ranks(calls, repeats, self.grid.section_s, self.device, graphs=graphs)
        return {name: median(samples) for name, samples in found.items()}

    def _bars(self, row: dict[str, Any], slow: SlowLink | None) -> list[dict[str, Any]]:
        from tesseral.bench.distributed.cases import HIDES, LINKED, NEVER_BELOW

        bars = [("times plain", NEVER_BELOW, row["ratio"])]
        if self.device.type == "cuda" and row["length"] >= self.grid.held_from:
            bars.append(("share hidden", HIDES, row["hidden"]))
        if slow is not None and self.link == "auto" and row["length"] >= self.grid.held_from:
            bars.append(("times plain, sums a third", LINKED, row["ratio"]))
        return [
            {"what": what, "at_least": least, "measured": value, "met": value >= least}
            for what, least, value in bars
        ]

    def _timelines(
        self, kind: str, length: int, calls: dict[str, Any], slow: SlowLink | None
    ) -> list[dict[str, Any]]:
        if length != self.grid.timeline or kind != "attention":
            return []
        return [
            {"side": side, "length": length, "spans": timeline(calls[side], self.device, slow)}
            for side in (PLAIN, OURS)
        ]


def summary(samples: dict[str, list[float]]) -> dict[str, Any]:
    """Return what samples say: medians, and ratios of samples of the same repeat.

    ``exposed_s`` is what sums add to computing in the plain sequence, ``hidden`` the share of
    that which our plan saves.
    """
    threes = list(zip(samples[PLAIN], samples[COMPUTE], samples[OURS], strict=True))
    exposed = median(p - c for p, c, _ in threes)
    return {
        "plain_s": median(samples[PLAIN]),
        "compute_s": median(samples[COMPUTE]),
        "ours_s": median(samples[OURS]),
        "exposed_s": exposed,
        "ratio": median(p / o for p, _, o in threes),
        "hidden": median(p - o for p, _, o in threes) / exposed if exposed > 0 else 1.0,
    }


def _planned(sides: Sides, way: Way, plan: OverlapPlan) -> Tensor:
    return sides.planned(plan, way)


def _plain_plan(costs: OverlapCosts, sides: Sides, length: int) -> OverlapPlan:
    whole = (length,)
    seconds = costs.predict(whole, kv_len=sides.kv_len, is_causal=sides.is_causal)
    return OverlapPlan(tiles=whole, strips=whole, through="group", seconds=seconds)


def _forecast(costs: OverlapCosts, sides: Sides, length: int, ranks: int) -> dict[str, Any]:
    """Return what more ranks are predicted to take."""
    more = costs.on(ranks)
    shape: dict[str, Any] = {"kv_len": sides.kv_len, "is_causal": sides.is_causal}
    plan = choose_plan(more, length, **shape)
    whole = _plain_plan(more, sides, length).seconds
    computed = replace(more, link=Line(0.0, 0.0)).predict((length,), **shape)
    return {
        "ranks": ranks,
        "plain_s": whole,
        "compute_s": computed,
        "ours_s": plan.seconds,
        "hidden": (whole - plan.seconds) / (whole - computed),
        "plan": asdict(plan),
    }


def _predicted(costs: OverlapCosts, plan: OverlapPlan, sides: Sides) -> float:
    return costs.predict(
        plan.tiles,
        kv_len=sides.kv_len,
        is_causal=sides.is_causal,
        strips=plan.strips,
        through=plan.through,
    )
