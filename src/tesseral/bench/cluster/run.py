"""The benchmark of clustering from start to end, and what must hold."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import Any

from tesseral.bench.cluster import accuracy, cost
from tesseral.bench.cluster.accuracy import FIRST, CellResult, Watch
from tesseral.bench.cluster.recipe import METHODS, cells
from tesseral.bench.steps import Steps
from tesseral.runtime.cpu import cpu_threads
from tesseral.runtime.machine import machine_record

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    replicates : int
        Of every cell and case; the bars are stated for 30.
    dense : tuple of int
        Nodes of the dense fits that are timed.
    sparse : tuple of (int, int, int)
        Nodes, entries and clusters of the hypergraphs.
    memory_nodes : int
    """

    replicates: int
    dense: tuple[int, ...]
    sparse: tuple[tuple[int, int, int], ...]
    memory_nodes: int


FULL = Size(
    replicates=30,
    dense=(50, 100, 200, 400),
    sparse=((20_000, 10**5, 10), (100_000, 10**6, 10), (100_000, 10**7, 10)),
    memory_nodes=250,
)
QUICK = Size(replicates=2, dense=(50, 100, 200), sparse=((20_000, 10**6, 5),), memory_nodes=100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Something that must hold.

    Attributes
    ----------
    name : str
    value, limit : float
        What was measured, and the most (or least, see ``least``) that is right.
    least : bool
    """

    name: str
    value: float
    limit: float
    least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value is on the right side of the limit."""
        return self.value >= self.limit if self.least else self.value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterBench:
    """Everything that was measured."""

    size: Size
    results: list[CellResult]
    peru: dict[str, float]
    missing: float
    right: dict[str, int]
    dense: list[dict[str, float]]
    sparse: list[dict[str, Any]]
    memory: dict[str, float | None]
    machine: dict[str, Any]
    threads: int
    elapsed_s: float

    def bars(self) -> list[Bar]:
        """Return what must hold, with what was measured."""
        n, found = self.size.replicates, []
        if self.results:
            found += _accuracy_bars(self.results)
        found.append(Bar(name="Peru, r=5", value=self.peru["dTBM"], limit=0.11565))
        found.append(Bar(name="30% missing", value=self.missing, limit=0.01))
        for name, right in self.right.items():
            least = round(0.9 * n) if name == "r=4, sigma=1" else n
            found.append(Bar(name=f"BIC right, {name}", value=right, limit=least, least=True))
        for entry in self.dense:
            if entry["nodes"] in (200, 400):
                found += [
                    Bar(
                        name=f"{section} fit / Gram matrices, p={entry['nodes']:.0f}",
                        value=entry[f"{section}_ratio"],
                        limit=1.5,
                    )
                    for section in cost.SECTIONS
                ]
        for name, value in self.memory.items():
            if value is not None:
                found.append(Bar(name=f"peak memory / tensor, {name}", value=value, limit=3))
        for entry in self.sparse:
            if entry["entries"] > 5 * 10**6:
                found.append(Bar(name="sparse fit, s", value=entry["fit_s"], limit=300))
                found.append(Bar(name="sparse error rate", value=entry["error_rate"], limit=0.02))
                if entry["peak_gib"] is not None:
                    found.append(Bar(name="sparse peak, GiB", value=entry["peak_gib"], limit=4))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "replicates": self.size.replicates,
            "cells": [
                {
                    "figure": r.cell.figure,
                    "data": r.cell.data,
                    "x": r.cell.x,
                    "published": r.cell.published,
                    "mean": {m: r.mean(m) for m in r.rates},
                    "standard_error": {m: r.standard_error(m) for m in r.rates},
                    "rates": r.rates,
                }
                for r in self.results
            ],
            "peru": self.peru,
            "missing": self.missing,
            "bic_right": self.right,
            "dense": self.dense,
            "sparse": self.sparse,
            "memory": self.memory,
            "bars": [
                {"name": b.name, "value": b.value, "limit": b.limit, "holds": b.holds}
                for b in self.bars()
            ],
            "machine": self.machine,
            "threads": self.threads,
            "elapsed_s": self.elapsed_s,
        }


def run(
    size: Size, watch: Watch, *, threads: int | None = None, kept: Path | None = None
) -> ClusterBench:
    """Measure everything; cost first, while the machine is cool.

    What is done is kept in the file ``kept`` until all is; see :class:`Steps`.
    """
    started, count, machine = monotonic(), cpu_threads(threads), machine_record().as_dict()
    key = {"machine": machine, "size": asdict(size), "threads": count}
    steps = Steps(kept, key, "core", "cluster", "datasets", "bench/cluster")
    dense = []
    for done, nodes in enumerate(size.dense):
        watch(f"dense fit of {nodes} nodes", done, len(size.dense))
        dense.append(steps.get(f"dense {nodes}", partial(cost.dense, nodes)))
    sparse = []
    for done, (nodes, entries, clusters) in enumerate(size.sparse):
        watch(f"sparse fit of {entries} entries", done, len(size.sparse))
        request = {"what": "sparse", "nodes": nodes, "entries": entries, "clusters": clusters}
        alone = partial(cost.in_own_process, [request], count)
        sparse += steps.get(f"sparse {entries}", alone)
    watch("peak memory", 0, 2)
    requests = [
        {"what": "memory", "nodes": size.memory_nodes, "symmetric": tied} for tied in (True, False)
    ]
    peaks = steps.get("memory", partial(cost.in_own_process, requests, count))
    results = accuracy.run_cells(cells(), size.replicates, watch, steps=steps)
    watch("cases beside the paper's", 0, 3)
    found = ClusterBench(
        size=size,
        results=results,
        peru=steps.get("Peru", accuracy.peru),
        missing=steps.get("missing", partial(accuracy.missing, size.replicates)),
        right=steps.get("BIC", partial(accuracy.right_numbers, size.replicates)),
        dense=dense,
        sparse=sparse,
        memory=dict(zip(("pooled", "untied"), peaks, strict=True)),
        machine=machine,
        threads=count,
        elapsed_s=monotonic() - started,
    )
    steps.finish()
    return found


def kinds(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Return the cells of each kind of data."""
    found: dict[str, list[CellResult]] = {}
    for result in results:
        found.setdefault(result.cell.kind, []).append(result)
    return found


def accuracy_table(results: Sequence[CellResult]) -> Table:
    """Return mean error rates of each kind of data, ours beside the published."""
    methods = (FIRST, *METHODS)
    rows = []
    for kind, members in kinds(results).items():
        ours = [f"{fmean(r.mean(m) for r in members):.4f}" for m in methods]
        theirs = [f"{fmean(r.cell.published[m] for r in members):.4f}" for m in METHODS]
        rows += [[kind, "here", *ours], ["", "published", theirs[0], *theirs]]
    return ["data", "", *methods], rows


def cost_table(found: ClusterBench) -> Table:
    """Return what fits took."""
    rows = [
        [
            f"dense, {entry['nodes']:.0f}^3",
            f"{entry['grams_s']:.3f} s",
            f"{entry['pooled_s']:.3f} s ({entry['pooled_ratio']:.2f})",
            f"{entry['untied_s']:.3f} s ({entry['untied_ratio']:.2f})",
            f"{entry['first_s']:.3f} s ({entry['first_ratio']:.2f})",
            f"{entry['error_rate']:.4f}",
        ]
        for entry in found.dense
    ]
    rows += [
        [
            f"sparse, {entry['nodes']}^3, {entry['entries']} entries",
            "",
            f"{entry['fit_s']:.1f} s",
            "",
            "",
            f"{entry['error_rate']:.4f}",
        ]
        for entry in found.sparse
    ]
    columns = ["data", "three Gram matrices", "averaged", "untied", "first mode", "error rate"]
    return columns, rows


def bars_table(found: ClusterBench) -> Table:
    """Return what must hold and whether it does."""
    rows = [
        [
            bar.name,
            f"{bar.value:.4g}",
            f"{'at least' if bar.least else 'at most'} {bar.limit:.4g}",
            "yes" if bar.holds else "NO",
        ]
        for bar in found.bars()
    ]
    return ["what", "measured", "must be", "holds"], rows


def _accuracy_bars(results: Sequence[CellResult]) -> list[Bar]:
    excess = max(r.mean(FIRST) - r.cell.bound for r in results)
    found = [
        Bar(name="mean, first mode read", value=fmean(r.mean(FIRST) for r in results), limit=0.012),
        Bar(name="worst cell less its bound, first mode read", value=excess, limit=0.0),
        Bar(
            name="mean, tied modes averaged",
            value=fmean(r.mean("dTBM") for r in results),
            limit=0.0025,
        ),
    ]
    for kind, members in kinds(results).items():
        ours = fmean(r.mean("dTBM") for r in members)
        peer = min(fmean(r.mean(m) for r in members) for m in METHODS[1:])
        found.append(Bar(name=f"dTBM, {kind}: at most the best peer", value=ours, limit=peer))
    return found
