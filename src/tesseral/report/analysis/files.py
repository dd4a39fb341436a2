"""What an analysis leaves behind: a page, the advice, and the tensors."""

from pathlib import Path
from typing import Any

import numpy as np

from tesseral.llm.analysis import Analysis
from tesseral.report.analysis.page import analysis_page
from tesseral.runtime.files import atomic_directory

ADVICE = "advice.json"
TENSORS = "tensors.npz"


def write_analysis(
    found: Analysis, machine: dict[str, Any], out: str | Path, *, overwrite: bool = False
) -> None:
    """Write ``report.html``, ``advice.json`` and ``tensors.npz``.

    Raises
    ------
    OutputExistsError
        If ``out`` exists and is not to be replaced.
    MissingExtraError
        If matplotlib is not installed.
    """
    with atomic_directory(out, overwrite=overwrite) as folder:
        (folder / "report.html").write_text(analysis_page(found, machine), encoding="utf-8")
        (folder / ADVICE).write_text(found.advice.to_json() + "\n", encoding="utf-8")
        np.savez_compressed(folder / TENSORS, **tensors(found))


def tensors(found: Analysis) -> dict[str, Any]:
    """Return the tensors with the names along their axes, as arrays.

    ``attention`` has shape (layers, heads, classes, statistics), ``error`` and ``loss``
    (layers, projections, settings), ``peaks`` and ``weight_peaks`` (layers, projections),
    ``head_groups`` (layers, heads).
    """
    heads, errors = found.heads, found.errors
    return {
        "attention": heads.values,
        "classes": np.array(heads.classes),
        "statistics": np.array(heads.statistics),
        "head_groups": found.groups.labels,
        "error": errors.error,
        "loss": errors.loss,
        "projections": np.array(errors.projections),
        "settings": np.array([str(setting) for setting in errors.settings]),
        "peaks": errors.peaks,
        "weight_peaks": errors.weight_peaks,
    }


def as_dict(found: Analysis) -> dict[str, Any]:
    """Return the numbers as plain values, ready for JSON."""
    effects, advice = found.effects, found.advice
    return {
        "model": found.model,
        "n_sequences": found.n_sequences,
        "sequence_length": found.sequence_length,
        "head_groups": found.groups.labels.tolist(),
        "head_group_names": list(found.groups.names),
        "bic": {str(count): value for count, value in found.groups.bic_path.items()},
        "effects": {
            "layer": list(effects.layer),
            "projections": list(effects.projections),
            "setting": list(effects.setting),
            "coef": effects.coef.tolist(),
            "low": effects.low.tolist(),
            "high": effects.high.tolist(),
            "rank": list(effects.rank),
            "explained": effects.explained,
        },
        "advice": {
            "weight_bits": advice.weight_bits,
            "activation_bits": advice.activation_bits,
            "loss": advice.loss,
            "uniform_loss": advice.uniform_loss,
            "layers": {name: dict(widths) for name, widths in advice.layers.items()},
        },
        "warnings": [*found.groups.warnings, *effects.warnings],
    }
