"""What the demo found, and the tables that show it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from tesseral.llm.evaluate import Agreement
from tesseral.llm.flatness import SiteFlatness
from tesseral.llm.footprint import Footprint
from tesseral.quantization.placement import INPUT_SITES
from tesseral.report.demo.legislature import Legislature
from tesseral.report.demo.nations import NationsFit
from tesseral.report.demo.plan import NAMES, DemoPlan
from tesseral.report.demo.speed import Speeds
from tesseral.report.units import bytes_text

Table = tuple[list[str], list[list[str]]]
"""Columns and rows, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """One model that was measured.

    Attributes
    ----------
    method : str
        One of :data:`~.plan.NAMES`.
    seed : int, optional
        ``None`` for the original.
    path : str
        Its directory, relative to the demo's output; the original's own.
    agreement : Agreement
        How it compares with the original.
    footprint : Footprint
        How much room it takes.
    sample : str
        What it wrote after the prompt.
    quantize_s : float
        Time it took to make.
    block_errors : tuple of float
        What each block gets wrong by itself.
    sites : tuple of SiteFlatness
        How flat the inputs of its linear layers are.
    """

    method: str
    seed: int | None
    path: str
    agreement: Agreement
    footprint: Footprint
    sample: str
    quantize_s: float
    block_errors: tuple[float, ...]
    sites: tuple[SiteFlatness, ...]

    def rounding_errors(self, site: str) -> list[float]:
        """Return the error of rounding the input ``site``, block by block."""
        return [entry.rounding_error for entry in self.sites if entry.site == site]

    def as_dict(self) -> dict[str, Any]:
        """Return the record as plain values; of the sites, only the errors."""
        return {
            "method": self.method,
            "seed": self.seed,
            "path": self.path,
            "perplexity": self.agreement.perplexity,
            "perplexity_ratio": self.agreement.ratio,
            "top1_agreement": self.agreement.top1,
            "kl_divergence": self.agreement.kl_divergence,
            **asdict(self.footprint),
            "quantize_s": self.quantize_s,
            "block_errors": list(self.block_errors),
            "rounding_errors": {s.name: self.rounding_errors(s.name) for s in INPUT_SITES},
            "sample": self.sample,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRecord:
    """Everything that the demo found.

    Attributes
    ----------
    plan : DemoPlan
        What was done.
    models : tuple of ModelRecord
        The original, then one for each of ``plan.runs``.
    legislature : Legislature
        Clusters of the legislature of Peru.
    nations : NationsFit
        Regression of the relations among nations.
    speeds : Speeds
        Attention and 4-bit layers beside torch's.
    machine : dict
        The machine it was done on.
    elapsed_s : float
        Time it took in all.
    """

    plan: DemoPlan
    models: tuple[ModelRecord, ...]
    legislature: Legislature
    nations: NationsFit
    speeds: Speeds
    machine: dict[str, Any]
    elapsed_s: float

    def of(self, method: str) -> list[ModelRecord]:
        """Return the models of one method, by seed."""
        return [model for model in self.models if model.method == method]

    def mean(self, method: str, value: Callable[[ModelRecord], float]) -> float:
        """Return the mean of a number over the seeds of a method."""
        return fmean(value(model) for model in self.of(method))

    @property
    def ordered(self) -> bool:
        """Whether FlatQuant beats Hadamard, and Hadamard rounding, with every seed."""
        (plain,) = (model.agreement.perplexity for model in self.of("none"))
        pairs = zip(self.of("flatquant"), self.of("hadamard"), strict=True)
        return all(
            flat.agreement.perplexity < fixed.agreement.perplexity < plain for flat, fixed in pairs
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values, ready for JSON."""
        plan = self.plan
        return {
            "config": plan.config.to_dict(),
            "seeds": list(plan.seeds),
            "sequence_length": plan.sequence_length,
            "max_sequences": plan.max_sequences,
            "summary": {
                method: {
                    "perplexity": self.mean(method, lambda m: m.agreement.perplexity),
                    "perplexity_ratio": self.mean(method, lambda m: m.agreement.ratio),
                    "each_ratio": [model.agreement.ratio for model in self.of(method)],
                }
                for method in NAMES
            },
            "ordered_with_every_seed": self.ordered,
            "models": [model.as_dict() for model in self.models],
            "peru": self.legislature.as_dict(),
            "nations": self.nations.as_dict(),
            "speeds": self.speeds.as_dict(),
            "machine": self.machine,
            "elapsed_s": self.elapsed_s,
        }


def accuracy_table(record: DemoRecord) -> Table:
    """Return what each model predicts, with a mean below each method of several seeds."""
    several = len(record.plan.seeds) > 1
    rows = []
    for method, name in NAMES.items():
        models = record.of(method)
        for model in models:
            seeded = f"{name}, seed {model.seed}" if several and len(models) > 1 else name
            found = model.agreement
            rows.append(_accuracy(seeded, found.perplexity, found.ratio, found))
        if len(models) > 1:
            perplexity = record.mean(method, lambda m: m.agreement.perplexity)
            ratio = record.mean(method, lambda m: m.agreement.ratio)
            rows.append(_accuracy(f"{name}, mean", perplexity, ratio, None))
    columns = ["model", "perplexity", "ratio", "top-1 agreement", "KL divergence"]
    return columns, rows


def _accuracy(name: str, perplexity: float, ratio: float, found: Agreement | None) -> list[str]:
    rest = ["", ""] if found is None else [f"{found.top1:.1%}", f"{found.kl_divergence:.3f}"]
    return [name, f"{perplexity:.2f}", f"{ratio:.3f}", *rest]


def size_table(record: DemoRecord) -> Table:
    """Return the room that a model of each method takes."""
    rows = [
        [
            NAMES[method],
            bytes_text(size.disk_bytes),
            bytes_text(size.memory_bytes),
            bytes_text(size.block_bytes),
            bytes_text(size.cache_bytes_per_token),
        ]
        for method, size in ((m, record.of(m)[0].footprint) for m in NAMES)
    ]
    return [
        "model",
        "weights on disk",
        "in memory",
        "decoder blocks",
        "cache per token",
    ], rows
