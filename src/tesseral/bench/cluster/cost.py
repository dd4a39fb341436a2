"""What a fit costs: time beside Gram matrices, memory beside the tensor, and how both grow."""

import json
import sys
import warnings
from collections.abc import Callable
from itertools import permutations
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import TesseralWarning
from tesseral.bench.memory import peak_extra_bytes, run_alone
from tesseral.cluster import DegreeCorrectedTensorBlockModel, clustering_error_rate
from tesseral.core import CooTensor
from tesseral.datasets import make_block_tensor

REPEATS = 3
SECTIONS = ("pooled", "untied", "first")


def dense(nodes: int) -> dict[str, float]:
    """Time a fit of order 3 beside the three Gram matrices of the unfoldings, in turns."""
    drawn = make_block_tensor(
        (nodes,) * 3, 5, symmetric=True, contrast=1 + 100 * nodes**-0.6, random_state=0
    )
    tensor, truth = drawn.tensor, drawn.labels[0]
    del drawn
    sides: dict[str, Callable[[], Any]] = {
        "grams": lambda: _grams(tensor),
        "pooled": lambda: DegreeCorrectedTensorBlockModel(5, symmetric=True).fit(tensor),
        "untied": lambda: DegreeCorrectedTensorBlockModel(5, symmetric=False).fit(tensor),
        "first": lambda: DegreeCorrectedTensorBlockModel(5, symmetric=True, tied="first").fit(
            tensor
        ),
    }
    rate = clustering_error_rate(truth, sides["pooled"]().labels_[0])
    _grams(tensor)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(REPEATS):
        for name, call in sides.items():
            started = perf_counter()
            call()
            times[name].append(perf_counter() - started)
    found = {f"{name}_s": median(samples) for name, samples in times.items()}
    ratios = {f"{name}_ratio": found[f"{name}_s"] / found["grams_s"] for name in SECTIONS}
    return {"nodes": nodes, "error_rate": rate, **found, **ratios}


def _grams(tensor: NDArray[Any]) -> list[NDArray[Any]]:
    unfoldings = [np.moveaxis(tensor, k, 0).reshape(tensor.shape[k], -1) for k in range(3)]
    return [unfolding @ unfolding.T for unfolding in unfoldings]


def hypergraph(
    nodes: int, entries: int, clusters: int, seed: int = 0
) -> tuple[CooTensor, NDArray[Any]]:
    """Return a planted hypergraph with about that many entries, 80% of its edges in a block."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(nodes) % clusters)
    chance = np.abs(rng.normal(0.0, 0.5, nodes)) + 0.6
    n_edges = entries // 6
    edges = rng.choice(nodes, size=(n_edges, 3), p=chance / chance.sum())
    inside = rng.random(n_edges) < 0.8
    block = rng.integers(clusters, size=n_edges)
    for a in range(clusters):
        rows, members = np.flatnonzero(inside & (block == a)), np.flatnonzero(labels == a)
        share = chance[members] / chance[members].sum()
        edges[rows] = rng.choice(members, size=(len(rows), 3), p=share)
    edges = np.sort(edges, axis=1)
    edges = edges[(edges[:, 0] < edges[:, 1]) & (edges[:, 1] < edges[:, 2])].T
    once = CooTensor.from_entries(edges, np.ones(edges.shape[1]), (nodes,) * 3)
    coords = np.concatenate([once.coords[list(axes)] for axes in permutations(range(3))], axis=1)
    tensor = CooTensor(coords=coords, values=np.tile(once.values, 6), shape=once.shape)
    return tensor, labels


def sparse(nodes: int, entries: int, clusters: int) -> dict[str, Any]:
    """Time a fit of a planted hypergraph; what it takes at its peak includes the data."""
    tensor, truth = hypergraph(nodes, entries, clusters)
    fitted = DegreeCorrectedTensorBlockModel(clusters, random_state=0)
    started = perf_counter()
    fitted.fit(tensor)
    return {
        "nodes": nodes,
        "entries": len(tensor.values),
        "clusters": clusters,
        "fit_s": perf_counter() - started,
        "error_rate": clustering_error_rate(truth, fitted.labels_[0]),
        "peak_gib": _peak_gib(),
    }


def in_own_process(requests: list[dict[str, Any]], threads: int) -> list[Any]:
    """Answer requests, each in a process of its own; see :func:`answer`."""
    module = "tesseral.bench.cluster.cost"
    return [run_alone(module, [request], threads=threads)[0] for request in requests]


def answer(request: dict[str, Any]) -> Any:
    """Return what one request asks: ``memory`` of a dense fit, or a ``sparse`` one."""
    if request["what"] == "sparse":
        return sparse(request["nodes"], request["entries"], request["clusters"])
    tensor = np.random.default_rng(0).standard_normal((request["nodes"],) * 3)
    tied = DegreeCorrectedTensorBlockModel(5, symmetric=request["symmetric"], max_iter=5)

    def fit() -> Any:
        return tied.fit(tensor).labels_[0]

    extra = peak_extra_bytes(fit)
    return None if extra is None else 1 + extra / tensor.nbytes


def _peak_gib() -> float | None:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            lines = [line for line in file if line.startswith("VmHWM")]
        return int(lines[0].split()[1]) / 2**20
    except (OSError, IndexError):
        return None


if __name__ == "__main__":
    warnings.simplefilter("ignore", TesseralWarning)  # stderr is that of the command
    json.dump([answer(request) for request in json.load(sys.stdin)], sys.stdout)
