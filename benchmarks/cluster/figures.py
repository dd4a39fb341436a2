"""Draw the paper's figures beside their published values: methods compared, phase transition.

    python benchmarks/cluster/figures.py --replicates 5 --out figures.html

The paper has 30 replicates. Data are drawn by the recipe in ``tesseral.bench.cluster.recipe``.
"""

import argparse
from pathlib import Path

from tesseral.bench.cluster.accuracy import run_cells
from tesseral.bench.cluster.page import figures_section, phase_section
from tesseral.bench.cluster.phase import phase_cells, run_phase
from tesseral.bench.cluster.recipe import cells
from tesseral.report import page


def main() -> None:
    """Run the simulations and write one page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("figures.html"))
    options = parser.parse_args()
    results = run_cells(cells(), options.replicates, lambda *_: None)
    words = f"{options.replicates} replicates here, 30 in the paper."
    phases = run_phase(phase_cells(), options.replicates, lambda *_: None)
    body = [page.paragraph(words), figures_section(results), phase_section(phases)]
    options.out.write_text(page.page("Clustering: the paper's figures", body), encoding="utf-8")


if __name__ == "__main__":
    main()
