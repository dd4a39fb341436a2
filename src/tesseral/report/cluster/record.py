"""What a clustering found, as plain values, and the tables that show it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tesseral.cluster import ModeDiagnosis, Stability, clustering_error_rate

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRecord:
    """One fit, and what it was made from.

    Attributes
    ----------
    data : str
        What was clustered.
    model : fitted estimator
    names : tuple of K arrays of str
        Names of the nodes.
    error_rate : float, optional
        Clustering error rate of mode 0 against the truth, if that was given.
    diagnosis : tuple of ModeDiagnosis
    warnings : tuple of str
        What the fit warned of.
    machine : dict
    elapsed_s : float
        Time of the fit.
    stability : tuple of Stability
        Of every mode, if fits to parts of the data were asked for; otherwise empty.
    """

    data: str
    model: Any
    names: tuple[NDArray[Any], ...]
    error_rate: float | None
    diagnosis: tuple[ModeDiagnosis, ...]
    warnings: tuple[str, ...]
    machine: dict[str, Any]
    elapsed_s: float
    stability: tuple[Stability, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, ready for JSON."""
        model = self.model
        return {
            "data": self.data,
            "shape": [len(z) for z in model.labels_],
            "method": type(model).__name__,
            "settings": {
                name: value if isinstance(value, str | int | float | bool | None) else str(value)
                for name, value in model.get_params().items()
            },
            "n_clusters": list(model.n_clusters_),
            "symmetric": [list(group) for group in model.symmetric_],
            "sizes": [np.bincount(z).tolist() for z in model.labels_],
            "error_rate": self.error_rate,
            "log_likelihood": model.log_likelihood_,
            "bic": model.bic_,
            "bic_path": {",".join(map(str, k)): v for k, v in model.bic_path_.items()},
            "n_iter": model.n_iter_,
            "converged": model.converged_,
            "reason": model.reason_.value,
            "diagnosis": [
                {
                    "separation": entry.separation,
                    "signal_to_noise": entry.signal_to_noise,
                    "gamma": entry.gamma,
                    "regime": entry.regime,
                }
                for entry in self.diagnosis
            ],
            "stability": [
                {"error_rate": entry.error_rate, "nodes": entry.nodes.tolist()}
                for entry in self.stability
            ],
            "warnings": list(self.warnings),
            "machine": self.machine,
            "elapsed_s": self.elapsed_s,
        }


def error_rate(truth: ArrayLike | None, model: Any) -> float | None:
    """Return the error rate of mode 0 against a truth, if there is one."""
    return None if truth is None else clustering_error_rate(np.asarray(truth), model.labels_[0])


def shown_modes(record: ClusterRecord) -> list[int]:
    """Return the modes that differ: the first of each group of tied modes."""
    return [group[0] for group in record.model.symmetric_]


def cluster_table(record: ClusterRecord, most: int = 8) -> Table:
    """Return every cluster with its size and its nodes of largest degree."""
    rows = []
    for mode in shown_modes(record):
        labels = record.model.labels_[mode]
        theta = np.asarray(record.model.degrees_[mode])
        for cluster in range(record.model.n_clusters_[mode]):
            members = np.flatnonzero(labels == cluster)
            first = members[np.argsort(-theta[members], kind="stable")][:most]
            named = "; ".join(str(record.names[mode][i]) for i in first)
            more = "; ..." if len(members) > most else ""
            rows.append([str(mode), str(cluster), str(len(members)), named + more])
    return ["mode", "cluster", "nodes", "of largest degree"], rows


def diagnosis_table(record: ClusterRecord) -> Table:
    """Return the separation of each mode's clusters and what the theory says of it."""
    rows = [
        [
            str(mode),
            f"{record.diagnosis[mode].separation:.3g}",
            f"{record.diagnosis[mode].signal_to_noise:.3g}",
            f"{record.diagnosis[mode].gamma:.2f}",
            record.diagnosis[mode].regime,
        ]
        for mode in shown_modes(record)
    ]
    return ["mode", "separation", "signal to noise", "gamma", "regime"], rows
