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
from tesseral.report.cluster.record import ClusterRecord
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
    captions = (
        "How often two legislators and one of cluster 0 sponsored a bill; ordered by cluster.",
        "How often legislators of three clusters did: a row for one, a column for the others.",
    )
    rows = [
        ["Degree-corrected block model", f"{rate:.4f}"],
        *([name, f"{value:.4f}"] for name, value in found.peers.items()),
    ]
    return page.section(
        "Clusters: the legislature of Peru",
        [
            page.paragraph(
                "Which three of 116 legislators sponsored a bill together is a tensor of 116 x 116 "
                f"x 116. The degree-corrected block model sorted them into {PARTIES} clusters in "
                f"{seconds_text(found.fit.elapsed_s)}, as many as there are parties, of which it "
                "knows nothing."
            ),
            page.table(
                "Pairs of legislators on which clusters and parties disagree.",
                ["method", "error rate"],
                rows,
            ),
            page.grid(page.figure(svg, words) for svg, words in zip(shown, captions, strict=True)),
            page.table(
                "Legislators of each party, by cluster.", *_against_parties(found.fit.model)
            ),
        ],
        anchor="peru",
    )


def _against_parties(model: Any) -> tuple[list[str], list[list[str]]]:
    """Return how many legislators of each party are in each cluster."""
    labels = model.labels_[0]
    parties, party = np.unique(load_peru().party, return_inverse=True)
    counts = np.zeros((len(parties), int(labels.max()) + 1), dtype=int)
    np.add.at(counts, (party, labels), 1)
    rows = [
        [str(name).title(), *(str(n) if n else "" for n in row)]
        for name, row in zip(parties, counts, strict=True)
    ]
    return ["party", *(f"cluster {k}" for k in range(counts.shape[1]))], rows
