"""The paper's comparisons, done again: our method and peers beside the published curves.

    python benchmarks/regress/figures.py --out figures --published DIRECTORY --replicates 2

Writes ``comparison.png``, ``error.png`` and the numbers behind them. ``--published`` names a
directory with ``paperB_comparison_numbers.csv`` and ``paperB_mse_vs_dimension.csv``, the values of
Xu, Hu and Wang's figures 4 and 5 and of their errors against dimension; without it only measured
curves are drawn.

Settings that the values do not tell are chosen here: d = 20 for each mode (where samples vary, the
sample mode has 20, 40, ..., 100 and alone has covariates), 8 covariates a mode, rank (3, 3, 3) or
(4, 5, 6), covariates drawn as in its section on simulations. The signal of "low" and "high" effects
is chosen so that our first points lie near the published ones; what can be compared is how curves
move from there, and their order.
"""

import argparse
import csv
import sys
import warnings
from itertools import product
from pathlib import Path

import numpy as np
from peers import PEERS

from tesseral._errors import TesseralWarning
from tesseral.bench.regress.quality import FAMILIES, RANKS, SIZES, draw_family, error_cell
from tesseral.datasets import make_tensor_response
from tesseral.runtime.extras import require

RANK = {"low": (3, 3, 3), "high": (4, 5, 6)}
SIGNAL = {
    ("normal", "low"): 2.5,
    ("normal", "high"): 5.0,
    ("binomial", "low"): 3.0,
    ("binomial", "high"): 6.0,
}
PANELS = [
    (figure, family, kind, effect, rank)
    for figure, family in (("Figure4", "normal"), ("Figure5", "binomial"))
    for kind in ("mode", "sample")
    for effect in ("low", "high")
    for rank in ("low", "high")
]
COLOURS = {
    "STD, ours": "#0b8f6a",
    "HOSVD, then regress": "#c8501e",
    "reduced-rank regression": "#2a6fb8",
    "entry-wise GLM": "#8a6bbf",
}


def planted(family, kind, effect, rank, x, seed):
    """Draw a truth and a response for one point of a curve."""
    with_covariates = x if kind == "mode" else 1
    sizes = (20, 20, 20) if kind == "mode" else (20, 20, 20 * x)
    widths = tuple(8 if k >= 3 - with_covariates else None for k in range(3))
    truth = make_tensor_response(
        sizes, RANK[rank], 8, family=family, signal=SIGNAL[family, effect], random_state=seed
    )
    covariates = [c if w else None for c, w in zip(truth.covariates, widths, strict=True)]
    return truth, covariates, draw_family(truth.linear_predictor, family, seed)


def misalignment(mean, truth):
    """Return 1 - correlation of fitted and true means."""
    return 1 - np.corrcoef(np.ravel(mean), np.ravel(truth))[0, 1]


def compare(replicates, report):
    """Return one record for each panel, point and method."""
    rows = []
    for figure, family, kind, effect, rank in PANELS:
        for x in range(1, 4 if kind == "mode" else 6):
            found = {name: [] for name in PEERS}
            for seed in range(replicates):
                truth, covariates, y = planted(family, kind, effect, rank, x, seed)
                for name, peer in PEERS.items():
                    mean = peer(y, covariates, RANK[rank], family)
                    found[name].append(misalignment(mean, truth.mean))
            rows += [
                {
                    "figure": f"{figure}_{kind}",
                    "effect": effect,
                    "rank": rank,
                    "x_index": x,
                    "method": name,
                    "misalignment": float(np.mean(values)),
                }
                for name, values in found.items()
            ]
        report(f"{figure} {kind} {effect} {rank}")
    return rows


def draw_comparison(rows, published, path):
    """Draw all panels of the comparison."""
    figure = require("matplotlib.figure", extra="plot", purpose="figures").Figure(
        figsize=(16, 14), layout="constrained"
    )
    axes = figure.subplots(4, 4).ravel()
    for axis, (name, family, kind, effect, rank) in zip(axes, PANELS, strict=True):
        key = {"figure": f"{name}_{kind}", "effect": effect, "rank": rank}
        for method, colour in COLOURS.items():
            curve = _curve(rows, method=method, **key)
            axis.plot(*curve, "o-", color=colour, label=method)
        for method in sorted({row["method"] for row in published}):
            curve = _curve(published, method=method, **key)
            solid = {"color": "black"} if method == "STD" else {"color": "0.65"}
            axis.plot(*curve, "--", linewidth=1, label=f"{method}, published", **solid)
            axis.annotate(method, (curve[0][-1], curve[1][-1]), fontsize=7, color="0.4")
        axis.set_title(f"{family}, {effect} effect, {rank} rank", fontsize=9)
        axis.set_xlabel("modes with covariates" if kind == "mode" else "samples / 20", fontsize=8)
        axis.set_ylabel("1 - correlation with the truth", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.set_xticks(range(1, 4 if kind == "mode" else 6))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=5, loc="outside lower center", fontsize=8)
    figure.savefig(path, dpi=100)


def draw_errors(cells, published, path):
    """Draw squared errors against dimension beside the bound and the published ones."""
    figure = require("matplotlib.figure", extra="plot", purpose="figures").Figure(
        figsize=(13, 4.2), layout="constrained"
    )
    names = {"normal": "normal", "binomial": "binary", "poisson": "poisson"}
    for axis, (family, name) in zip(figure.subplots(1, 3), names.items(), strict=True):
        for rank, colour in ((2, "#0b8f6a"), (4, "#2a6fb8"), (6, "#c8501e")):
            own = [cell for cell in cells if cell["family"] == family and cell["rank"] == rank]
            d = [cell["d"] for cell in own]
            axis.plot(d, [c["error"] for c in own], "o-", color=colour, label=f"ours, rank {rank}")
            axis.plot(d, [c["bound"] for c in own], ":", color=colour, label="information bound")
            theirs = [r for r in published if r["dist"] == name and int(r["r"]) == rank]
            axis.plot(
                [int(r["d"]) for r in theirs],
                [float(r["mse_coef"]) for r in theirs],
                "--",
                color=colour,
                alpha=0.5,
                label="published (one truth a cell)",
            )
        axis.set_yscale("log")
        axis.set_title(family)
        axis.set_xlabel("dimension d; p = 0.4 d")
        axis.set_ylabel("mean squared error of B")
        axis.legend(fontsize=6)
    figure.savefig(path, dpi=110)


def _curve(rows, **wanted):
    kept = [row for row in rows if all(str(row[k]) == v for k, v in wanted.items())]
    kept.sort(key=lambda row: int(row["x_index"]))
    return [int(row["x_index"]) for row in kept], [float(row["misalignment"]) for row in kept]


def _read(folder, name):
    if folder is None:
        return []
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(rows, path):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main():
    """Parse the arguments, simulate, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--published", type=Path)
    parser.add_argument("--replicates", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TesseralWarning)
        rows = compare(options.replicates, lambda text: sys.stderr.write(f"{text}\n"))
        cells = [
            error_cell(*setting, truths=options.replicates, draws=1)
            for setting in product(FAMILIES, SIZES, RANKS)
        ]
    _write(rows, options.out / "comparison.csv")
    _write(cells, options.out / "error.csv")
    published = _read(options.published, "paperB_comparison_numbers.csv")
    draw_comparison(rows, published, options.out / "comparison.png")
    published = _read(options.published, "paperB_mse_vs_dimension.csv")
    draw_errors(cells, published, options.out / "error.png")


if __name__ == "__main__":
    main()
