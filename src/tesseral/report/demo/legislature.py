"""The part of the report that clusters the legislature of Peru."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tesseral.cluster import (
    DegreeCorrectedTensorBlockModel,
    HigherOrderLloyd,
    SpectralTensorClustering,
    clustering_error_rate,
    read,
)
from tesseral.datasets import load_peru
from tesseral.report import page
from tesseral.report.cluster.page import draw
from tesseral.report.cluster.record import ClusterRecord, cluster_table
from tesseral.report.cluster.run import fit_record
from tesseral.report.units import seconds_text

PARTIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Legislature:
    """What was found in the co-sponsorship data.

    Attributes
    ----------
    fit : ClusterRecord
        Of the degree-corrected model.
    peers : dict of str to float
        Error rates of other methods against the parties.
    drawn : dict of str to str
        Pictures, by name.
    """

    fit: ClusterRecord
    peers: dict[str, float]
    drawn: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values."""
        return {**self.fit.as_dict(), "peers": self.peers}


def cluster_legislature(seed: int = 0) -> Legislature:
    """Cluster the legislators by our method and by its peers."""
    peru = load_peru()
    fit = fit_record(
        DegreeCorrectedTensorBlockModel(PARTIES, random_state=seed),
        peru.tensor,
        data="the legislature of Peru",
        names=(peru.legislator_id,) * 3,
        truth=peru.party,
        seed=seed,
    )
    peers = {
        "Higher-order Lloyd": HigherOrderLloyd(PARTIES, random_state=seed),
        "HOSVD": SpectralTensorClustering(PARTIES, rows="plain", random_state=seed),
        "HOSVD+": SpectralTensorClustering(PARTIES, rows="unit", random_state=seed),
        "SCORE": SpectralTensorClustering(PARTIES, rows="ratio", random_state=seed),
    }
    rates = {
        name: clustering_error_rate(peru.party, model.fit(peru.tensor).labels_[0])
        for name, model in peers.items()
    }
    return Legislature(fit=fit, peers=rates, drawn=draw(fit, read("demo", peru.tensor).source))


def legislature_section(found: Legislature) -> str:
    """Return who votes with whom, as clusters beside the parties."""
    rate = found.fit.error_rate
    shown = [found.drawn[name] for name in ("slice-0", "core") if name in found.drawn]
    captions = ("Legislators ordered by cluster.", "How often blocks of clusters meet.")
    rows = [
        ["Degree-corrected block model", f"{rate:.4f}"],
        *([name, f"{value:.4f}"] for name, value in found.peers.items()),
    ]
    return page.section(
        "Clusters: the legislature of Peru",
        [
            page.paragraph(
                "Which three of 116 legislators sponsored a bill together is a tensor of 116 x 116 "
                f"x 116. The degree-corrected block model found {PARTIES} groups in it within "
                f"{seconds_text(found.fit.elapsed_s)}, without knowing the five parties."
            ),
            page.table(
                "Pairs of legislators on which clusters and parties disagree.",
                ["method", "error rate"],
                rows,
            ),
            page.grid(page.figure(svg, words) for svg, words in zip(shown, captions, strict=True)),
            page.table(
                "Legislators of each cluster, by party.", *_against_parties(found.fit.model)
            ),
            page.table("Clusters, from the largest.", *cluster_table(found.fit)),
        ],
        anchor="peru",
    )


def _against_parties(model: Any) -> tuple[list[str], list[list[str]]]:
    """Return how many legislators of each party are in each cluster."""
    labels = model.labels_[0]
    parties, party = np.unique(load_peru().party, return_inverse=True)
    counts = np.zeros((int(labels.max()) + 1, len(parties)), dtype=int)
    np.add.at(counts, (labels, party), 1)
    rows = [[str(k), *(str(n) if n else "" for n in row)] for k, row in enumerate(counts)]
    return ["cluster", *map(str, parties)], rows
