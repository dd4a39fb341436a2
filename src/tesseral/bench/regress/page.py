"""The benchmark of regression on one page: what must hold, errors, and growth of cost."""

from typing import Any

from tesseral.bench.regress.quality import FAMILIES
from tesseral.report import charts, page

Table = tuple[list[str], list[list[str]]]

_COLOURS = dict(zip(FAMILIES, ("ours", "hadamard", "flatquant"), strict=True))


def bench_page(record: dict[str, Any]) -> str:
    """Return a record of the benchmark as a complete HTML document."""
    caption = f"Rank (3, 3, 3), covariates on all modes, {record['threads']} threads."
    body = [
        page.section("What must hold", [page.table("", *bars_table(record))]),
        page.section("Cost", [page.table(caption, *speed_table(record)), page.grid(grown(record))]),
        page.section(
            "Errors of coefficients over the information bound",
            [
                page.key({_COLOURS[family]: family for family in FAMILIES}),
                page.grid(errors(record)),
            ],
        ),
    ]
    return page.page("Tensor-response regression: what fits cost and are worth", body)


def speed_table(record: dict[str, Any]) -> Table:
    """Return the time of fits, in seconds and in matrix products."""
    rows = [
        [
            row["name"],
            f"{row['seconds']:.3f}",
            f"{row['product_s']:.3f}",
            f"{row['products']:.2f}",
            str(row["rounds"]),
        ]
        for row in record["speed"]
    ]
    return ["fit", "s", "product s", "products", "rounds"], rows


def bars_table(record: dict[str, Any]) -> Table:
    """Return what must hold and whether it does."""
    rows = [
        [
            bar["name"],
            f"{bar['value']:.4g}",
            f"{'<=' if bar['below'] else '>='} {bar['limit']:.4g}",
            "yes" if bar["holds"] else "NO",
        ]
        for bar in record["bars"]
    ]
    return ["what", "found", "needed", "holds"], rows


def grown(record: dict[str, Any]) -> list[str]:
    """Draw the time of fits against size, rank and the share of entries missing."""
    drawn = []
    for what, rows in record["growth"].items():
        series = {"ours": ([row["at"] for row in rows], [row["seconds"] for row in rows])}
        chart = charts.lines(f"Growth with {what}", series, xlabel=what, ylabel="seconds")
        drawn.append(page.figure(chart, "Binary data, to a relative gain of 1e-4."))
    return drawn


def errors(record: dict[str, Any]) -> list[str]:
    """Draw, for each rank, the ratio of error and bound against the size."""
    cells = record["quality"]["cells"]
    drawn = []
    for rank in sorted({cell["rank"] for cell in cells}):
        series = {}
        for family in FAMILIES:
            of_family = [c for c in cells if (c["rank"], c["family"]) == (rank, family)]
            series[_COLOURS[family]] = (
                [c["d"] for c in of_family],
                [c["ratio"] for c in of_family],
            )
        chart = charts.lines(f"Rank {rank}", series, xlabel="d", ylabel="error / bound")
        drawn.append(page.figure(chart, "1 is what no unbiased estimator is better than."))
    return drawn
