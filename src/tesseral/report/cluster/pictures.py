"""Pictures of a fitted clustering, as SVG for a page."""

from collections.abc import Sequence
from itertools import product
from math import log10, prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tesseral.cluster import ModeDiagnosis
from tesseral.report import charts

Floats: TypeAlias = NDArray[np.float64]

BINS = 150
"""Rows and columns of a picture; of more nodes, neighbours are averaged."""

SLICES = 6
"""Pictures of one tensor."""

NAMED = 40
"""Nodes, at most, whose names stand beside a picture; more have numbers."""


def slices(
    means: Sequence[tuple[str, Floats]],
    edges: tuple[list[int], list[int]],
    names: tuple[list[str], list[str]],
) -> list[str]:
    """Draw mean slices of the tensor, their nodes ordered by cluster, with lines between."""
    return [
        charts.heat_map(
            title,
            matrix.tolist(),
            xlabel="nodes of mode 1, by cluster",
            ylabel="nodes of mode 0, by cluster",
            rows=edges[0],
            columns=edges[1],
            row_names=names[0],
            column_names=names[1],
        )
        for title, matrix in means[:SLICES]
    ]


def core(block_means: Floats) -> str:
    """Draw the block means: clusters of mode 0 by blocks of the other modes."""
    rows = len(block_means)
    width = block_means.shape[-1] if block_means.ndim > 2 else 1
    columns = block_means.reshape(rows, -1)
    lines = list(range(width, columns.shape[1], width)) if block_means.ndim > 2 else []
    return charts.heat_map(
        "Block means",
        columns.tolist(),
        xlabel="clusters of mode 1"
        if block_means.ndim == 2
        else "blocks of the other modes, the last mode fastest",
        ylabel="clusters of mode 0",
        columns=lines,
    )


def by_cluster(names: NDArray[Any], labels: NDArray[Any]) -> list[str]:
    """Return the names of nodes in the order of the slices, or none if they are too many."""
    return _as_text(names[np.argsort(labels, kind="stable")])


def degrees(mode: int, labels: NDArray[Any], values: Floats, names: NDArray[Any]) -> str:
    """Draw the degrees of a mode's nodes, cluster by cluster, each from the largest down."""
    order = np.lexsort((-values, labels))
    starts = np.cumsum(np.bincount(labels))[:-1]
    return charts.lines(
        f"Degrees of mode {mode}",
        {"ours": (list(range(len(order))), values[order].tolist())},
        xlabel="nodes, by cluster",
        ylabel="degree",
        marks={f"{a + 1}": float(start) for a, start in enumerate(starts)},
        points=True,
        names=_as_text(names[order]),
    )


def consensus(mode: int, labels: NDArray[Any], together: Floats) -> str:
    """Draw how often fits to parts of the data put two nodes into one cluster."""
    bins = _bins(labels)
    members = np.equal.outer(np.arange(int(bins.max()) + 1), bins).astype(np.float64)
    members /= members.sum(axis=1, keepdims=True)
    edges = _edges(labels, bins)
    return charts.heat_map(
        f"Consensus of mode {mode}",
        (members @ together @ members.T).tolist(),
        xlabel="nodes, by cluster",
        ylabel="nodes, by cluster",
        rows=edges,
        columns=edges,
    )


def criterion(path: Sequence[tuple[tuple[int, ...], float]], chosen: tuple[int, ...]) -> str:
    """Draw the information criterion of every number of clusters that was tried."""
    even = [(counts[0], value) for counts, value in path if len(set(counts)) == 1]
    shown = sorted(even) if len(even) > 1 else [(k, v) for k, (_, v) in enumerate(path)]
    names = "clusters on every mode" if len(even) > 1 else "numbers of clusters, as tried"
    marks = {"chosen": float(chosen[0])} if len(even) > 1 and len(set(chosen)) == 1 else {}
    return charts.lines(
        "Information criterion, smaller is better",
        {"ours": ([float(x) for x, _ in shown], [y for _, y in shown])},
        xlabel=names,
        ylabel="BIC",
        marks=marks,
    )


def phases(nodes: Sequence[int], order: int, found: Sequence[ModeDiagnosis]) -> str:
    """Draw the signal-to-noise ratio of each mode beside the two limits of the theory."""
    sizes = np.geomspace(max(min(nodes) / 3, 2), 3 * max(nodes), 20)
    places = np.log10(sizes).tolist()
    finite = [
        (log10(n), log10(entry.signal_to_noise))
        for n, entry in zip(nodes, found, strict=True)
        if 0 < entry.signal_to_noise < float("inf")
    ]
    return charts.lines(
        "Signal to noise, and the limits of theory",
        {
            "none": (places, [-(order - 1) * x for x in places]),
            "hadamard": (places, [-order / 2 * x for x in places]),
            "ours": ([x for x, _ in finite], [y for _, y in finite]),
        },
        xlabel="log10 of the number of nodes",
        ylabel="log10 of the signal-to-noise ratio",
    )


def mean_slices(
    source: Any, labels: Sequence[NDArray[Any]], sizes: Sequence[int]
) -> tuple[list[tuple[str, Floats]], tuple[list[int], list[int]]]:
    """Return mean slices over each block of the modes after the second, and lines to draw.

    ``source`` gives sums over groups of nodes, as the sources of :mod:`tesseral.cluster` do, so
    sparse tensors stay sparse.
    """
    from tesseral.cluster import Grouping

    bins = [_bins(z) for z in labels[:2]]
    groupings = [Grouping(labels=b, size=int(b.max()) + 1) for b in bins]
    groupings += [Grouping(labels=z, size=r) for z, r in zip(labels[2:], sizes[2:], strict=True)]
    rows = source.sums(groupings, [0])[0]
    summed = np.zeros((groupings[0].size, rows.shape[1]))
    np.add.at(summed, bins[0], rows)
    counts = [grouping.totals() for grouping in groupings]
    shape = [grouping.size for grouping in groupings]
    blocks = summed.reshape(shape)
    for mode, count in enumerate(counts):
        along = [1] * blocks.ndim
        along[mode] = len(count)
        blocks = blocks / np.maximum(count, 1).reshape(along)
    means = []
    for place in product(*(range(size) for size in shape[2:])):
        words = ", ".join(f"cluster {a} of mode {k + 2}" for k, a in enumerate(place))
        index: Any = (slice(None), slice(None), *place)
        matrix = np.asarray(blocks[index])
        means.append((f"Mean over {words}" if words else "The matrix", matrix))
    lines = [_edges(z, b) for z, b in zip(labels[:2], bins, strict=True)]
    assert prod(shape) == blocks.size
    return means, (lines[0], lines[1])


def _as_text(names: NDArray[Any]) -> list[str]:
    return [str(name) for name in names] if len(names) <= NAMED else []


def _bins(labels: NDArray[Any]) -> NDArray[np.intp]:
    """Return the row of a picture that each node falls into: by cluster, then as given."""
    place = np.empty(len(labels), dtype=np.intp)
    place[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    return place if len(labels) <= BINS else place * BINS // len(labels)


def _edges(labels: NDArray[Any], bins: NDArray[Any]) -> list[int]:
    """Return the first row of each cluster but the first."""
    return [int(bins[labels == a].min()) for a in range(1, int(labels.max()) + 1)]
