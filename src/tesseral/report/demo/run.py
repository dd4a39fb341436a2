"""The main job: quantise in every way, measure, draw, and write it all into one directory."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from tesseral import llm
from tesseral.llm.block_error import block_errors
from tesseral.llm.evaluate import Agreement, agreement
from tesseral.llm.flatness import SiteFlatness, flatness
from tesseral.llm.footprint import footprint
from tesseral.quantization.calibration.task import CalibrationStep
from tesseral.report.charts import require_matplotlib
from tesseral.report.demo.legislature import cluster_legislature
from tesseral.report.demo.nations import regress_nations
from tesseral.report.demo.page import demo_page
from tesseral.report.demo.plan import NAMES, DemoPlan
from tesseral.report.demo.record import DemoRecord, ModelRecord
from tesseral.runtime.files import atomic_directory
from tesseral.runtime.machine import machine_record


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoStep:
    """How far the demo has come.

    Attributes
    ----------
    stage, n_stages : int
        Number of the stage, from 0, and how many there are.
    name : str
        What the stage does.
    done, total : int
        How far it has come; ``total`` is 0 as long as it is not known.
    """

    stage: int
    n_stages: int
    name: str
    done: int
    total: int


Watch = Callable[[DemoStep], None]
Found = TypeVar("Found")
_OTHER_STAGES = 3


def run_demo(
    plan: DemoPlan, out: str | Path, *, overwrite: bool = False, watch: Watch = lambda _: None
) -> DemoRecord:
    """Quantise a model in every way, measure the results and write a report.

    Parameters
    ----------
    plan : DemoPlan
        What to do.
    out : path
        Directory to make; it holds ``report.html`` and ``models/``, all or nothing.
    overwrite : bool
        Replace ``out`` if it exists.
    watch : callable
        Called at the start of every stage and as it advances.

    Raises
    ------
    OutputExistsError
        If ``out`` exists and is not to be replaced.
    MissingExtraError
        If matplotlib is not installed.
    """
    require_matplotlib()
    started = monotonic()
    with atomic_directory(out, overwrite=overwrite) as folder:
        job = _Job(plan, folder, watch)
        models = job.run()
        record = DemoRecord(
            plan=plan,
            models=tuple(models),
            speeds=job.stage_of("attention and 4-bit layers beside torch", "timing", plan.speeds),
            legislature=job.stage_of(
                "the legislature of Peru", "clustering", lambda: cluster_legislature(plan.seeds[0])
            ),
            nations=job.stage_of(
                "relations among nations", "regressing", lambda: regress_nations(plan.seeds[0])
            ),
            machine=machine_record(with_accelerators=True).as_dict(),
            elapsed_s=monotonic() - started,
        )
        (folder / "report.html").write_text(demo_page(record), encoding="utf-8")
    return record


class _Job:
    """The stages one after the other, each told to ``watch``."""

    def __init__(self, plan: DemoPlan, folder: Path, watch: Watch) -> None:
        self.plan, self.folder, self.watch = plan, folder, watch
        self.stage, self.n_stages = -1, 1 + 2 * len(plan.runs) + _OTHER_STAGES
        self.original, self.tokenizer = llm.load(plan.model)

    def run(self) -> list[ModelRecord]:
        """Return the original's record and one for each of the plan's runs."""
        advance = self._begin(NAMES["full"], "measuring")
        sample, sites = self._inspect(self.original)
        advance(1, 1)
        models = [self._quantized(transform, seed) for transform, seed in self.plan.runs]
        found = models[0].agreement
        original = ModelRecord(
            method="full",
            seed=None,
            path=str(self.plan.model),
            agreement=Agreement(
                n_tokens=found.n_tokens,
                perplexity=found.reference_perplexity,
                reference_perplexity=found.reference_perplexity,
                top1=1.0,
                kl_divergence=0.0,
            ),
            footprint=footprint(self.plan.model, self.original),
            sample=sample,
            quantize_s=0.0,
            block_errors=(),
            sites=sites,
        )
        return [original, *models]

    def _quantized(self, transform: str, seed: int) -> ModelRecord:
        plan, started = self.plan, monotonic()
        name = NAMES[transform] if seed == plan.seeds[0] else f"{NAMES[transform]}, seed {seed}"
        place = f"models/{transform}" if seed == plan.seeds[0] else f"models/{transform}-{seed}"
        advance = self._begin(name, "quantising")

        def report(step: CalibrationStep) -> None:
            per_block = max(step.n_epochs, 1)
            done = step.block * per_block + (step.epoch if step.n_epochs else 1)
            advance(done, step.n_blocks * per_block)

        # the plainest way is plain in every part
        rounding = "nearest" if transform == "none" else plan.config.rounding
        config = replace(plan.config, transform=transform, rounding=rounding, seed=seed)
        path = llm.quantize(
            plan.model, config, plan.calibration, self.folder / place, report=report
        )
        quantize_s = monotonic() - started
        model, tokenizer = llm.load(path)
        found = agreement(
            model,
            self.original,
            tokenizer,
            plan.test,
            plan.sequence_length,
            max_sequences=plan.max_sequences,
            report=self._begin(name, "measuring"),
        )
        sample, sites = self._inspect(model)
        return ModelRecord(
            method=transform,
            seed=seed,
            path=place,
            agreement=found,
            footprint=footprint(path, model),
            sample=sample,
            quantize_s=quantize_s,
            block_errors=tuple(block_errors(model, self.original, tokenizer, plan.test)),
            sites=sites,
        )

    def _inspect(self, model: Any) -> tuple[str, tuple[SiteFlatness, ...]]:
        """Return what a model writes after the prompt, and how flat its inputs are."""
        plan, tokenizer = self.plan, self.tokenizer
        sample = llm.generate(
            model,
            tokenizer,
            plan.prompt,
            max_new_tokens=plan.new_tokens,
            temperature=plan.temperature,
        )
        return sample, tuple(flatness(model, tokenizer, plan.test))

    def stage_of(self, name: str, doing: str, work: Callable[[], Found]) -> Found:
        """Do work that is one stage by itself."""
        advance = self._begin(name, doing)
        found = work()
        advance(1, 1)
        return found

    def _begin(self, name: str, doing: str) -> Callable[[int, int], None]:
        """Start a stage and return how to say how far it has come."""
        self.stage += 1
        stage = self.stage

        def advance(done: int, total: int) -> None:
            self.watch(
                DemoStep(
                    stage=stage,
                    n_stages=self.n_stages,
                    name=f"{doing} {name}",
                    done=done,
                    total=total,
                )
            )

        advance(0, 0)
        return advance
