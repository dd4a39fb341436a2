"""The benchmark on one page: our error rates beside the published, and growth of cost."""

from math import log10

from tesseral.bench.cluster.accuracy import FIRST, CellResult
from tesseral.bench.cluster.phase import COLOURS
from tesseral.bench.cluster.recipe import METHODS
from tesseral.bench.cluster.run import (
    ClusterBench,
    accuracy_table,
    bars_table,
    cost_table,
    kinds,
)
from tesseral.report import charts, page

ROLES = {
    "dTBM": "flatquant",
    FIRST: "ours",
    "HLloyd": "none",
    "HOSVD": "full",
    "HOSVD+": "muted",
    "SCORE": "hadamard",
}
"""The colour of each method."""


def bench_page(found: ClusterBench) -> str:
    """Return the benchmark as a complete HTML document."""
    body = [
        page.section("What must hold", [page.table("", *bars_table(found))]),
        figures_section(found.results),
        page.section(
            "Cost",
            [page.table(f"{found.threads} threads.", *cost_table(found)), page.grid(growth(found))],
        ),
    ]
    return page.page("Clustering: the paper's figures, and what fits cost", body)


def figures_section(results: list[CellResult]) -> str:
    """Return the paper's comparisons, ours beside the published values."""
    return page.section(
        "Error rates by the paper's recipe",
        [
            page.key({ROLES[m]: m for m in METHODS}),
            page.grid(figures(results)),
            page.table("Means over the cells of each kind.", *accuracy_table(results)),
        ],
    )


def figures(results: list[CellResult]) -> list[str]:
    """Draw mean error rates against gamma or the shape: here, and as published."""
    drawn = []
    for kind, members in kinds(results).items():
        ordered = sorted(members, key=lambda r: r.cell.x)
        xs = [r.cell.x for r in ordered]
        xlabel = "Pareto shape" if "shape" in kind else "gamma"
        here = {ROLES[m]: (xs, [r.mean(m) for r in ordered]) for m in METHODS}
        there = {ROLES[m]: (xs, [r.cell.published[m] for r in ordered]) for m in METHODS}
        for title, series in ((f"{kind}: here", here), (f"{kind}: published", there)):
            chart = charts.lines(title, series, xlabel=xlabel, ylabel="clustering error rate")
            drawn.append(page.figure(chart, f"{len(members)} cells."))
    return drawn


def phase_section(results: list[CellResult]) -> str:
    """Return the phase transition, and the start beside the whole fit, beside the published."""
    words = {"dTBM": "dTBM", "oracle": "from the planted labels", "init_only": "the start alone"}
    drawn = []
    for kind, members in kinds(results).items():
        ordered = sorted(members, key=lambda r: r.cell.x)
        xs, names = [r.cell.x for r in ordered], list(ordered[0].cell.published)
        here = {COLOURS[m]: (xs, [r.mean(m) for r in ordered]) for m in names}
        there = {COLOURS[m]: (xs, [r.cell.published[m] for r in ordered]) for m in names}
        for title, series in ((f"{kind}: here", here), (f"{kind}: published", there)):
            chart = charts.lines(title, series, xlabel="gamma", ylabel="clustering error rate")
            drawn.append(page.figure(chart, f"{len(members)} cells."))
    key = page.key({COLOURS[m]: word for m, word in words.items()})
    return page.section("Phase transition, and what the iteration adds", [key, page.grid(drawn)])


def growth(found: ClusterBench) -> list[str]:
    """Draw the time of fits against the number of nodes, and of entries."""
    drawn = []
    if len(found.dense) > 1:
        places = [log10(entry["nodes"]) for entry in found.dense]
        series = {
            role: (places, [log10(entry[name]) for entry in found.dense])
            for role, name in (("full", "grams_s"), ("ours", "pooled_s"), ("hadamard", "untied_s"))
        }
        chart = charts.lines(
            "Dense fits", series, xlabel="log10 of nodes", ylabel="log10 of seconds"
        )
        drawn.append(page.figure(chart, "Grey: three Gram matrices. Green: tied. Blue: untied."))
    if len(found.sparse) > 1:
        chart = charts.lines(
            "Sparse fits",
            {
                "ours": (
                    [log10(entry["entries"]) for entry in found.sparse],
                    [log10(entry["fit_s"]) for entry in found.sparse],
                )
            },
            xlabel="log10 of entries",
            ylabel="log10 of seconds",
        )
        drawn.append(page.figure(chart, "Hypergraphs with 80% of edges within blocks."))
    return drawn
