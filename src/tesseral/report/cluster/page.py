"""A clustering as one page."""

from typing import Any

import numpy as np

from tesseral.report import page
from tesseral.report.cluster import pictures
from tesseral.report.cluster.record import (
    ClusterRecord,
    cluster_table,
    diagnosis_table,
    shown_modes,
)
from tesseral.report.units import seconds_text


def cluster_page(record: ClusterRecord, drawn: dict[str, str]) -> str:
    """Return the report as a complete HTML document; ``drawn`` are the pictures by name."""
    return page.page(f"Clusters of {record.data}", [*summary(record), *sections(record, drawn)])


def summary(record: ClusterRecord) -> list[str]:
    """Return what was done, the numbers that matter, and what the fit warned of."""
    model = record.model
    shape = " x ".join(str(len(z)) for z in model.labels_)
    entries = [
        (" x ".join(map(str, model.n_clusters_)), f"clusters of {shape} nodes"),
        (f"{model.bic_:,.0f}", f"BIC, {model.family} likelihood"),
        (seconds_text(record.elapsed_s), f"to fit, {model.n_iter_} iterations"),
    ]
    if record.error_rate is not None:
        entries.insert(
            1, (f"{record.error_rate:.4f}", "of the pairs of nodes disagree with the truth")
        )
    words = "The iteration converged." if model.converged_ else f"{model.reason_.text}."
    return [
        page.paragraph(
            f"{type(model).__name__} grouped the nodes of every mode of {record.data}. {words}",
            "lead",
        ),
        page.facts(entries),
        *(page.paragraph(f"Warning: {text}", "note") for text in record.warnings),
    ]


def sections(record: ClusterRecord, drawn: dict[str, str]) -> list[str]:
    """Return the sections of the page."""
    limits = "Orange: below it no method finds clusters. Blue: below it none that is fast is known."
    if len(record.model.labels_) == 2:  # both limits are one
        limits = "Blue: below it no method finds clusters."
    captions = {
        "slice": "Nodes ordered by cluster; lines between clusters.",
        "core": "The mean of the entries of each block.",
        "degrees": "How much a node takes part, relative to the mean of its cluster.",
        "consensus": "Share of the fits to parts of the data that put two nodes together; "
        "clear squares are clusters that do not depend on single entries.",
        "bic": "The smallest was chosen.",
        "phases": f"Green: this fit. {limits} Block means come from entries that labels have not "
        "seen.",
    }
    figures = {
        name: page.figure(svg, captions[name.partition("-")[0]]) for name, svg in drawn.items()
    }
    blocks = [svg for name, svg in figures.items() if name.startswith(("slice", "core"))]
    rest = [svg for name, svg in figures.items() if not name.startswith(("slice", "core"))]
    return [
        page.section("Blocks", [page.grid(blocks)]),
        page.section(
            "Clusters",
            [page.table("Numbered from the largest.", *cluster_table(record))],
        ),
        page.section(
            "Can the data support it?",
            [
                page.table(
                    "Clusters were found in one half of the entries and compared on the other: how "
                    "far the profiles of the two closest ones are apart (separation), and how far "
                    "beyond noise (signal to noise). Gamma is the exponent of that ratio in the "
                    "number of nodes; the theory says at which a method can find clusters at all, "
                    "and at which in little time (regime).",
                    *diagnosis_table(record),
                ),
                page.grid(rest),
            ],
        ),
    ]


def draw(record: ClusterRecord, source: Any) -> dict[str, str]:
    """Return all pictures by name."""
    model = record.model
    sizes = [len(z) for z in model.labels_]
    means, edges = pictures.mean_slices(source, model.labels_, model.n_clusters_)
    nodes = [np.asarray(names) for names in record.names]
    row_names, column_names, *_ = map(pictures.by_cluster, nodes, model.labels_)
    drawn = {
        f"slice-{number}": svg
        for number, svg in enumerate(pictures.slices(means, edges, (row_names, column_names)))
    }
    drawn["core"] = pictures.core(np.asarray(model.core_, dtype=np.float64))
    for mode in shown_modes(record):
        values = np.asarray(model.degrees_[mode], dtype=np.float64)
        drawn[f"degrees-{mode}"] = pictures.degrees(mode, model.labels_[mode], values, nodes[mode])
        if record.stability:
            together = record.stability[mode].consensus
            drawn[f"consensus-{mode}"] = pictures.consensus(mode, model.labels_[mode], together)
    if len(model.bic_path_) > 1:
        drawn["bic"] = pictures.criterion(list(model.bic_path_.items()), model.n_clusters_)
    modes = shown_modes(record)
    drawn["phases"] = pictures.phases(
        [sizes[mode] for mode in modes], len(sizes), [record.diagnosis[mode] for mode in modes]
    )
    return drawn
